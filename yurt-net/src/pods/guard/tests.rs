use super::*;

const MAC: [u8; 6] = [0x0a, 0x58, 10, 244, 1, 10];

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(super) fn pod(name: &str, addresses: &[&str], host: Option<(u32, Option<u32>)>) -> GuardedPod {
    GuardedPod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        interface: "eth0".to_owned(),
        mac: Some(MAC),
        addresses: addresses.iter().map(|addr| ip(addr)).collect(),
        host: host.map(|(ifindex, other_end)| HostSide { ifindex, other_end }),
        extra: Extra::default(),
    }
}

pub(super) fn veth(ifindex: u32, other_end: u32) -> Link {
    Link {
        has_carrier: true,
        ifindex,
        name: format!("veth{ifindex}"),
        kind: "veth".to_owned(),
        other_end: Some(other_end),
        other_end_netns: Some(0),
        ..Link::default()
    }
}

fn compiled(pods: &[GuardedPod], links: &[Link], policy: &Policy) -> (GuardImage, Vec<String>) {
    let (image, complaints) = compile(pods, links, &Reserved::default(), policy);
    let reasons = complaints.into_iter();
    let reasons = reasons.map(|complaint| format!("{}: {}", complaint.pod, complaint.reason));
    (image, reasons.collect())
}

#[test]
fn a_pod_may_use_its_addresses_and_the_one_that_comes_from_its_link_layer_address() {
    let pod = pod("web", &["fd00::10", "10.244.1.10"], Some((7, Some(2))));
    let (image, complaints) = compiled(&[pod], &[veth(7, 2)], &Policy::default());
    assert_eq!(complaints, [""; 0]);
    let row = &image.rows[&7];
    let own = [
        "10.244.1.10/32",
        "fd00::10/128",
        "fe80::858:aff:fef4:10a/128",
    ];
    assert_eq!(row.own, own.map(net));
    assert_eq!(row.macs, [MAC]);
    let owner = Owner {
        ifindex: Some(7),
        mode: Mode::Audit,
    };
    let identities = [ip("10.244.1.10").into(), ip("fd00::10").into(), MAC.into()];
    assert_eq!(image.owners, identities.map(|it| (it, owner)).into());
    assert_eq!(image.attached, [7].into());
}

#[test]
fn a_pod_whose_link_layer_address_is_not_known_may_use_any_and_any_address_of_its_link() {
    let mut pod = pod("web", &["10.244.1.10"], Some((7, None)));
    pod.mac = None;
    let (image, _) = compiled(&[pod], &[veth(7, 2)], &Policy::default());
    assert_eq!(image.rows[&7].macs, [[0; 6]; 0]);
    assert_eq!(
        image.rows[&7].own,
        [net("10.244.1.10/32"), net("fe80::/64")]
    );
}

#[test]
fn the_addresses_of_a_pod_that_is_away_are_nobodys_to_use() {
    let away = pod("web", &["10.244.1.10"], None);
    let (image, _) = compiled(&[away], &[veth(7, 2)], &Policy::default());
    assert_eq!(image.owners[&ip("10.244.1.10").into()].ifindex, None);
    assert!(image.rows.is_empty());
    // And of one whose device is not there yet, or no more.
    let (image, complaints) = compiled(
        &[pod("web", &["10.244.1.10"], Some((9, None)))],
        &[veth(7, 2)],
        &Policy::default(),
    );
    assert_eq!(image.owners[&ip("10.244.1.10").into()].ifindex, None);
    assert_eq!((image.rows.len(), complaints), (0, vec![]));
}

#[test]
fn a_pod_that_comes_back_may_announce_itself_before_its_device_is_guarded() {
    let mut back = pod("web", &["10.244.1.10"], None);
    let mac = back.mac.unwrap();
    let (away, _) = compiled(&[back.clone()], &[veth(7, 2)], &Policy::default());
    assert!(!away.owners.contains_key(&mac.into()));
    back.host = pod("web", &[], Some((7, None))).host;
    let (here, _) = compiled(&[back], &[veth(7, 2)], &Policy::default());
    assert_eq!(here.owners[&mac.into()].ifindex, Some(7));
}

#[test]
fn a_device_that_was_given_the_index_of_another_is_not_that_pods() {
    let pod = pod("web", &["10.244.1.10"], Some((7, Some(2))));
    let (image, complaints) = compiled(&[pod], &[veth(7, 3)], &Policy::default());
    assert!(image.rows.is_empty());
    assert_eq!(image.owners[&ip("10.244.1.10").into()].ifindex, None);
    assert_eq!(
        complaints,
        ["default/web: device 7 (veth7) leads elsewhere now"]
    );
}

