use serde_json::json;

use super::protocol::*;
use super::*;
use crate::retain::ledger::State;

fn environment(args: &str) -> Environment {
    Environment {
        command: "ADD".to_owned(),
        container: "c1".to_owned(),
        netns: "/run/netns/x".to_owned(),
        interface: "eth0".to_owned(),
        args: args.to_owned(),
    }
}

fn config(value: Value) -> Config {
    Config::parse(value.to_string().as_bytes()).unwrap()
}

#[test]
fn versions_are_in_order() {
    let all = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"].map(|version| Version::parse(version).unwrap());
    assert!(all.is_sorted());
    assert!(Version::parse("").is_err() && Version::parse("0.3.0").is_err());
}

#[test]
fn a_pod_is_named_by_both_of_its_names_or_by_its_container() {
    let pod =
        environment("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=5f0c");
    let who = pod.attachment("edge").unwrap();
    assert_eq!(
        (who.key.to_string().as_str(), who.uid.as_str()),
        ("Pod shop/web-0 (eth0)", "5f0c")
    );
    for args in [
        "",
        "K8S_POD_NAME=web-0",
        "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=",
    ] {
        let who = environment(args).attachment("edge").unwrap();
        assert_eq!(who.key.to_string(), "container c1 (eth0)", "{args}");
    }
}

#[test]
fn names_that_cannot_be_are_refused() {
    let with = |container: &str, interface: &str| Environment {
        container: container.to_owned(),
        interface: interface.to_owned(),
        ..environment("")
    };
    for (container, interface) in [
        ("", "eth0"),
        ("../x", "eth0"),
        ("a b", "eth0"),
        ("c1", ""),
        ("c1", "a/b"),
        ("c1", ".."),
        ("c1", "sixteen-letters-"),
    ] {
        let error = with(container, interface).attachment("edge").unwrap_err();
        assert_eq!(error.code(), 4, "{container} {interface}");
    }
    with("k8s_pod.0-1", "fifteen-letters")
        .attachment("edge")
        .unwrap();
}

#[test]
fn requested_addresses_come_from_three_places_with_or_without_a_prefix() {
    let config = config(json!({
        "runtimeConfig": {"ips": ["10.1.0.3/24", "10.1.0.2"]}, "args": {"cni": {"ips": ["fd00::3/64"]}},
    }));
    let requested = config
        .requested(&environment("IP=10.1.0.2,fd00::2"))
        .unwrap();
    let texts: Vec<_> = requested.iter().map(IpAddr::to_string).collect();
    assert_eq!(texts, ["10.1.0.2", "fd00::2", "10.1.0.3", "fd00::3"]);
    let error = config.requested(&environment("IP=ten")).unwrap_err();
    assert_eq!(error.code(), 7);
}

