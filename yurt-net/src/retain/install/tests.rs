use super::*;

fn directories() -> Directories {
    Directories {
        data_dir: "/var/lib/yurt-net".to_owned(),
        run_dir: "/run/yurt-net".to_owned(),
    }
}

fn installed(config: Value) -> Value {
    install(&config, &directories()).unwrap().config
}

/// As flannel's ConfigMap has it.
fn flannel() -> Value {
    json!({
        "name": "cbr0", "cniVersion": "0.3.1",
        "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn bridge(ipam: Value) -> Value {
    json!({
        "name": "edge", "cniVersion": "1.0.0", "disableCheck": true,
        "plugins": [{"type": "bridge", "bridge": "cni0", "ipam": ipam}],
    })
}

#[test]
fn flannels_ipam_stands_beside_its_delegate_which_must_have_none() {
    let expected = json!({
        "name": "cbr0", "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true},
                "ipam": {"type": "yurt-ipam", "dataDir": "/var/lib/yurt-net", "runDir": "/run/yurt-net"},
            },
            {"type": "yurt-cni", "dataDir": "/var/lib/yurt-net", "runDir": "/run/yurt-net"},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    assert_eq!(installed(flannel()), expected);
}

#[test]
fn host_local_is_replaced_with_its_settings_and_comes_back_with_them() {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}]]);
    let before = bridge(
        json!({"type": "host-local", "ranges": ranges, "dataDir": "/run/ipam", "routes": [{"dst": "0.0.0.0/0"}]}),
    );
    let after = installed(before.clone());
    let ipam = &after["plugins"][0]["ipam"];
    assert_eq!(
        *ipam,
        json!({
            "type": "yurt-ipam", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/var/lib/yurt-net", "runDir": "/run/yurt-net", "migrateFrom": "/run/ipam",
        })
    );
    assert_eq!(after["disableCheck"], true);
    assert_eq!(uninstall(&after), Ok(before));
}

#[test]
fn twice_is_once_and_what_is_not_there_is_not_taken_away() {
    for config in [flannel(), bridge(json!({"type": "host-local"}))] {
        let once = installed(config.clone());
        assert_eq!(installed(once.clone()), once);
        assert_eq!(uninstall(&uninstall(&once).unwrap()), uninstall(&once));
    }
    // Flannel's own default, in words.
    let mut flannel_again = flannel();
    flannel_again["plugins"][0]["ipam"] = json!({"type": "host-local"});
    assert_eq!(uninstall(&installed(flannel())), Ok(flannel_again));
}

#[test]
fn another_ipam_stays_and_is_named() {
    for (ipam, kind) in [
        (json!({"type": "calico-ipam"}), "calico-ipam"),
        (json!({"type": "dhcp"}), "dhcp"),
    ] {
        let installed = install(&bridge(ipam.clone()), &directories()).unwrap();
        assert_eq!(installed.other_ipam.as_deref(), Some(kind));
        assert_eq!(installed.config["plugins"][0]["ipam"], ipam);
        assert_eq!(installed.config["plugins"][1]["type"], "yurt-cni");
    }
}

#[test]
fn what_cannot_be_chained_is_refused_with_a_reason() {
    let refused = |config: Value| install(&config, &directories()).unwrap_err().to_string();
    let single = json!({"cniVersion": "1.0.0", "name": "edge", "type": "bridge"});
    assert!(refused(single).contains("make it a list"));
    assert!(refused(json!([])).contains("no list of plugins"));
    assert!(refused(json!({"cniVersion": "1.0.0", "plugins": []})).contains("no list of plugins"));
    let old = json!({"cniVersion": "0.2.0", "plugins": [{"type": "bridge"}]});
    assert!(refused(old).contains("\"0.2.0\""));
    let cilium = json!({"cniVersion": "0.3.1", "plugins": [{"type": "cilium-cni"}]});
    assert!(refused(cilium).contains("chainingMode"));
}