#[test]
fn a_namespace_is_enforced_or_the_whole_node() {
    let pods = |namespace: &str| {
        let mut pod = pod("web", &["10.244.1.10"], Some((7, None)));
        pod.namespace = namespace.to_owned();
        [pod]
    };
    let mut policy = Policy {
        enforced_namespaces: ["payments".to_owned()].into(),
        ..Policy::default()
    };
    let mode = |namespace, policy: &Policy| {
        let (image, _) = compiled(&pods(namespace), &[veth(7, 2)], policy);
        let owner = image.owners[&ip("10.244.1.10").into()];
        assert_eq!(owner.mode, image.rows[&7].mode);
        owner.mode
    };
    assert_eq!(mode("default", &policy), Mode::Audit);
    assert_eq!(mode("payments", &policy), Mode::Enforce);
    policy.mode = Mode::Enforce;
    assert_eq!(mode("default", &policy), Mode::Enforce);
}

#[test]
fn the_guard_is_on_devices_that_lead_to_pods_and_on_no_others() {
    let policy = Policy::default();
    let link = |name: &str, kind: &str, is_elsewhere: bool| Link {
        name: name.to_owned(),
        kind: kind.to_owned(),
        other_end_netns: is_elsewhere.then_some(0),
        ..veth(7, 2)
    };
    assert!(link("veth1", "veth", true).leads_to_pod(&policy.devices));
    assert!(!link("veth1", "veth", false).leads_to_pod(&policy.devices));
    assert!(!link("eth0", "", false).leads_to_pod(&policy.devices));
    assert!(!link("cni0", "bridge", false).leads_to_pod(&policy.devices));
    let uplink = Link {
        is_uplink: true,
        ..link("eth0", "veth", true)
    };
    assert!(!uplink.leads_to_pod(&policy.devices));
    let everything = Policy {
        devices: vec!["*".to_owned()],
        ..Policy::default()
    };
    assert!(link("tap0", "tun", false).leads_to_pod(&everything.devices));
    for name in ["lo", "raven0", "raven-wg0"] {
        assert!(!link(name, "vxlan", false).leads_to_pod(&everything.devices));
        assert!(!link(name, "veth", true).leads_to_pod(&policy.devices));
    }
}

#[test]
fn an_annotation_names_addresses_prefixes_and_link_layer_addresses() {
    let extra: Extra = "10.0.0.9, fd00:1::/64\n192.0.2.7/24 00:00:5e:00:01:33"
        .parse()
        .unwrap();
    assert_eq!(extra.macs, [[0, 0, 0x5e, 0, 1, 0x33]]);
    let mut pod = pod("vpn", &["10.244.1.10"], Some((7, None)));
    pod.extra = extra;
    let (image, complaints) = compiled(&[pod], &[veth(7, 2)], &Policy::default());
    assert_eq!(complaints, [""; 0]);
    let row = &image.rows[&7];
    assert_eq!(row.macs, [MAC, [0, 0, 0x5e, 0, 1, 0x33]]);
    let extra = ["10.0.0.9/32", "192.0.2.0/24", "fd00:1::/64"];
    assert_eq!(row.extra, extra.map(net));
    for word in [
        "10.0.0",
        "fd00::/129",
        "00:00:5e:00:01",
        "00:00:5e:00:01:33:44",
        "+0:00:5e:00:01:33",
        "web",
    ] {
        let error = word.parse::<Extra>().unwrap_err();
        assert_eq!(error, BadExtra::Word(word.to_owned()));
    }
    let words = |count: usize| vec!["10.0.0.9"; count].join(" ").parse::<Extra>();
    let most = 2 * MAX_PREFIXES + MAX_MACS;
    assert!(words(most).is_ok());
    assert_eq!(words(most + 1), Err(BadExtra::TooMany));
}

#[test]
fn an_annotation_that_asks_for_more_than_there_is_room_for_is_no_way_out_of_the_guard() {
    let policy = Policy {
        mode: Mode::Enforce,
        ..Policy::default()
    };
    let mut pod = pod("vpn", &["10.244.1.10"], Some((7, None)));
    pod.extra.prefixes = (0..20)
        .map(|host| net(&format!("10.9.{host}.0/24")))
        .collect();
    pod.extra.macs = (0..5).map(|host| [2, 0, 0, 0, 9, host]).collect();
    let (image, complaints) = compiled(&[pod], &[veth(7, 2)], &policy);
    assert_eq!(complaints.len(), 1);
    assert!(
        complaints[0].contains("15 extra addresses have no room"),
        "{complaints:?}"
    );
    let row = &image.rows[&7];
    assert_eq!(row.mode, Mode::Enforce);
    assert_eq!((row.own.len(), row.macs.len()), (2, MAX_MACS));
    assert_eq!(row.extra.len(), MAX_PREFIXES - 1);
}

