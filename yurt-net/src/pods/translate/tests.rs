use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

/// The bridge, and the Pod's device, which is a port of it.
const BRIDGE: u32 = 3;
const DEVICE: u32 = 7;
const UPLINK: u32 = 2;
const HOST: HostSide = HostSide {
    ifindex: DEVICE,
    other_end: Some(2),
};

fn links() -> Vec<Link> {
    let link = |ifindex, name: &str, kind: &str| Link {
        ifindex,
        name: name.to_owned(),
        kind: kind.to_owned(),
        ..Link::default()
    };
    vec![
        link(UPLINK, "eth0", ""),
        link(BRIDGE, "cni0", "bridge"),
        Link {
            other_end: Some(2),
            other_end_netns: Some(0),
            controller: Some(BRIDGE),
            ..link(DEVICE, "veth7", "veth")
        },
    ]
}

fn web() -> Candidate {
    Candidate {
        pod: "shop/web-0".to_owned(),
        interface: "eth0".to_owned(),
        mac: Some([2; 6]),
        live: ips(&["10.244.1.20", "fd00:244:1::20"]),
        promised: ips(&["10.99.0.5", "fd00:99::5"]),
        is_ours: true,
        host: Some(HOST),
        wish: Wish::Nodes,
    }
}

fn route(prefix: &str, link: Option<u32>) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        link,
        is_hole: false,
        is_ours: false,
    }
}

/// As a node with flannel has them.
fn routes() -> Vec<Route> {
    vec![
        route("0.0.0.0/0", None),
        route("10.244.1.0/24", Some(BRIDGE)),
        route("10.244.2.0/24", None),
        route("192.0.2.0/24", Some(UPLINK)),
        route("fd00:244:1::/64", Some(BRIDGE)),
    ]
}

struct World {
    pods: Vec<Candidate>,
    owners: BTreeMap<IpAddr, String>,
    links: Vec<Link>,
    local: BTreeSet<IpAddr>,
    routes: Vec<Route>,
    translated: BTreeSet<u32>,
    policy: Policy,
}

impl World {
    fn new(pod: Candidate) -> Self {
        Self {
            pods: vec![pod],
            owners: BTreeMap::new(),
            links: links(),
            local: ips(&["192.0.2.11", "10.244.1.1"]).into_iter().collect(),
            routes: routes(),
            translated: BTreeSet::new(),
            policy: Policy {
                is_on: true,
                exclusive: Vec::new(),
            },
        }
    }

    fn compile(&self) -> (TranslateImage, Vec<String>) {
        let node = Surroundings {
            owners: &self.owners,
            links: &self.links,
            local: &self.local,
            routes: &self.routes,
            translated: &self.translated,
        };
        let (image, complaints) = compile(&self.pods, node, &self.policy);
        let reasons = complaints.into_iter().map(|complaint| complaint.reason);
        (image, reasons.collect())
    }

    /// What is translated, and whether there is a route for it.
    fn kept(&self) -> Vec<(String, bool)> {
        let (image, _) = self.compile();
        let promised = image.rows.values().flat_map(TranslateRow::promised);
        promised
            .map(|promised| {
                let mut routes = image.routes.iter();
                (promised.to_string(), routes.any(|(to, _)| *to == promised))
            })
            .collect()
    }

    #[track_caller]
    fn refuses(&self, reasons: &[&str]) {
        let (image, found) = self.compile();
        assert_eq!(found.len(), reasons.len(), "{found:?}");
        for (found, reason) in found.iter().zip(reasons) {
            assert!(found.contains(reason), "{found:?}: no {reason:?}");
        }
        assert_eq!(
            image.rows.is_empty(),
            image.attached.is_empty() && image.routes.is_empty()
        );
    }
}

#[test]
fn a_promise_of_both_families_is_kept_on_the_pods_device_with_routes_by_its_bridge() {
    let (image, complaints) = World::new(web()).compile();
    assert_eq!(complaints, [""; 0]);
    let row = TranslateRow {
        mac: [2; 6],
        v4: Some(Pair {
            live: "10.244.1.20".parse().unwrap(),
            promised: "10.99.0.5".parse().unwrap(),
        }),
        v6: Some(Pair {
            live: "fd00:244:1::20".parse().unwrap(),
            promised: "fd00:99::5".parse().unwrap(),
        }),
    };
    let expected = TranslateImage {
        rows: [(DEVICE, row)].into(),
        attached: [(Direction::ToPod, DEVICE), (Direction::FromPod, DEVICE)].into(),
        lost: BTreeSet::new(),
        routes: [(ip("10.99.0.5"), BRIDGE), (ip("fd00:99::5"), BRIDGE)].into(),
    };
    assert_eq!(image, expected);
}

#[test]
fn an_address_that_leads_to_the_bridge_anyway_needs_no_route_and_a_hole_does() {
    let mut world = World::new(Candidate {
        promised: ips(&["10.244.1.5", "fd00:244:1::5"]),
        ..web()
    });
    let without = [
        ("10.244.1.5".to_owned(), false),
        ("fd00:244:1::5".to_owned(), false),
    ];
    assert_eq!(world.kept(), without);
    // As calico and cilium keep a block.
    world.routes = vec![Route {
        is_hole: true,
        ..route("10.244.1.0/26", None)
    }];
    assert_eq!(world.kept()[0], ("10.244.1.5".to_owned(), true));
    // Our own routes are no reason for themselves.
    world.routes.push(Route {
        is_ours: true,
        ..route("10.244.1.5/32", Some(BRIDGE))
    });
    assert_eq!(world.kept()[0], ("10.244.1.5".to_owned(), true));
}

