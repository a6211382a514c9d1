//! `yurt-cni` after main plugins with any IPAM.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use serde_json::{Value, json};
use yurt_net_tests::lab::Netns;

use yurt_net_tests::runtime::{Network, Node, addresses, ip, mac, pod};

fn link(netns: &Netns) -> Value {
    ip(netns, &["link", "show", "dev", "eth0"])[0].clone()
}

/// The Pod that has this address answers a datagram to a port that nobody listens on: with an error that only it can
/// send.
#[track_caller]
fn assert_answers(from: &Netns, address: &str) {
    let any = if address.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let ask = || {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        socket.connect((address, 9))?;
        socket.send(b"?")?;
        socket.recv(&mut [0; 8])
    };
    let answer = from.run(ask).expect("enter a namespace");
    let kind = answer.map_err(|error| error.kind());
    assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{address}");
}

#[test]
fn a_pod_has_the_mac_of_its_address_and_stays_reachable() {
    let node = Node::alone();
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    let result = network.add(&web.sandbox);
    assert_eq!(mac(&result), "0a:58:0a:01:00:02");
    assert_eq!(link(&web.netns)["address"], "0a:58:0a:01:00:02");
    assert_eq!(network.stderr, "");
    network.check(&web.sandbox).unwrap();
    for address in addresses(&result) {
        assert_answers(node.netns(), &address);
    }
    // Every link-local address is that of the MAC that is there now.
    let devices = ip(
        &web.netns,
        &["-6", "address", "show", "dev", "eth0", "scope", "link"],
    );
    let infos = devices[0]["addr_info"].as_array().unwrap().iter();
    // What is of another scope, `ip` lists as nothing.
    let locals: Vec<_> = infos.filter_map(|info| info["local"].as_str()).collect();
    assert_eq!(locals, ["fe80::858:aff:fe01:2"]);
    assert_eq!(node.entry("web-0")["mac"], "0a:58:0a:01:00:02");

    // Somebody changes it: CHECK tells.
    web.netns
        .ip("link set eth0 address 02:00:00:00:00:01\n")
        .unwrap();
    let error = network.check(&web.sandbox).unwrap_err();
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .to_lowercase()
            .contains("mac"),
        "{error}"
    );
}

#[test]
fn addresses_are_usable_when_the_add_is_answered_though_duplicates_are_looked_for() {
    let node = Node::alone();
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    let switch_on = || {
        ["all", "default"].iter().try_for_each(|which| {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/accept_dad"), "1")
        })
    };
    web.netns.run(switch_on).unwrap().unwrap();
    network.add(&web.sandbox);
    let devices = ip(&web.netns, &["-6", "address", "show", "dev", "eth0"]);
    let infos = devices[0]["addr_info"].as_array().unwrap();
    let locals: Vec<_> = infos.iter().map(|info| &info["local"]).collect();
    assert_eq!(locals, ["fd00:1::2", "fe80::858:aff:fe01:2"]);
    assert!(
        infos.iter().all(|info| info["tentative"].is_null()),
        "{infos:?}"
    );
}

#[test]
fn routes_of_both_families_survive_the_change_of_the_mac() {
    let node = Node::alone();
    let plugins = node.bridged(node.ipam());
    let (plain, changed) = (pod("web-0", "c1"), pod("web-0", "c2"));
    let routes = |netns: &Netns| {
        ["-4", "-6"].map(|family| {
            let routes = ip(netns, &[family, "route"]);
            let routes = routes.as_array().unwrap().iter();
            routes
                .map(|route| (route["dst"].to_string(), route["gateway"].to_string()))
                .collect::<Vec<_>>()
        })
    };
    let mut without = Network::new(&node, "1.0.0", plugins[..1].to_vec());
    without.add(&plain.sandbox);
    let expected = routes(&plain.netns);
    without.del(&plain.sandbox);
    Network::new(&node, "1.0.0", plugins).add(&changed.sandbox);
    assert_eq!(routes(&changed.netns), expected);
}

