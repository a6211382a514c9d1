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
        (json!({"type": "whereabouts"}), "whereabouts"),
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
    assert!(refused(json!([])).contains("not a list of plugins"));
    assert!(
        refused(json!({"cniVersion": "1.0.0", "plugins": []})).contains("not a list of plugins")
    );
    let old = json!({"cniVersion": "0.2.0", "plugins": [{"type": "bridge"}]});
    assert!(refused(old).contains("\"0.2.0\""));
    let cilium = json!({"cniVersion": "0.3.1", "plugins": [{"type": "cilium-cni"}]});
    assert!(refused(cilium).contains("chainingMode"));
}

#[test]
fn a_main_plugin_that_relies_on_its_own_ipam_or_mac_is_left_alone() {
    let with = |version: &str, main: &str, ipam: Value| {
        json!({"name": "k8s-pod-network", "cniVersion": version, "plugins": [
            {"type": main, "ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": true}},
        ]})
    };
    let host_local = || json!({"type": "host-local", "subnet": "usePodCidr"});
    // Calico, Canal and Antrea as they come; Antrea's version is one that the plugins do not speak.
    for (config, remedy) in [
        (
            with("0.3.1", "calico", json!({"type": "calico-ipam"})),
            "ipAddrs",
        ),
        (with("0.3.1", "calico", host_local()), "ipAddrs"),
        (with("0.3.0", "antrea", host_local()), "AntreaIPAM"),
    ] {
        let refused = |config: &Value| install(config, &directories()).unwrap_err().to_string();
        let refusal = refused(&config);
        assert!(refusal.contains(remedy), "{refusal}");
        // A person cannot help it either.
        let mut by_hand = config;
        let plugins = by_hand["plugins"].as_array_mut().unwrap();
        plugins.push(json!({"type": "yurt-cni"}));
        assert_eq!(refused(&by_hand), refusal);
    }
}

#[test]
fn behind_an_unknown_main_plugin_only_a_person_puts_them() {
    let mut config = json!({"name": "edge", "cniVersion": "1.0.0", "plugins": [
        {"type": "sdn", "ipam": {"type": "host-local"}},
    ]});
    let refusal = install(&config, &directories()).unwrap_err();
    assert!(refusal.to_string().contains("\"sdn\""), "{refusal}");
    let before = config.clone();
    let plugins = config["plugins"].as_array_mut().unwrap();
    plugins.push(json!({"type": "yurt-cni", "ttlSeconds": 60}));
    let by_hand = install(&config, &directories()).unwrap();
    assert_eq!(by_hand.config, config);
    assert_eq!(by_hand.other_ipam.as_deref(), Some("host-local"));
    config["plugins"][0]["ipam"]["type"] = json!("yurt-ipam");
    let by_hand = install(&config, &directories()).unwrap();
    assert_eq!(by_hand.config, config);
    assert_eq!(by_hand.other_ipam, None);
    // The plugins go away, so nobody may name them.
    assert_eq!(uninstall(&config), Ok(before));
    // Nothing is in front of it.
    let alone = json!({"cniVersion": "1.0.0", "plugins": [{"type": "yurt-cni"}]});
    assert!(install(&alone, &directories()).is_err());
}

#[test]
fn keys_are_read_in_any_letter_case_and_nothing_as_nothing() {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}]]);
    let config = json!({"cniVersion": "1.0.0", "name": "edge", "plugins": [
        {"Type": "bridge", "IPAM": {"TYPE": "host-local", "Ranges": ranges, "DataDir": "", "routes": null}},
    ]});
    let after = installed(config);
    assert_eq!(
        after["plugins"][0]["IPAM"],
        json!({
            "TYPE": "yurt-ipam", "Ranges": ranges, "routes": null,
            "dataDir": "/var/lib/yurt-net", "runDir": "/run/yurt-net",
        })
    );
    assert_eq!(installed(after.clone()), after);
    let before = uninstall(&after).unwrap();
    assert_eq!(
        before["plugins"],
        json!([{"Type": "bridge", "IPAM": {"TYPE": "host-local", "Ranges": ranges, "routes": null}}])
    );
    let mut flannel = flannel();
    flannel["plugins"][0]["ipam"] = json!(null);
    assert_eq!(
        installed(flannel)["plugins"][0]["ipam"]["type"],
        "yurt-ipam"
    );
    // A bridge without addresses has none to keep.
    for ipam in [json!(null), json!({}), json!({"type": ""})] {
        let without = install(&bridge(ipam), &directories()).unwrap();
        assert_eq!(without.other_ipam.as_deref(), Some("none"));
    }
}

#[test]
fn the_version_is_the_newest_that_runtimes_and_plugins_know() {
    let with = |version: Value, versions: Value| {
        let mut config = bridge(json!({"type": "host-local"}));
        config["cniVersion"] = version;
        config["cniVersions"] = versions;
        install(&config, &directories())
            .map(drop)
            .map_err(|refusal| refusal.to_string())
    };
    with(json!(null), json!(["0.4.0", "1.0.0", "1.2.0"])).unwrap();
    with(json!("1.2.0"), json!(["1.1.0", "7.0.0"])).unwrap();
    with(json!("1.0.0"), json!(null)).unwrap();
    assert!(
        with(json!("1.2.0"), json!(null))
            .unwrap_err()
            .contains("\"1.2.0\"")
    );
    assert!(
        with(json!(null), json!(["0.2.0"]))
            .unwrap_err()
            .contains("0.2.0")
    );
    assert!(with(json!(null), json!(null)).is_err());
}

#[test]
fn plugins_are_tried_as_a_runtime_calls_them() {
    let ranges = json!([[{"subnet": "10.1.0.0/24"}]]);
    let calls = |config: Value| {
        let calls = calls(&installed(config));
        let plugins: Vec<_> = calls.iter().map(|call| call.plugin).collect();
        assert_eq!(plugins, ["yurt-ipam", "yurt-cni"]);
        calls[0].config.clone()
    };
    let config = calls(bridge(json!({"type": "host-local", "ranges": ranges})));
    assert_eq!(
        (&config["name"], &config["cniVersion"]),
        (&json!("edge"), &json!("1.1.0"))
    );
    assert_eq!(
        (&config["ipam"]["ranges"], &config["runtimeConfig"]),
        (&ranges, &json!(null))
    );
    // flannel's plugin knows the ranges, and the runtime with this capability.
    assert!(!calls(flannel())["runtimeConfig"]["ipRanges"].is_null());
    let mut brought = bridge(json!({"type": "host-local"}));
    brought["plugins"][0]["capabilities"] = json!({"ipRanges": true});
    assert!(!calls(brought)["runtimeConfig"]["ipRanges"].is_null());
}
