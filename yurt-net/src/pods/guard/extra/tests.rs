use std::sync::Arc;

use super::super::tests::{ip, net, pod, veth};
use super::super::{GuardImage, Policy, compile};
use super::*;
use crate::ledger::Ledger;
use crate::model::{LocalPod, NamespacedName, Service, Snapshot};
use crate::plan::{SELF_TEST_V4, SELF_TEST_V6};
use crate::policy::fixtures::World;
use crate::policy::protected::Protected;

/// What a keepalived asks for.
const BOTH: &str = "10.9.0.99 02:00:00:00:00:99";
const VRRP: [u8; 6] = [0, 0, 0x5e, 0, 1, 0x33];

/// A Pod that asks, and another that has something.
fn world(wishes: &str) -> (GuardedPod, GuardedPod) {
    let mut asker = pod("vpn", &["10.244.1.10", "fd00::10"], Some((7, None)));
    asker.extra = wishes.parse().unwrap();
    let mut victim = pod("web", &["10.244.1.11", "fd00::1:11"], Some((8, None)));
    victim.mac = Some([0x0a, 0x58, 10, 244, 1, 11]);
    (asker, victim)
}

fn judged(pods: &[GuardedPod], reserved: &Reserved, extra: &ExtraPolicy) -> (GuardImage, String) {
    let policy = Policy {
        extra: extra.clone(),
        ..Policy::default()
    };
    let mut bridge = veth(1, 9);
    (bridge.kind, bridge.mac) = ("bridge".to_owned(), Some([2, 0, 0, 0, 0, 1]));
    bridge.gateways = vec![ip("192.168.1.254")];
    bridge.neighbours = vec![
        (ip("192.168.1.254"), [2, 0, 0, 0, 0, 0xfe]),
        (ip("192.168.9.1"), [2, 0, 0, 0, 0, 0xa1]),
        (ip("10.9.0.99"), VRRP),
    ];
    let (image, complaints) = compile(pods, &[bridge, veth(7, 2), veth(8, 2)], reserved, &policy);
    let reasons = complaints.into_iter();
    let reasons = reasons.map(|complaint| format!("{}: {}", complaint.pod, complaint.reason));
    (image, reasons.collect::<Vec<_>>().join("\n"))
}

/// As the agent has it.
fn reserved_in(world: &World, snapshot: &Snapshot, pods: &[GuardedPod]) -> Reserved {
    let World { config, view, .. } = world;
    let protected = || {
        let protected = Protected::new(snapshot, config, view);
        let owned = protected.listed().map(|(at, whose)| (at, whose.owner()));
        owned.collect::<Vec<_>>()
    };
    let local = view.local_addresses.clone().unwrap_or_default();
    let node = (&*config.node, &local);
    Reserved::new(node, snapshot, protected, &Ledger::default(), pods)
}

fn reserved() -> Reserved {
    Reserved {
        node: [ip("192.168.1.7"), ip("fe80::1")].into(),
        hosts: [(ip("192.168.9.1"), "an apiserver".to_owned())].into(),
        networks: vec![(net("10.96.0.0/12"), "the Services".to_owned())],
        ..Reserved::default()
    }
}

#[test]
fn a_prefix_or_mac_that_holds_anything_of_anybody_is_refused_as_a_whole() {
    for (wish, whose) in [
        ("10.244.1.11", "Pod default/web"),
        ("10.244.1.0/24", "Pod default/web"),
        ("fd00::1:0/112", "Pod default/web"),
        ("fe80::858:aff:fef4:10b", "Pod default/web"),
        ("0a:58:0a:f4:01:0b", "Pod default/web"),
        ("192.168.1.0/28", "this node"),
        ("fe80::1", "this node"),
        ("02:00:00:00:00:01", "this node"),
        ("192.168.1.254", "the gateway of this node"),
        (
            "02:00:00:00:00:fe",
            "192.168.1.254, the gateway of this node",
        ),
        ("02:00:00:00:00:a1", "192.168.9.1, an apiserver"),
        ("192.168.9.0/30", "an apiserver"),
        ("10.96.0.10", "the Services"),
    ] {
        let (asker, victim) = world(&format!("{wish} 192.0.2.7"));
        for pods in [
            [asker.clone(), victim.clone()],
            [victim.clone(), asker.clone()],
        ] {
            let (image, told) = judged(&pods, &reserved(), &ExtraPolicy::default());
            assert_eq!(image.rows[&7].extra, [net("192.0.2.7/32")], "{wish}");
            assert_eq!(image.rows[&7].macs.len(), 1, "{wish}");
            assert!(
                told.starts_with("default/vpn: extra addresses are refused: "),
                "{told}"
            );
            assert!(told.ends_with(&format!("belongs to {whose}")), "{told}");
        }
    }
}