#[test]
fn nothing_is_dropped_of_a_pod_whose_own_addresses_have_no_room() {
    let policy = Policy {
        mode: Mode::Enforce,
        ..Policy::default()
    };
    let own: Vec<String> = (0..9).map(|host| format!("10.244.1.{host}")).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let pod = pod("many", &own, Some((7, None)));
    let (image, complaints) = compiled(&[pod], &[veth(7, 2)], &policy);
    assert_eq!(complaints.len(), 1);
    assert_eq!(image.rows[&7].mode, Mode::Audit);
    assert_eq!(
        image.rows[&7].own.len(),
        MAX_PREFIXES + 1,
        "and that of its link"
    );
}

#[test]
fn an_address_of_two_is_his_who_is_here() {
    let here = pod("here", &["10.244.1.10"], Some((7, None)));
    let mut away = pod("away", &["10.244.1.10"], None);
    away.mac = None;
    for pods in [[here.clone(), away.clone()], [away, here]] {
        let (image, complaints) = compiled(&pods, &[veth(7, 2)], &Policy::default());
        assert_eq!(image.owners[&ip("10.244.1.10").into()].ifindex, Some(7));
        assert!(complaints.len() <= 1, "{complaints:?}");
    }
}

#[test]
fn the_nodes_addresses_are_no_pods() {
    let node = ["10.244.1.1", "127.0.0.1", "::1", "fe80::1", "fd00::1"]
        .iter()
        .map(|addr| ip(addr))
        .collect();
    let reserved = Reserved {
        node,
        ..Reserved::default()
    };
    let bridge = Link {
        mac: Some([2, 0, 0, 0, 0, 1]),
        ..Link::default()
    };
    let loopback = Link {
        mac: Some([0; 6]),
        ..Link::default()
    };
    let (image, _) = compile(&[], &[bridge, loopback], &reserved, &Policy::default());
    let owned: Vec<_> = image.owners.keys().copied().collect();
    let mac = Identity::Mac([2, 0, 0, 0, 0, 1]);
    assert_eq!(owned, [ip("10.244.1.1").into(), ip("fd00::1").into(), mac]);
}

#[test]
fn a_plan_writes_what_differs_and_nothing_twice() {
    let mut away = pod("away", &["10.244.1.11"], None);
    away.mac = None;
    let pods = [pod("web", &["10.244.1.10"], Some((7, None))), away];
    let (image, _) = compiled(&pods, &[veth(7, 2), veth(8, 2)], &Policy::default());
    let ops = plan(&GuardImage::default(), &image);
    let kinds: Vec<_> = ops.iter().map(std::mem::discriminant).collect();
    assert_eq!(ops.len(), 6, "{ops:?}");
    assert!(kinds.is_sorted_by_key(|kind| {
        ops.iter()
            .position(|op| std::mem::discriminant(op) == *kind)
    }));
    assert_eq!(plan(&image, &image), []);
    let gone = GuardImage {
        lost: [9].into(),
        ..image.clone()
    };
    assert_eq!(plan(&gone, &image), [GuardOp::Detach(9)]);
    let detached = GuardImage {
        attached: [8].into(),
        lost: [7].into(),
        ..image.clone()
    };
    assert_eq!(plan(&detached, &image), [GuardOp::Attach(7)]);
}

#[test]
fn an_address_of_the_node_is_no_pods_whoever_says_so() {
    let reserved = Reserved {
        node: [ip("10.244.1.1"), ip("fd00::1"), ip("fe80::1")].into(),
        ..Reserved::default()
    };
    let here = pod(
        "web",
        &["10.244.1.1", "fd00::1", "fe80::1", "fd00::10"],
        Some((7, None)),
    );
    let mut away = pod("db", &["10.244.1.1"], None);
    away.mac = None;
    let policy = Policy::default();
    let (image, complaints) = compile(&[here, away], &[veth(7, 2)], &reserved, &policy);
    // Those of a link are only there.
    let own = ["fd00::10/128", "fe80::1/128", "fe80::858:aff:fef4:10a/128"];
    let mut found = image.rows[&7].own.clone();
    found.sort();
    assert_eq!(found, own.map(net));
    for addr in ["10.244.1.1", "fd00::1"] {
        assert_eq!(image.owners[&ip(addr).into()].ifindex, None, "{addr}");
    }
    let pods: Vec<_> = complaints.iter().map(|c| c.pod.as_str()).collect();
    assert_eq!(pods, ["default/web", "default/web", "default/db"]);
}
