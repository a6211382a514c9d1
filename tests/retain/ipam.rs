//! `yurt-ipam` behind a real main plugin.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use yurt_net_tests::runtime::{Network, Node, Sandbox, addresses, ip, pod};

#[test]
fn a_pod_made_again_has_the_addresses_that_it_had_in_every_version() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let node = Node::alone();
        let mut network = Network::new(&node, version, node.bridged(node.ipam()));
        let web = pod("web-0", "c1");
        let result = network.add(&web.sandbox);
        assert_eq!(result["cniVersion"], version);
        assert_eq!(addresses(&result), ["10.1.0.2", "fd00:1::2"], "{version}");
        let mut devices = ip(&web.netns, &["address", "show", "dev", "eth0"]);
        let device = devices[0]["addr_info"].take();
        for address in addresses(&result) {
            let infos = device.as_array().unwrap();
            assert!(
                infos.iter().any(|info| info["local"] == address.as_str()),
                "{device}"
            );
        }
        network.del(&web.sandbox);
        assert_eq!(node.entry("web-0")["state"], "retained");
        // Others come in between, and take others.
        for index in 0..3 {
            let other = pod(&format!("job-{index}"), &format!("j{index}"));
            assert!(!addresses(&network.add(&other.sandbox)).contains(&"10.1.0.2".to_owned()));
        }
        let again = pod("web-0", "c2");
        assert_eq!(
            addresses(&network.add(&again.sandbox)),
            ["10.1.0.2", "fd00:1::2"]
        );
        let entry = node.entry("web-0");
        assert_eq!(
            (&entry["state"], &entry["sandbox"]),
            (&json!("active"), &json!("c2"))
        );
        assert_eq!(entry["uid"], "uid-web-0");
    }
}

/// `yurt-ipam` alone: what a main plugin would call.
fn alone<'a>(node: &'a Node, ipam: Value) -> Network<'a> {
    Network::new(node, "1.1.0", vec![ipam])
}

#[test]
fn the_newest_version_is_spoken_whole() {
    let node = Node::alone();
    let mut network = alone(&node, node.ipam());
    let web = pod("web-0", "c1").sandbox;
    let result = network.add(&web);
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "ips": [
                {"address": "10.1.0.2/24", "gateway": "10.1.0.1"},
                {"address": "fd00:1::2/64", "gateway": "fd00:1::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dns": {},
        })
    );
    network.check(&web).unwrap();
    let mut config = node.ipam();
    config["cniVersion"] = json!("1.1.0");
    config["name"] = json!("edge");
    let status = node.call("STATUS", &web, &config);
    assert!(status.is_ok && status.json.is_null(), "{status:?}");
    let versions = node.call("VERSION", &web, &config);
    assert_eq!(
        versions.json["supportedVersions"],
        json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );

    // The runtime says that nothing is left: what was active is kept, and not free.
    config["cni.dev/valid-attachments"] = json!([]);
    assert!(node.call("GC", &web, &config).is_ok);
    assert_eq!(node.entry("web-0")["state"], "retained");
    let error = network.check(&web).unwrap_err();
    assert_eq!(error["code"], 102, "{error}");
    assert_eq!(
        addresses(&network.add(&pod("web-1", "c2").sandbox)),
        ["10.1.0.3", "fd00:1::3"]
    );
    // One that is still there stays.
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    assert!(node.call("GC", &web, &config).is_ok);
    assert_eq!(node.entry("web-1")["state"], "active");
}

#[test]
fn a_del_of_the_old_sandbox_after_the_add_of_the_new_one_changes_nothing() {
    let node = Node::alone();
    let mut network = alone(&node, node.ipam());
    let (old, new) = (pod("web-0", "c1").sandbox, pod("web-0", "c2").sandbox);
    let first = network.add(&old);
    assert_eq!(addresses(&network.add(&new)), addresses(&first));
    network.del(&old);
    assert_eq!(node.entry("web-0")["state"], "active");
    network.del(&new);
    network.del(&new);
    network.del(&pod("stranger", "c9").sandbox);
    assert_eq!(node.entry("web-0")["state"], "retained");
}

/// A runtime that gives an ADD up, by the plugin's own processes or by its own clock, calls DEL while it is at work.
/// Whoever wins, no interface is left with an address that the ledger would give to another.
#[test]
fn a_del_in_the_middle_of_an_add_leaves_no_pod_with_an_address_that_is_free() {
    let node = Node::alone();
    let bridged = node.bridged(node.ipam());
    let mut outcomes = BTreeSet::new();
    for (round, pause) in (0..80).step_by(2).enumerate() {
        for is_pod in [true, false] {
            let name = format!("web-{round}-{is_pod}");
            let mut made = pod(&name, &format!("c-{name}"));
            if !is_pod {
                made.sandbox.args = String::new();
            }
            let mut bridge = bridged[0].clone();
            bridge["cniVersion"] = json!("1.0.0");
            bridge["name"] = json!("edge");
            let mut add = node.start("ADD", &made.sandbox, &bridge);
            drop(add.stdin.take());
            std::thread::sleep(std::time::Duration::from_millis(pause));
            let del = node.call("DEL", &made.sandbox, &bridge);
            let added = add.wait_with_output().unwrap();
            outcomes.insert((added.status.success(), del.is_ok));
            if !del.is_ok {
                assert_eq!(del.json["code"], 11, "to be tried again: {}", del.json);
            }
            let entry = match is_pod {
                true => find(&node, &name),
                false => find(&node, &made.sandbox.container),
            };
            let links = ip(&made.netns, &["address", "show"]);
            let links = links.as_array().unwrap();
            let eth0 = links.iter().find(|link| link["ifname"] == "eth0");
            let infos = eth0.map(|link| link["addr_info"].as_array().unwrap().clone());
            for info in infos
                .iter()
                .flatten()
                .filter(|info| info["scope"] == "global")
            {
                let state = entry.as_ref().map(|entry| entry["state"].clone());
                assert_eq!(state, Some(json!("active")), "{pause} ms: {info} {entry:?}");
            }
            // The runtime comes again.
            let del = node.call_until_done("DEL", &made.sandbox, &bridge);
            assert!(del.is_ok, "{}", del.json);
            let links = ip(&made.netns, &["link", "show"]);
            let is_eth0 = |link: &Value| link["ifname"] == "eth0";
            assert!(!links.as_array().unwrap().iter().any(is_eth0), "{links}");
        }
    }
    assert!(outcomes.contains(&(true, true)), "{outcomes:?}");
}