#[test]
fn without_a_bridge_the_route_is_by_the_device_itself() {
    let mut world = World::new(web());
    world.links[2].controller = None;
    let (image, _) = world.compile();
    assert_eq!(
        image.routes,
        [(ip("10.99.0.5"), DEVICE), (ip("fd00:99::5"), DEVICE)].into()
    );
}

#[test]
fn translation_is_off_until_the_node_or_the_pod_says_otherwise() {
    let unknown_before = BTreeSet::new();
    let translated_before = BTreeSet::from([DEVICE]);
    for (is_on, wish, before, is_kept) in [
        (false, Wish::Nodes, &translated_before, false),
        (false, Wish::Pods(true), &unknown_before, true),
        (true, Wish::Nodes, &unknown_before, true),
        (true, Wish::Pods(false), &translated_before, false),
        // Nobody can be asked, as after a reboot without the cloud: what is, stays.
        (false, Wish::Unknown, &unknown_before, false),
        (false, Wish::Unknown, &translated_before, true),
        (true, Wish::Unknown, &unknown_before, true),
    ] {
        let mut world = World::new(Candidate { wish, ..web() });
        world.policy.is_on = is_on;
        world.translated.clone_from(before);
        assert_eq!(!world.kept().is_empty(), is_kept, "{is_on} {wish:?}");
        world.refuses(&[]);
    }
}

#[test]
fn an_address_that_another_ipam_may_give_away_is_refused_until_the_operator_says_that_it_does_not()
{
    let mut world = World::new(Candidate {
        is_ours: false,
        ..web()
    });
    world.refuses(&[
        "another IPAM may give 10.99.0.5",
        "another IPAM may give fd00:99::5",
    ]);
    world.policy.exclusive = vec!["10.99.0.0/24".parse().unwrap()];
    world.refuses(&["another IPAM may give fd00:99::5"]);
    assert_eq!(world.kept(), [("10.99.0.5".to_owned(), true)]);
}

#[test]
fn an_address_that_is_somebodys_is_not_taken_from_him() {
    let mut world = World::new(web());
    world.local.insert(ip("10.99.0.5"));
    world
        .owners
        .insert(ip("fd00:99::5"), "shop/db-0".to_owned());
    world.refuses(&[
        "10.99.0.5 is an address of the node",
        "fd00:99::5 is Pod shop/db-0's",
    ]);
    // Its own is no other's.
    let mut world = World::new(web());
    world
        .owners
        .insert(ip("10.99.0.5"), "shop/web-0".to_owned());
    world.refuses(&[]);
    // Nor are there two with one.
    let mut world = World::new(web());
    world.links.push(Link {
        ifindex: 8,
        ..world.links[2].clone()
    });
    let host = Some(HostSide { ifindex: 8, ..HOST });
    world.pods.push(Candidate {
        pod: "shop/web-1".to_owned(),
        host,
        ..web()
    });
    world.refuses(&["10.99.0.5 is Pod another", "fd00:99::5 is Pod another"]);
}

#[test]
fn an_address_that_the_node_leads_elsewhere_is_not_led_to_the_pod() {
    for (elsewhere, link) in [
        ("10.99.0.0/24", None),
        ("10.99.0.5/32", Some(UPLINK)),
        ("10.0.0.0/8", Some(UPLINK)),
    ] {
        let mut world = World::new(web());
        world.routes.push(route(elsewhere, link));
        let reason = format!("the node's route to {elsewhere} leads 10.99.0.5 elsewhere");
        world.refuses(&[&reason]);
        assert_eq!(world.kept(), [("fd00:99::5".to_owned(), true)]);
    }
}

#[test]
fn what_cannot_be_translated_says_why() {
    let with = |change: &dyn Fn(&mut World)| {
        let mut world = World::new(web());
        change(&mut world);
        world
    };
    with(&|world| world.pods[0].mac = None).refuses(&["the MAC of the Pod"]);
    with(&|world| world.pods[0].host = None)
        .refuses(&["use a main plugin that makes veth devices"]);
    // It is about to come, or has just gone.
    with(&|world| world.links.truncate(2)).refuses(&[]);
    with(&|world| world.links[2].other_end = Some(9)).refuses(&["device veth7 leads elsewhere"]);
    with(&|world| world.links[1].kind = "openvswitch".to_owned())
        .refuses(&["veth7 is part of cni0"]);
    with(&|world| world.pods[0].live = ips(&["10.244.1.20"]))
        .refuses(&["same family as fd00:99::5"]);
    with(&|world| world.pods[0].promised = ips(&["10.99.0.5", "10.99.0.6"]))
        .refuses(&["10.99.0.6 is not the first promised address"]);
    with(&|world| world.pods[0].promised.clear()).refuses(&[]);
}