#[test]
fn ranges_are_read_as_host_local_has_them() {
    let names = |value: Value| {
        let sets = config(value).range_sets().unwrap();
        sets.iter()
            .map(|set| set.name().to_string())
            .collect::<Vec<_>>()
    };
    let flat = json!({"ipam": {"type": "yurt-ipam", "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "gateway": "10.1.0.1"}});
    assert_eq!(names(flat), ["10.1.0.9"]);
    let brought = json!({
        "ipam": {"ranges": [[{"subnet": "fd00::/64"}]], "subnet": "10.1.0.0/24"},
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]},
    });
    assert_eq!(names(brought), ["10.7.0.1", "10.1.0.1", "fd00::1"]);
    let bad = json!({"ipam": {"subnet": "ten"}}).to_string();
    assert_eq!(Config::parse(bad.as_bytes()).unwrap_err().code(), 6);
}

#[test]
fn old_results_name_the_family_and_resolvers_come_along() {
    let config = config(json!({"ipam": {
        "ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400}],
    }}));
    let set = &config.range_sets().unwrap()[0];
    let assigned = [set.assign("10.1.0.7".parse().unwrap()).unwrap()];
    let resolver = "# by hand\nnameserver 10.96.0.10\nnameserver fd00::a extra\nsearch shop.svc svc\noptions ndots:5\n";
    let old = ipam_result(
        Version::parse("0.4.0").unwrap(),
        &assigned,
        &config,
        resolver,
    );
    assert_eq!(
        old,
        json!({
            "cniVersion": "0.4.0",
            "ips": [{"version": "4", "address": "10.1.0.7/24", "gateway": "10.1.0.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400}],
            "dns": {"nameservers": ["10.96.0.10", "fd00::a"], "search": ["shop.svc", "svc"], "options": ["ndots:5"]},
        })
    );
    let new = ipam_result(Version::NEWEST, &assigned, &config, "");
    assert_eq!(
        new["ips"],
        json!([{"address": "10.1.0.7/24", "gateway": "10.1.0.1"}])
    );
}

#[test]
fn of_a_previous_result_only_the_mac_of_the_pods_interface_changes() {
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "eth0", "mac": "02:00:00:00:00:01"},
            {"name": "veth1", "mac": "02:00:00:00:00:02"},
            {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/x", "mtu": 1450},
        ],
        "ips": [
            {"address": "10.1.0.7/24", "interface": 2, "gateway": "10.1.0.1"},
            {"address": "192.0.2.1/24", "interface": 0},
            {"address": "fd00::7/64"},
        ],
        "later": {"a": [1]},
    });
    let config = config(json!({"prevResult": previous}));
    let claimed = config.claimed("eth0").unwrap();
    let texts: Vec<_> = claimed.addresses.iter().map(IpAddr::to_string).collect();
    assert_eq!(texts, ["10.1.0.7", "fd00::7"]);
    assert_eq!(claimed.mac, Some("02:00:00:00:00:03".parse().unwrap()));
    let mut expected = previous.clone();
    expected["interfaces"][2]["mac"] = json!("0a:58:0a:01:00:07");
    assert_eq!(
        claimed.result(previous, "0a:58:0a:01:00:07".parse().unwrap()),
        expected
    );
}

#[test]
fn the_name_of_the_program_says_which_plugin_it_is() {
    assert_eq!(
        Plugin::named(Path::new("/opt/cni/bin/yurt-ipam")),
        Some(Plugin::Ipam)
    );
    assert_eq!(Plugin::named(Path::new("yurt-cni")), Some(Plugin::Chained));
    assert_eq!(Plugin::named(Path::new("/usr/bin/yurt-net")), None);
    assert_eq!(Plugin::named(Path::new("")), None);
}

#[test]
fn a_mac_of_the_main_plugin_is_no_matter_of_yurt_ipams() {
    // As macvlan has it.
    let value = json!({
        "cniVersion": "1.0.0", "name": "edge", "type": "macvlan", "mac": "c2:11:22:33:44:55",
        "ipam": {"type": "yurt-ipam", "ranges": [[{"subnet": "10.1.0.0/24"}]]},
    });
    let config = config(value);
    config.range_sets().unwrap();
    assert_eq!(config.mac_policy().unwrap_err().code(), 6);
}

#[test]
fn yurt_cni_has_two_policies_and_one_is_the_default() {
    let policy = |value| config(value).mac_policy().unwrap();
    assert_eq!(policy(json!({})), MacPolicy::Address);
    assert_eq!(policy(json!({"mac": "address"})), MacPolicy::Address);
    assert_eq!(policy(json!({"mac": "first"})), MacPolicy::First);
}

#[test]
fn gc_without_a_list_takes_from_nobody_and_with_null_from_all() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let value = json!({
        "name": "edge",
        "ipam": {
            "dataDir": path("state"), "runDir": path("run"), "migrateFrom": "",
            "ranges": [[{"subnet": "10.1.0.0/24"}]],
        },
    });
    let environment = environment("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0");
    let meet = |verb, value: &Value| {
        let config = config(value.clone());
        let request = Request::new(Plugin::Ipam, Version::NEWEST, &environment, &config).unwrap();
        let result = request.meet(verb, &mut Vec::new());
        let store = Store::open(&request.place).unwrap();
        let state = store.ledger().entries().values().next().unwrap().state;
        (result.map_err(|error| error.code()), state)
    };
    meet(Verb::Add, &value).0.unwrap();
    assert_eq!(meet(Verb::Gc, &value), (Err(7), State::Active));
    let mut with = value.clone();
    with["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    assert_eq!(meet(Verb::Gc, &with), (Ok(Value::Null), State::Active));
    with["cni.dev/valid-attachments"] = Value::Null;
    assert_eq!(meet(Verb::Gc, &with), (Ok(Value::Null), State::Retained));
}