#[test]
fn neighbours_that_know_another_mac_learn_the_new_one_without_asking() {
    let node = Node::alone();
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    // The bridge is made with the first Pod, and forgets its neighbours when it has no Pod any more.
    let first = pod("first", "c0");
    network.add(&first.sandbox);
    node.netns()
        .ip(
            "neigh add 10.1.0.3 lladdr 02:00:00:00:00:99 dev cni0 nud stale\n\
         neigh add fd00:1::3 lladdr 02:00:00:00:00:99 dev cni0 nud stale\n",
        )
        .unwrap();
    let web = pod("web-0", "c1");
    let result = network.add(&web.sandbox);
    assert_eq!(addresses(&result), ["10.1.0.3", "fd00:1::3"]);
    let known = ip(node.netns(), &["neigh", "show", "dev", "cni0"]);
    for address in ["10.1.0.3", "fd00:1::3"] {
        let entry = known
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["dst"] == address)
            .unwrap_or_else(|| panic!("{address} in {known}"));
        assert_eq!(entry["lladdr"], mac(&result).as_str(), "{known}");
    }
}

#[test]
fn another_ipam_is_written_down_and_its_pods_keep_the_mac_with_the_address() {
    for main in ["bridge", "ptp"] {
        let node = Node::alone();
        let host_local = json!({
            "type": "host-local", "dataDir": node.path("networks"),
            "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00:2::/64"}]],
        });
        let mut plugins = node.bridged(host_local);
        plugins[0]["type"] = json!(main);
        let mut network = Network::new(&node, "1.0.0", plugins);
        let web = pod("web-0", "c1");
        let result = network.add(&web.sandbox);
        assert_eq!(mac(&result), "0a:58:0a:02:00:02", "{main}");
        assert_eq!(network.stderr, "");
        network.check(&web.sandbox).unwrap();
        let entry = node.entry("web-0");
        assert_eq!(
            (&entry["ipv4"], &entry["ipv6"]),
            (&json!(["10.2.0.2"]), &json!(["fd00:2::2"]))
        );
        assert_eq!(
            (&entry["assigner"], &entry["state"]),
            (&json!("other"), &json!("active"))
        );
        for address in addresses(&result) {
            assert_answers(node.netns(), &address);
        }
        network.del(&web.sandbox);
        assert_eq!(node.entry("web-0")["state"], "retained", "{main}");
    }
}

#[test]
fn a_requested_mac_is_left_alone_and_the_first_one_is_kept_where_that_is_wanted() {
    let node = Node::alone();
    let mut plugins = node.bridged(node.ipam());
    plugins[1]["mac"] = json!("first");
    let mut network = Network::new(&node, "1.0.0", plugins.clone());
    let first = pod("web-0", "c1");
    let given = mac(&network.add(&first.sandbox));
    network.del(&first.sandbox);
    assert_eq!(mac(&network.add(&pod("web-0", "c2").sandbox)), given);

    let asked = "02:11:22:33:44:55";
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let mut sandbox = pod("web-1", "c3");
    sandbox.sandbox.args += &format!(";MAC={asked}");
    assert_eq!(mac(&network.add(&sandbox.sandbox)), asked);
    assert_eq!(link(&sandbox.netns)["address"], asked);
}

#[test]
fn the_result_is_passed_on_for_plugins_that_come_after() {
    let node = Node::alone();
    let mut plugins = node.bridged(node.ipam());
    plugins.push(json!({
        "type": "portmap", "snat": true,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    }));
    let mut network = Network::new(&node, "1.0.0", plugins);
    let web = pod("web-0", "c1");
    let result = network.add(&web.sandbox);
    assert_eq!(
        result["interfaces"].as_array().unwrap().len(),
        3,
        "{result}"
    );
    assert_eq!(result["routes"].as_array().unwrap().len(), 2, "{result}");
    network.del(&web.sandbox);
}

#[test]
fn an_interface_with_the_address_of_a_pod_that_runs_is_left_as_it_is() {
    let node = Node::alone();
    let host_local = json!({
        "type": "host-local", "dataDir": node.path("networks"), "ranges": [[{"subnet": "10.2.0.0/24"}]],
    });
    let mut network = Network::new(&node, "1.0.0", node.bridged(host_local));
    network.add(&pod("web-0", "c1").sandbox);
    // host-local forgets.
    std::fs::remove_dir_all(node.path("networks")).unwrap();
    let second = pod("web-1", "c2");
    let error = network.try_add(&second.sandbox).unwrap_err();
    assert_eq!(error["code"], 101, "{error}");
    let taken = "0a:58:0a:02:00:02";
    assert_eq!(node.entry("web-0")["mac"], taken);
    assert_ne!(link(&second.netns)["address"], taken);
}
