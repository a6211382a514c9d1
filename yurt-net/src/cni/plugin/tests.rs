use serde_json::json;

use super::*;
use crate::cni::protocol::*;
use crate::ledger::State;

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
    assert_eq!(policy(json!({"mac": null})), MacPolicy::Address);
    let map = config(json!({"mac": {"first": null}}));
    assert_eq!(map.mac_policy().unwrap_err().code(), 6);
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

/// What Go's structs have in a field.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Address,
    Network,
    Integer,
    List,
    Section,
}

impl Kind {
    /// What encoding/json and the types' own readers take for it, and what they refuse: first a field of libcni's,
    /// host-local's or types' structs.
    fn forms(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Text => (
                &["null", r#""""#, r#""x""#, r#""\u0000é""#],
                &["5", "1.5", "true", "[]", "{}"],
            ),
            Self::Address => (
                &[
                    "null",
                    r#""""#,
                    r#""10.1.0.9""#,
                    r#""fd00::9""#,
                    r#""::ffff:10.1.0.9""#,
                ],
                &[
                    "5",
                    "[]",
                    "{}",
                    r#""ten""#,
                    r#""10.1.0.09""#,
                    r#""10.1.0.9/24""#,
                    r#""fe80::1%eth0""#,
                    r#"" 10.1.0.9""#,
                ],
            ),
            Self::Network => (
                &[r#""10.1.0.0/24""#, r#""fd00::/64""#, r#""10.1.0.0/024""#],
                &[
                    "5",
                    "[]",
                    "{}",
                    r#""10.1.0.0""#,
                    r#""10.1.0.0/""#,
                    r#""/24""#,
                    r#""10.1.0.0/33""#,
                    r#""10.1.0.0/+24""#,
                    r#""10.1.0.0/255.255.255.0""#,
                    r#""10.1.0.0/24/24""#,
                    r#""10.1.0/24""#,
                    r#""10.1.0.0/ 24""#,
                ],
            ),
            // A runtime has made an integer of a float of this value.
            Self::Integer => (
                &["null", "0", "7", "-1", "7.0", "7e0", "-0.0"],
                &[r#""7""#, "7.5", "true", "[]", "{}", "1e40"],
            ),
            Self::List => (&["null", "[]"], &["{}", r#""x""#, "5", "true"]),
            Self::Section => (&["null", "{}"], &["[]", r#""x""#, "5", "true"]),
        }
    }
}

/// A value at a path. A step in brackets is a list of one, with the key that each of its kind must have: written so
/// that any other spelling of it comes behind it, and counts.
fn at(path: &[&str], spelling: fn(&str) -> String, value: Value) -> Value {
    let Some((step, rest)) = path.split_first() else {
        return value;
    };
    let mut inner = at(rest, spelling, value);
    let needed = match *step {
        "[]" => return json!([inner]),
        "[route]" => ("DST", "10.9.0.0/16"),
        "[range]" => ("SUBNET", "10.1.0.0/24"),
        step => return json!({ spelling(step): inner }),
    };
    let fields = inner.as_object_mut().unwrap();
    fields.entry(needed.0).or_insert(json!(needed.1));
    json!([inner])
}

#[test]
fn each_field_takes_the_forms_that_go_takes_for_it_and_no_others() {
    use Kind::{Address, Integer, List, Network, Section, Text};
    let fields: &[(&[&str], Kind)] = &[
        (&["cniVersion"], Text),
        (&["name"], Text),
        (&["ipam"], Section),
        (&["ipam", "dataDir"], Text),
        (&["ipam", "resolvConf"], Text),
        (&["ipam", "subnet"], Network),
        (&["ipam", "rangeStart"], Address),
        (&["ipam", "rangeEnd"], Address),
        (&["ipam", "gateway"], Address),
        (&["ipam", "ranges"], List),
        (&["ipam", "ranges", "[]", "[range]", "subnet"], Network),
        (&["ipam", "ranges", "[]", "[range]", "rangeStart"], Address),
        (&["ipam", "ranges", "[]", "[range]", "rangeEnd"], Address),
        (&["ipam", "ranges", "[]", "[range]", "gateway"], Address),
        (&["ipam", "routes"], List),
        (&["ipam", "routes", "[route]", "dst"], Network),
        (&["ipam", "routes", "[route]", "gw"], Address),
        (&["ipam", "routes", "[route]", "mtu"], Integer),
        (&["ipam", "routes", "[route]", "advmss"], Integer),
        (&["ipam", "routes", "[route]", "priority"], Integer),
        (&["ipam", "routes", "[route]", "table"], Integer),
        (&["ipam", "routes", "[route]", "scope"], Integer),
        (&["runtimeConfig"], Section),
        (&["runtimeConfig", "ips"], List),
        (&["runtimeConfig", "mac"], Text),
        (&["runtimeConfig", "ipRanges"], List),
        (
            &["runtimeConfig", "ipRanges", "[]", "[range]", "subnet"],
            Network,
        ),
        (&["args"], Section),
        (&["args", "cni"], Section),
        (&["args", "cni", "ips"], List),
        (&["args", "cni", "mac"], Text),
        (&["prevResult"], Section),
        (&["prevResult", "interfaces"], List),
        (&["prevResult", "interfaces", "[]"], Section),
        (&["prevResult", "interfaces", "[]", "name"], Text),
        (&["prevResult", "interfaces", "[]", "mac"], Text),
        (&["prevResult", "interfaces", "[]", "sandbox"], Text),
        (&["prevResult", "ips"], List),
        (&["prevResult", "ips", "[]"], Section),
        (&["prevResult", "ips", "[]", "interface"], Integer),
        (&["prevResult", "ips", "[]", "address"], Network),
        (&["cni.dev/valid-attachments"], List),
        (&["cni.dev/valid-attachments", "[]"], Section),
        (&["cni.dev/valid-attachments", "[]", "containerID"], Text),
        (&["cni.dev/valid-attachments", "[]", "ifname"], Text),
    ];
    let is_read = |config: &Value| {
        let config = Config::parse(config.to_string().as_bytes());
        config.is_ok_and(|config| match config.claimed("eth0") {
            Ok(_) | Err(CniError::NoPreviousResult) => true,
            Err(_) => false,
        })
    };
    let spellings: [fn(&str) -> String; 3] = [
        str::to_owned,
        str::to_uppercase,
        // Unicode folds them into s and k.
        |key| key.replace('s', "\u{17f}").replace('k', "\u{212a}"),
    ];
    for (path, kind) in fields {
        for spelling in spellings {
            let (taken, refused) = kind.forms();
            let taken = taken.iter().map(|form| (form, true));
            for (form, is_taken) in taken.chain(refused.iter().map(|form| (form, false))) {
                let config = at(path, spelling, serde_json::from_str(form).unwrap());
                assert_eq!(is_read(&config), is_taken, "{config}");
            }
        }
    }
}

#[test]
fn a_float_that_is_an_integer_is_one_and_an_address_may_be_missing() {
    let text = br#"{"ipam": {"routes": [{"dst": "0.0.0.0/0", "mtu": 1400.0, "priority": 1e2}], "ttlSeconds": 60.0},
        "prevResult": {"interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": [{"interface": 0.0, "address": "10.1.0.2/24"}, {"interface": 0}]}}"#;
    let config = Config::parse(text).unwrap();
    assert_eq!(config.ipam_store.ttl_seconds, 60);
    let claimed = config.claimed("eth0").unwrap();
    assert_eq!(claimed.addresses, ["10.1.0.2".parse::<IpAddr>().unwrap()]);
    let result = ipam_result(Version::NEWEST, &[], &config, "");
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "mtu": 1400, "priority": 100}])
    );
}

#[test]
fn of_two_arguments_of_one_name_the_last_one_counts() {
    let who = environment("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_NAMESPACE=c");
    assert_eq!(
        who.attachment("edge").unwrap().key.to_string(),
        "Pod c/b (eth0)"
    );
}

#[test]
fn a_network_has_a_name_that_may_be_a_part_of_a_path() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for name in ["../edge", "a/b", "", ".", "a b"] {
        let config = json!({
            "cniVersion": "1.1.0", "name": name, "type": "bridge",
            "ipam": {"dataDir": path("state"), "runDir": path("run"), "migrateFrom": path("networks"), "subnet": "10.1.0.0/24"},
        });
        let config = Config::parse(config.to_string().as_bytes()).unwrap();
        let environment = environment("");
        let request = Request::new(Plugin::Ipam, Version::NEWEST, &environment, &config);
        assert_eq!(request.err().map(|error| error.code()), Some(7), "{name}");
    }
}