#[test]
fn what_is_kept_for_a_pod_that_is_away_is_nobodys_either() {
    let (asker, mut victim) = world("10.244.1.11 0a:58:0a:f4:01:0b");
    victim.host = None;
    let (image, told) = judged(&[asker, victim], &reserved(), &ExtraPolicy::default());
    assert_eq!(
        (image.rows[&7].extra.len(), image.rows[&7].macs.len()),
        (0, 1)
    );
    let both = ["10.244.1.11/32: ", "; 0a:58:0a:f4:01:0b: "];
    assert!(both.iter().all(|part| told.contains(part)), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn what_was_granted_is_taken_back_when_a_pod_starts_inside() {
    let (asker, victim) = world("10.244.1.0/24");
    let pods = [asker, victim];
    let (image, told) = judged(&pods[..1], &reserved(), &ExtraPolicy::default());
    assert_eq!(
        (image.rows[&7].extra.len(), &*told),
        (1, ""),
        "its own are inside"
    );
    let (image, told) = judged(&pods, &reserved(), &ExtraPolicy::default());
    assert_eq!(image.rows[&7].extra, []);
    assert!(
        told.contains("10.244.1.11 belongs to Pod default/web"),
        "{told}"
    );
}

#[test]
fn a_prefix_is_not_shorter_than_the_operator_allows() {
    for (wish, is_given) in [
        ("0.0.0.0/0", false),
        ("172.16.0.0/23", false),
        ("172.16.0.0/24", true),
        ("::/0", false),
        ("2001:db8::/63", false),
        ("2001:db8::/64", true),
    ] {
        let (asker, _) = world(wish);
        let (image, _) = judged(&[asker], &Reserved::default(), &ExtraPolicy::default());
        assert_eq!(image.rows[&7].extra.len(), usize::from(is_given), "{wish}");
    }
    let extra = ExtraPolicy {
        shortest: "/16,/48".parse().unwrap(),
        ..ExtraPolicy::default()
    };
    for (wish, is_given) in [("172.16.0.0/16", true), ("2001:db8::/47", false)] {
        let (asker, _) = world(wish);
        let (image, _) = judged(&[asker], &Reserved::default(), &extra);
        assert_eq!(image.rows[&7].extra.len(), usize::from(is_given), "{wish}");
    }
}

#[test]
fn what_no_host_has_on_a_network_is_given_to_none() {
    for wish in [
        "0.0.0.1",
        "127.0.0.1",
        "224.0.0.18",
        "255.255.255.255",
        "::1",
        "::ffff:10.0.0.1",
        "ff02::12",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:12",
        "00:00:00:00:00:00",
    ] {
        let (asker, _) = world(wish);
        let (image, told) = judged(&[asker], &Reserved::default(), &ExtraPolicy::default());
        assert_eq!(
            (image.rows[&7].extra.len(), image.rows[&7].macs.len()),
            (0, 1),
            "{wish}"
        );
        assert!(told.contains("refused"), "{told}");
    }
}

#[test]
fn the_operator_says_whose_pods_may_ask() {
    for (askers, is_given) in [
        ("all", true),
        ("none", false),
        ("vpn,default", true),
        ("vpn", false),
    ] {
        let (mut asker, _) = world("192.0.2.7");
        asker.extra.macs.push(VRRP);
        let extra = ExtraPolicy {
            askers: askers.parse().unwrap(),
            ..ExtraPolicy::default()
        };
        let (image, told) = judged(&[asker], &Reserved::default(), &extra);
        let row = &image.rows[&7];
        assert_eq!(row.extra.len(), usize::from(is_given), "{askers}");
        assert_eq!(row.macs.len(), 1 + usize::from(is_given), "{askers}");
        assert_eq!(told.contains("--guard-extra"), !is_given, "{told}");
    }
}

#[test]
fn what_the_flags_cannot_mean_is_refused() {
    for text in ["", "a,,b", ","] {
        assert!(text.parse::<Askers>().is_err(), "{text}");
    }
    for text in ["", "24", "/24", "/33,/64", "/24,/129", "x,y"] {
        assert!(text.parse::<ShortestPrefixes>().is_err(), "{text}");
    }
    let shortest: ShortestPrefixes = "24,64".parse().unwrap();
    assert_eq!(shortest, ShortestPrefixes::default());
    assert_eq!(shortest.to_string(), "/24,/64");
}

#[test]
fn nothing_that_no_service_may_take_is_a_pods_either_whatever_the_source_says() {
    let mut world = World::web(None);
    let protect = &mut world.config.protect;
    protect.servers = vec!["203.0.113.6:6443".parse().unwrap()];
    protect.given = vec!["198.51.100.9:443".parse().unwrap()];
    for snapshot in [&world.snapshot, &Snapshot::default()] {
        for (wish, whose) in [
            ("203.0.113.6", "an apiserver"),
            ("203.0.113.0/24", "an apiserver"),
            ("198.51.100.9", "the operator (--protect)"),
            ("169.254.2.1", "YurtHub"),
            ("fd00::2:1", "YurtHub"),
            (
                &SELF_TEST_V4.ip().to_string(),
                "the address of the self-test",
            ),
            (
                &SELF_TEST_V6.ip().to_string(),
                "the address of the self-test",
            ),
        ] {
            let (asker, victim) = self::world(wish);
            let pods = [asker, victim];
            let reserved = reserved_in(&world, snapshot, &pods);
            let (image, told) = judged(&pods, &reserved, &ExtraPolicy::default());
            assert_eq!(image.rows[&7].extra, [], "{wish}: {told}");
            let is_refused = told.contains("refused");
            assert!(is_refused && told.contains(whose), "{wish}: {told}");
        }
    }
}

#[test]
fn what_services_lead_to_on_any_node_is_a_pods_and_no_other_ones() {
    let world = World::web(None);
    let slice = world.snapshot.slices.values().next().unwrap();
    let endpoint = slice.endpoints.iter().find(|one| one.node_name().is_some());
    let endpoint = endpoint.unwrap().address;
    let node = world.snapshot.nodes.values();
    let mut node = node.filter(|node| *node.name != *world.config.node);
    let cidr = node.find_map(|node| node.pod_cidrs.first()).copied();
    for (wish, whose) in [
        (endpoint.to_string(), "an endpoint of Service"),
        (format!("{endpoint}/24"), "belongs to"),
    ]
    .into_iter()
    .chain(cidr.map(|cidr| (cidr.network().to_string(), "the Pods of Node")))
    {
        let (mut asker, victim) = self::world(&wish);
        asker.namespace = "vpn".to_owned();
        let pods = [asker, victim];
        let reserved = reserved_in(&world, &world.snapshot, &pods);
        let (image, told) = judged(&pods, &reserved, &ExtraPolicy::default());
        assert_eq!(image.rows[&7].extra, [], "{wish}: {told}");
        assert!(told.contains(whose), "{wish}: {told}");
    }
    // Who is the endpoint may have what surrounds it.
    let (mut asker, victim) = self::world(&format!("{endpoint}/30"));
    asker.addresses.push(endpoint);
    let pods = [asker, victim];
    let reserved = reserved_in(&world, &world.snapshot, &pods);
    let (image, told) = judged(&pods, &reserved, &ExtraPolicy::default());
    assert_eq!(image.rows[&7].extra.len(), 1, "{told}");
}

/// A Service of some namespace, and an endpoint of it.
fn add(
    world: &mut World,
    (namespace, name): (&str, &str),
    edit: impl FnOnce(&mut Service),
    endpoints: &[(&str, Option<&str>)],
) {
    let mut service = None;
    world.service(name, |made| service = Some(made.clone()));
    world.slice(name, name, endpoints);
    let key = NamespacedName::new("default", name);
    world.snapshot.services.remove(&key);
    let mut slice = world.snapshot.slices.remove(&key).unwrap();
    let mut service = service.unwrap();
    let key = NamespacedName::new(namespace, name);
    service.name = key.clone();
    service.cluster_ips = Box::default();
    edit(&mut service);
    Arc::make_mut(&mut slice).name = key.clone();
    world.snapshot.services.insert(key.clone(), service.into());
    world.snapshot.slices.insert(key, slice);
}

/// Services of `shop` and of the cluster with all that they can say of addresses.
fn claimed() -> World {
    let mut world = World::new();
    let frontends = |service: &mut Service| {
        service.load_balancer_ips = [ip("203.0.113.10")].into();
        service.external_ips = [ip("203.0.113.20")].into();
    };
    let endpoints = [("198.51.100.50", None), ("198.51.100.51", Some("a1"))];
    add(&mut world, ("shop", "web"), frontends, &endpoints);
    let elsewhere = [("198.51.100.52", Some("b1"))];
    add(&mut world, ("shop", "away"), |_| (), &elsewhere);
    let ingress = |service: &mut Service| service.load_balancer_ips = [ip("203.0.113.30")].into();
    let dns = [("198.51.100.53", None)];
    add(&mut world, ("kube-system", "dns"), ingress, &dns);
    world
}

/// Whether a Pod of this namespace is given the address, and what is told. `has`: it was given it before.
fn asks(world: &World, namespace: &str, wish: &str, has: bool, askers: &str) -> (bool, String) {
    let (mut asker, victim) = self::world(wish);
    asker.namespace = namespace.to_owned();
    let pods = [asker, victim];
    let extra = ExtraPolicy {
        askers: askers.parse().unwrap(),
        ..ExtraPolicy::default()
    };
    let mut granted = BTreeMap::new();
    if has {
        let (image, told) = judged(&pods, &Reserved::default(), &ExtraPolicy::default());
        assert_eq!(told, "");
        granted = Reserved::default().granted_now(&image, &pods, &world.snapshot);
    }
    let reserved = Reserved {
        granted,
        ..reserved_in(world, &world.snapshot, &pods)
    };
    let (image, told) = judged(&pods, &reserved, &extra);
    (!image.rows[&7].extra.is_empty(), told)
}

/// For each: who says it, and whether it is given to a Pod of its namespace, to one of another that had it before, and
/// to one of a namespace that the operator names.
#[test]
fn what_services_and_slices_say_of_an_address_binds_as_far_as_nobody_else_may_write_it() {
    let mut world = claimed();
    world.service("pooled", |service| service.cluster_ips = Box::default());
    world.pool_service("pooled", "hangzhou", &["203.0.113.40"]);
    for (wish, owner, whose, to_own, to_first, to_named) in [
        (
            "203.0.113.10",
            "shop",
            "the load balancer of Service shop/web",
            true,
            false,
            true,
        ),
        ("203.0.113.20", "shop", "Service shop/web", true, true, true),
        (
            "198.51.100.50",
            "shop",
            "an endpoint of Service shop/web",
            true,
            true,
            true,
        ),
        (
            "198.51.100.51",
            "shop",
            "an endpoint of Service shop/web",
            true,
            true,
            true,
        ),
        (
            "198.51.100.52",
            "shop",
            "an endpoint of Service shop/away on Node b1",
            false,
            true,
            true,
        ),
        (
            "203.0.113.30",
            "kube-system",
            "the load balancer of Service kube-system/dns",
            true,
            false,
            true,
        ),
        (
            "198.51.100.53",
            "kube-system",
            "an endpoint of Service kube-system/dns",
            true,
            false,
            false,
        ),
        (
            "203.0.113.40",
            "default",
            "the load balancer of Service default/pooled",
            true,
            false,
            true,
        ),
    ] {
        let (is_given, told) = asks(&world, "vpn", wish, false, "all");
        assert!(!is_given, "{wish}");
        assert!(
            told.contains(&format!("{wish} belongs to {whose}")),
            "{told}"
        );
        let (is_given, told) = asks(&world, "vpn", &format!("{wish}/28"), false, "all");
        assert!(!is_given && told.contains("belongs to"), "{wish}: {told}");
        for (namespace, has, askers, expected) in [
            (owner, false, "all", to_own),
            ("vpn", true, "all", to_first),
            ("vpn", false, "vpn", to_named),
        ] {
            let (is_given, told) = asks(&world, namespace, wish, has, askers);
            assert_eq!(
                is_given, expected,
                "{wish} to {namespace}, {askers}: {told}"
            );
        }
    }
}

#[test]
fn no_tenant_takes_by_a_slice_or_a_service_what_a_pod_was_granted() {
    let mut world = World::new();
    let vip = "10.9.0.99";
    let external = |service: &mut Service| service.external_ips = [ip(vip)].into();
    add(
        &mut world,
        ("evil", "x"),
        external,
        &[(vip, Some("nowhere"))],
    );
    assert!(asks(&world, "vpn", vip, true, "all").0);
    // Who asks later is told by whose word not, the tenant himself too.
    let (is_given, told) = asks(&world, "vpn", vip, false, "all");
    assert!(!is_given && told.contains("Service evil/x"), "{told}");
    assert!(!asks(&world, "evil", vip, false, "all").0);
}

/// The address of a load balancer may be asked for by the Pods behind it (direct server return), whatever a tenant
/// writes.
#[test]
fn a_tenant_who_writes_an_address_of_a_load_balancer_neither_gets_nor_withholds_it() {
    let mut world = claimed();
    let vip = "203.0.113.10";
    let external = |service: &mut Service| service.external_ips = [ip(vip)].into();
    add(&mut world, ("evil", "x"), external, &[(vip, None)]);
    assert!(asks(&world, "shop", vip, false, "all").0);
    let (is_given, told) = asks(&world, "evil", vip, true, "all");
    assert!(!is_given && told.contains("Service shop/web"), "{told}");
}

#[test]
fn what_was_granted_is_the_pods_that_had_it_until_a_source_says_that_it_asks_no_more() {
    let (asker, victim) = world("10.9.0.99");
    let pods = [asker, victim];
    let (image, _) = judged(&pods, &Reserved::default(), &ExtraPolicy::default());
    let mut snapshot = Snapshot::default();
    let had = |image: &GuardImage, granted: &BTreeMap<u32, GuardRow>, snapshot: &Snapshot| {
        let granted = granted.clone();
        let reserved = Reserved {
            granted,
            ..Reserved::default()
        };
        reserved.granted_now(image, &pods, snapshot)
    };
    let granted = had(&image, &BTreeMap::new(), &snapshot);
    assert_eq!(granted.keys().collect::<Vec<_>>(), [&7]);
    // The agent starts, and no source has answered yet.
    let mut silent = image.clone();
    silent.rows.get_mut(&7).unwrap().extra.clear();
    assert_eq!(had(&silent, &granted, &snapshot), granted);
    let name = NamespacedName::new("default", "vpn");
    snapshot.pods.insert(name, local_pod());
    assert_eq!(had(&silent, &granted, &snapshot), BTreeMap::new());
    // Another Pod is at the device.
    let mut world = World::new();
    add(&mut world, ("evil", "x"), |_| (), &[("10.9.0.99", None)]);
    let mut next = pods.clone();
    next[0].mac = Some([2, 0, 0, 0, 0, 0x77]);
    let reserved = Reserved {
        granted,
        ..reserved_in(&world, &world.snapshot, &next)
    };
    let (image, told) = judged(&next, &reserved, &ExtraPolicy::default());
    assert_eq!(image.rows[&7].extra, [], "{told}");
}

/// A virtual MAC is its owner's neighbour's as soon as it has answered once, on the node that is about to take it over,
/// too.
#[test]
fn a_neighbours_mac_is_given_where_its_address_is_nobodys() {
    let (mut asker, victim) = world("10.9.0.99");
    asker.extra.macs.push(VRRP);
    let (image, told) = judged(&[asker, victim], &reserved(), &ExtraPolicy::default());
    assert_eq!(image.rows[&7].macs.last(), Some(&VRRP), "{told}");
}

/// A Pod of `first` is there, and then one of `second` asks too, whose name comes before; what each is given, and what
/// is told.
fn share(first: &str, second: &str, wishes: [&str; 2], askers: &str) -> ([Extra; 2], String) {
    let asker = |namespace: &str, name: &str, host, wish: &str| {
        let address = format!("10.244.1.{host}");
        let mut pod = pod(name, &[&address], Some((host, None)));
        pod.namespace = namespace.to_owned();
        pod.mac = Some([2, 0, 0, 0, 1, u8::try_from(host).unwrap()]);
        pod.extra = wish.parse().unwrap();
        pod
    };
    let extra = ExtraPolicy {
        askers: askers.parse().unwrap(),
        ..ExtraPolicy::default()
    };
    let mut pods = [asker(second, "a", 7, ""), asker(first, "b", 8, wishes[0])];
    let (image, told) = judged(&pods, &Reserved::default(), &extra);
    assert_eq!(told, "");
    let granted = Reserved::default().granted_now(&image, &pods, &Snapshot::default());
    let reserved = Reserved {
        granted,
        ..Reserved::default()
    };
    pods[0].extra = wishes[1].parse().unwrap();
    let (image, told) = judged(&pods, &reserved, &extra);
    let given = [8, 7].map(|device| Extra {
        prefixes: image.rows[&device].extra.clone(),
        macs: image.rows[&device].macs[1..].to_vec(),
    });
    (given, told)
}

#[test]
fn what_a_pod_was_granted_is_given_to_no_pod_of_another_namespace() {
    for (has, asks) in [
        (BOTH, BOTH),
        ("10.9.0.99", "10.9.0.0/24"),
        ("10.9.0.0/24", "10.9.0.99"),
        ("fd09::/64", "fd09::1"),
        ("02:00:00:00:00:99", "02:00:00:00:00:99"),
    ] {
        let (given, told) = share("shop", "evil", [has, asks], "all");
        assert_eq!(given, [has.parse().unwrap(), Extra::default()], "{told}");
        assert!(
            told.starts_with("evil/a: extra addresses are refused"),
            "{told}"
        );
        assert!(told.contains("Pod shop/b was granted it first"), "{told}");
        // Two that take turns, and those whom the operator trusts.
        for (second, askers) in [("shop", "all"), ("evil", "shop,evil")] {
            let (given, told) = share("shop", second, [has, asks], askers);
            assert_eq!(
                given,
                [has, asks].map(|wish| wish.parse().unwrap()),
                "{told}"
            );
        }
    }
    let (given, told) = share("shop", "evil", ["10.9.0.99", "10.9.0.98"], "all");
    assert_eq!(given[1], "10.9.0.98".parse().unwrap(), "{told}");
}

#[test]
fn of_two_that_ask_at_once_one_is_granted_it_and_what_nobody_asks_for_any_more_is_free() {
    let (mut asker, mut other) = world(BOTH);
    (asker.namespace, other.namespace) = ("a".to_owned(), "b".to_owned());
    other.extra = BOTH.parse().unwrap();
    let mut pods = [asker, other];
    let (image, told) = judged(&pods, &Reserved::default(), &ExtraPolicy::default());
    let rows = |image: &GuardImage| [7, 8].map(|device| image.rows[&device].is_granted_more());
    assert_eq!(rows(&image), [true, false], "{told}");
    let granted = Reserved::default().granted_now(&image, &pods, &Snapshot::default());
    let reserved = Reserved {
        granted,
        ..Reserved::default()
    };
    pods[0].extra = "10.9.0.1".parse().unwrap();
    let (image, told) = judged(&pods, &reserved, &ExtraPolicy::default());
    assert_eq!((rows(&image), &*told), ([true, true], ""));
}

/// The agent is started without the cloud, and has no checkpoint or an older one.
#[test]
fn what_a_pod_was_granted_is_its_until_a_source_has_told_what_it_asks_for() {
    let (mut asker, victim) = world(BOTH);
    let granted = {
        let pods = [asker.clone(), victim.clone()];
        let (image, told) = judged(&pods, &Reserved::default(), &ExtraPolicy::default());
        assert_eq!(told, "");
        Reserved::default().granted_now(&image, &pods, &Snapshot::default())
    };
    asker.extra = Extra::default();
    let given = |asker: &GuardedPod, victim: &GuardedPod, told: Option<&Snapshot>| {
        let mut pods = [asker.clone(), victim.clone()];
        ask_for_the_untold(&mut pods, &granted, told);
        let reserved = Reserved {
            granted: granted.clone(),
            ..reserved()
        };
        let (image, _) = judged(&pods, &reserved, &ExtraPolicy::default());
        image.rows[&7].granted()
    };
    let mut snapshot = Snapshot::default();
    for told in [None, Some(&snapshot)] {
        assert_eq!(given(&asker, &victim, told), BOTH.parse().unwrap());
    }
    // What has an owner by now is the owner's, and the device may be another Pod's.
    let mut owner = victim.clone();
    owner.addresses.push(ip("10.9.0.99"));
    let mac = "02:00:00:00:00:99".parse().unwrap();
    assert_eq!(given(&asker, &owner, None), mac);
    let mut other = asker.clone();
    other.mac = Some([2, 0, 0, 0, 0, 0x77]);
    assert_eq!(given(&other, &victim, None), Extra::default());
    snapshot
        .pods
        .insert(NamespacedName::new("default", "vpn"), local_pod());
    assert_eq!(given(&asker, &victim, Some(&snapshot)), Extra::default());
}

/// The object of the Pod that asks, which asks no more.
fn local_pod() -> Arc<LocalPod> {
    Arc::new(LocalPod {
        name: NamespacedName::new("default", "vpn"),
        uid: "5f0c".into(),
        node_name: "a1".into(),
        annotations: Default::default(),
        readiness: Box::default(),
    })
}