fn find(node: &Node, name: &str) -> Option<Value> {
    let ledger = node.ledger();
    let mut entries = ledger["entries"]
        .as_array()
        .expect("a ledger has entries")
        .iter();
    entries.find(|entry| entry["name"] == name).cloned()
}

#[test]
fn without_a_name_an_address_lives_as_long_as_its_container() {
    let node = Node::alone();
    let mut network = alone(&node, node.ipam());
    let container = Sandbox {
        args: String::new(),
        ..pod("x", "c1").sandbox
    };
    assert_eq!(
        addresses(&network.add(&container)),
        ["10.1.0.2", "fd00:1::2"]
    );
    assert_eq!(node.entry("c1")["state"], "active");
    network.del(&container);
    // For what of its ADD may come behind its DEL, and for ten minutes.
    assert_eq!(node.entry("c1")["state"], "released");
    // In turn, as host-local does.
    let next = Sandbox {
        container: "c2".to_owned(),
        ..container
    };
    assert_eq!(addresses(&network.add(&next)), ["10.1.0.3", "fd00:1::3"]);
}

#[test]
fn a_retained_address_is_given_away_when_nothing_else_is_free_and_the_oldest_first() {
    let node = Node::alone();
    let mut ipam = node.ipam();
    // .2, .3 and .4
    ipam["ranges"] = json!([[{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.4"}]]);
    let mut network = alone(&node, ipam);
    let pods: Vec<Sandbox> = (0..3)
        .map(|index| pod(&format!("web-{index}"), &format!("c{index}")).sandbox)
        .collect();
    for sandbox in &pods {
        network.add(sandbox);
    }
    let error = network.try_add(&pod("late", "c8").sandbox).unwrap_err();
    assert_eq!(error["code"], 11, "{error}");
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .contains("no address is free in 10.1.0.1-10.1.0.4: the ledger has 3 in use"),
        "{error}"
    );
    network.del(&pods[1]);
    network.del(&pods[0]);
    let late = network.add(&pod("late", "c9").sandbox);
    assert_eq!(addresses(&late), ["10.1.0.3"]);
    // The other one is still kept for its name.
    assert_eq!(node.entry("web-0")["state"], "retained");
    assert_eq!(
        addresses(&network.add(&pod("web-0", "d0").sandbox)),
        ["10.1.0.2"]
    );
}

#[test]
fn a_range_that_has_moved_gives_new_addresses_and_a_requested_one_is_given() {
    let node = Node::alone();
    let web = pod("web-0", "c1").sandbox;
    alone(&node, node.ipam()).add(&web);
    let mut moved = node.ipam();
    moved["ranges"][0] =
        json!([{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.100", "gateway": "10.9.0.254"}]);
    let result = alone(&node, moved.clone()).add(&pod("web-0", "c2").sandbox);
    assert_eq!(addresses(&result), ["10.9.0.100", "fd00:1::2"]);
    assert_eq!(result["ips"][0]["gateway"], "10.9.0.254");

    let mut sandbox = pod("web-1", "c3").sandbox;
    sandbox.args += ";IP=10.9.0.200";
    assert_eq!(
        addresses(&alone(&node, moved.clone()).add(&sandbox))[0],
        "10.9.0.200"
    );
    let mut other = pod("web-2", "c4").sandbox;
    other.args += ";IP=10.9.0.200";
    let error = alone(&node, moved.clone()).try_add(&other).unwrap_err();
    assert_eq!(
        (&error["code"], error["msg"].as_str().unwrap()),
        (
            &json!(101),
            "address 10.9.0.200 belongs to Pod shop/web-1 (eth0), which is running"
        )
    );
    moved["runtimeConfig"] = json!({"ips": ["10.9.0.201/24"]});
    moved["args"] = json!({"cni": {"ips": ["fd00:1::77"]}});
    other.args = other.args.replace(";IP=10.9.0.200", "");
    assert_eq!(
        addresses(&alone(&node, moved).add(&other)),
        ["10.9.0.201", "fd00:1::77"]
    );
}

#[test]
fn many_adds_at_once_give_each_pod_its_own_address() {
    let node = Node::alone();
    let mut config = node.ipam();
    config["cniVersion"] = json!("1.0.0");
    config["name"] = json!("edge");
    let sandboxes: Vec<_> = (0..40)
        .map(|index| pod(&format!("web-{index}"), &format!("c{index}")))
        .collect();
    let children: Vec<_> = sandboxes
        .iter()
        .map(|pod| {
            let mut child = node.start("ADD", &pod.sandbox, &config);
            drop(child.stdin.take());
            child
        })
        .collect();
    let mut given = BTreeSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        for address in addresses(&result) {
            assert!(given.insert(address), "{result}");
        }
    }
    assert_eq!(node.ledger()["entries"].as_array().unwrap().len(), 40);
}
