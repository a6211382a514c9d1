//! Single plans, spelled out.

use super::*;
use crate::dataplane::Dataplane;
use crate::dataplane::service::memory::MemoryDataplane;
use crate::model::{Protocol, TrafficPolicy};
use crate::table::{EndpointSet, Frontend, FrontendKind, Scope};

pub(super) const CAPACITY: Capacity = Capacity {
    frontends4: 16,
    frontends6: 16,
    services: 8,
    slots4: 8,
    slots6: 8,
};

fn service(name: &str, address: &str, backends: &[&str]) -> Arc<ServiceEntry> {
    let address: IpAddr = address.parse().unwrap();
    let key = ServiceKey {
        namespace: "default".into(),
        name: name.into(),
        port: Arc::default(),
        protocol: Protocol::Tcp,
    };
    Arc::new(ServiceEntry {
        frontends: [Frontend {
            kind: FrontendKind::ClusterIp,
            address,
            port: 80,
        }]
        .into(),
        v4: EndpointSet::cluster(backends.iter().map(|backend| backend.parse().unwrap())),
        ..ServiceEntry::new(key)
    })
}

pub(super) fn table(services: &[&Arc<ServiceEntry>]) -> ServiceTable {
    let prefixes = vec!["10.96.0.0/24".parse().unwrap()];
    ServiceTable {
        services: services.iter().map(|entry| (*entry).clone()).collect(),
        cluster_prefixes: ClusterPrefixes {
            prefixes,
            are_service_cidrs: true,
        },
        ..ServiceTable::default()
    }
}

/// The self-test's rows are in every table: they are there before the plans of a test.
fn start() -> (MemoryDataplane, MapImage) {
    let mut maps = MemoryDataplane::new(CAPACITY);
    let mut image = MapImage::empty(CAPACITY);
    maps.apply(&plan(&table(&[]), &mut image)).unwrap();
    (maps, image)
}

fn kinds(plan: &Plan) -> Vec<&'static str> {
    plan.ops
        .iter()
        .map(|op| match op {
            Op::Grace => "grace",
            Op::SetPrefixes(_) => "prefixes",
            Op::SetFilter { .. } => "filter",
            Op::WriteSlots { .. } => "slots",
            Op::Publish { .. } => "publish",
            Op::PutFrontend(..) => "put",
            Op::DeleteFrontend(_) => "delete",
        })
        .collect()
}

#[test]
fn a_new_service_shows_its_frontend_last_and_a_deleted_one_just_loses_it() {
    let (_, mut image) = start();
    let web = service("web", "10.96.0.10", &["10.244.0.1:80", "10.244.0.2:80"]);
    let added = plan(&table(&[&web]), &mut image);
    assert_eq!(kinds(&added), ["slots", "publish", "filter", "put"]);
    let removed = plan(&table(&[]), &mut image);
    assert_eq!(kinds(&removed), ["delete", "filter"]);
}

#[test]
fn changed_endpoints_are_new_slots_and_one_publish() {
    let (_, mut image) = start();
    plan(
        &table(&[&service("web", "10.96.0.10", &["10.244.0.1:80"])]),
        &mut image,
    );
    let changed = service("web", "10.96.0.10", &["10.244.0.2:80"]);
    assert_eq!(
        kinds(&plan(&table(&[&changed]), &mut image)),
        ["slots", "publish"]
    );
}

#[test]
fn space_that_readers_may_still_see_is_used_again_only_after_a_grace_period() {
    let (mut maps, mut image) = start();
    // Seven slots of eight are free, and each set is copied before the old one goes.
    for round in 0..4 {
        let backend = format!("10.244.0.{round}:80");
        let set = [backend.as_str(), "10.244.1.1:80", "10.244.1.2:80"];
        let planned = plan(&table(&[&service("web", "10.96.0.10", &set)]), &mut image);
        let has_grace = planned.ops.first() == Some(&Op::Grace);
        assert_eq!(has_grace, round >= 2, "round {round}: {:?}", planned.ops);
        assert_eq!(planned.refused, []);
        maps.apply(&planned).unwrap();
    }
}

#[test]
fn a_swap_at_full_capacity_happens_in_two_plans() {
    let (mut maps, mut image) = start();
    let seven: Vec<String> = (1..=7).map(|id| format!("10.244.0.{id}:80")).collect();
    let seven: Vec<&str> = seven.iter().map(String::as_str).collect();
    maps.apply(&plan(
        &table(&[&service("a", "10.96.0.10", &seven)]),
        &mut image,
    ))
    .unwrap();
    let wanted = table(&[&service("b", "10.96.0.11", &seven)]);
    let first = plan(&wanted, &mut image);
    maps.apply(&first).unwrap();
    assert_eq!(first.refused.len(), 1);
    assert!(first.has_freed);
    let second = plan(&wanted, &mut image);
    maps.apply(&second).unwrap();
    assert_eq!(second.refused, []);
    assert_eq!(second.ops.first(), Some(&Op::Grace));
}

#[test]
fn of_twenty_services_in_maps_for_eight_none_is_half_programmed_and_the_first_by_name_win() {
    let (mut maps, mut image) = start();
    let services: Vec<_> = (0..20)
        .map(|id| {
            service(
                &format!("s{id:02}"),
                &format!("10.96.0.{id}"),
                &["10.244.0.1:80"],
            )
        })
        .collect();
    let all = table(&services.iter().collect::<Vec<_>>());
    let planned = plan(&all, &mut image);
    maps.apply(&planned).unwrap();
    // Eight service indices, two of them the self-test's; eight slots, one of them the self-test's.
    let refused: Vec<_> = planned
        .refused
        .iter()
        .map(|refused| &*refused.service.name)
        .collect();
    assert_eq!(refused.len(), 14);
    assert_eq!(refused.first(), Some(&"s06"));
    assert!(
        planned
            .refused
            .iter()
            .all(|refused| refused.map == FullMap::Services)
    );
    assert!(maps.holds(&image).unwrap());
    assert_eq!(maps.observe().unwrap().services().len(), 8);
    // Room again: the next ones enter.
    let fewer = table(&services[10..].iter().collect::<Vec<_>>());
    for _ in 0..2 {
        maps.apply(&plan(&fewer, &mut image)).unwrap();
    }
    assert_eq!(maps.observe().unwrap().services().len(), 8);
    assert!(
        image
            .frontends()
            .keys()
            .any(|key| key.address == "10.96.0.10".parse::<IpAddr>().unwrap())
    );
}

#[test]
fn a_set_that_grew_beyond_the_map_keeps_what_is_right_and_gets_what_there_is_room_for() {
    let (mut maps, mut image) = start();
    let old = ["10.244.0.1:80", "10.244.0.2:80", "10.244.0.3:80"];
    maps.apply(&plan(
        &table(&[&service("web", "10.96.0.10", &old)]),
        &mut image,
    ))
    .unwrap();
    let grown: Vec<String> = (2..=9).map(|id| format!("10.244.0.{id}:80")).collect();
    let grown: Vec<&str> = grown.iter().map(String::as_str).collect();
    let planned = plan(&table(&[&service("web", "10.96.0.10", &grown)]), &mut image);
    maps.apply(&planned).unwrap();
    assert!(planned.refused[0].has_some);
    let kept = maps
        .observe()
        .unwrap()
        .services()
        .values()
        .filter_map(|service| Some(service.set.as_ref()?.backends.clone()))
        .find(|backends| backends.len() > 1)
        .unwrap()
        .to_vec();
    // They stay where they are, and get the four slots behind them, which are free.
    let expected = [2, 3, 4, 5, 6, 7].map(|id| format!("10.244.0.{id}:80").parse().unwrap());
    assert_eq!(kept, expected);
}

#[test]
fn a_frontend_that_moves_between_services_is_overwritten_not_removed() {
    let (_, mut image) = start();
    let old = table(&[&service("a", "10.96.0.10", &["10.244.0.1:80"])]);
    plan(&old, &mut image);
    let moved = plan(
        &table(&[&service("b", "10.96.0.10", &["10.244.0.2:80"])]),
        &mut image,
    );
    assert_eq!(kinds(&moved), ["slots", "publish", "put"]);
}

#[test]
fn new_maps_go_on_counting_generations_where_they_are_told_to() {
    let web = service("web", "10.96.0.10", &["10.1.0.2:8080"]);
    let mut image = MapImage::empty(CAPACITY).counting_from(u16::MAX - 1);
    let planned = plan(&table(&[&web]), &mut image);
    let generations = planned.ops.iter().filter_map(|op| match op {
        Op::Publish { generation, .. } => Some(*generation),
        _ => None,
    });
    assert!(
        generations
            .into_iter()
            .all(|generation| generation == u16::MAX)
    );
}

fn limited(ranges: &[&str], affinity_seconds: u32) -> Arc<ServiceEntry> {
    let web = service("web", "10.96.0.10", &["10.244.0.1:80"]);
    let mut web = ServiceEntry::clone(&web);
    let balancer = Frontend {
        kind: FrontendKind::LoadBalancer,
        address: "203.0.113.1".parse().unwrap(),
        port: 80,
    };
    web.frontends = [&*web.frontends, &[balancer]].concat().into();
    web.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    web.affinity_seconds = affinity_seconds;
    Arc::new(web)
}

#[test]
fn other_source_ranges_are_one_publish_with_the_endpoints() {
    let (_, mut image) = start();
    plan(&table(&[&limited(&["10.0.0.0/8"], 0)]), &mut image);
    let changed = plan(
        &table(&[&limited(&["10.1.0.0/16", "192.0.2.0/24"], 0)]),
        &mut image,
    );
    assert_eq!(kinds(&changed), ["slots", "publish"]);
    assert!(changed.asks_for_clients());
}

#[test]
fn a_frontend_gets_its_first_source_ranges_by_moving_to_a_set_that_has_them() {
    let (_, mut image) = start();
    plan(&table(&[&limited(&[], 0)]), &mut image);
    assert!(!image.asks_for_clients());
    let limited = plan(&table(&[&limited(&["10.0.0.0/8"], 0)]), &mut image);
    assert_eq!(kinds(&limited), ["slots", "publish", "put"]);
    assert!(image.asks_for_clients());
}

#[test]
fn an_external_ip_that_is_the_load_balancers_too_is_behind_its_ranges_at_every_write() {
    let (mut maps, mut image) = start();
    let shared = |backends: &[&str]| {
        let mut web = ServiceEntry::clone(&limited(&["10.0.0.0/8"], 0));
        let external = Frontend {
            kind: FrontendKind::ExternalIp,
            ..web.frontends[1]
        };
        web.frontends = [&[web.frontends[0], external], &web.frontends[1..]]
            .concat()
            .into();
        web.v4 = EndpointSet::cluster(backends.iter().map(|backend| backend.parse().unwrap()));
        Arc::new(web)
    };
    // Nobody is known, so nobody is inside.
    let key = yurt_ebpf::abi::FrontendKey4 {
        addr: [203, 0, 113, 1],
        port_be: 80u16.to_be_bytes(),
        protocol: 6,
        scope: yurt_ebpf::abi::SCOPE_INTERNAL,
    };
    let mut is_there = false;
    for backends in [
        &[][..],
        &["10.244.0.1:80"],
        &["10.244.0.1:80", "10.244.0.2:80"],
        &[],
    ] {
        for op in plan(&table(&[&shared(backends)]), &mut image).ops {
            maps.apply(&Plan {
                ops: vec![op],
                ..Plan::default()
            })
            .unwrap();
            let seen = yurt_ebpf::select::resolve4(&maps, &maps, &key);
            is_there |= seen != yurt_ebpf::select::Resolved::Pass;
            let is_kept_out = matches!(seen, yurt_ebpf::select::Resolved::Refuse(_));
            assert!(is_kept_out || !is_there, "{seen:?}");
        }
    }
    assert!(is_there);
    assert!(maps.holds(&image).unwrap());
}

#[test]
fn affinity_alone_changes_without_a_new_set() {
    let (_, mut image) = start();
    plan(&table(&[&limited(&[], 0)]), &mut image);
    let sticky = plan(&table(&[&limited(&[], 600)]), &mut image);
    assert_eq!(kinds(&sticky), ["publish"]);
}

#[test]
fn source_ranges_with_bits_of_hosts_are_no_drift() {
    let (mut maps, _) = start();
    let table = table(&[&limited(&["10.1.2.3/8"], 0)]);
    let mut image = maps.observe().unwrap();
    maps.apply(&plan(&table, &mut image)).unwrap();
    assert!(maps.holds(&image).unwrap());
}

/// A Service of all kinds with its external policy, three endpoints of which the second one is on this node.
fn outward(external_policy: TrafficPolicy) -> ServiceEntry {
    let web = service(
        "web",
        "10.96.0.10",
        &["10.244.0.1:80", "10.244.0.2:80", "10.244.0.3:80"],
    );
    let mut web = ServiceEntry::clone(&web);
    web.external_policy = external_policy;
    web.v4.local = ["10.244.0.2:80".parse().unwrap()].into_iter().collect();
    let external = |kind, address: &str, port| Frontend {
        kind,
        address: address.parse().unwrap(),
        port,
    };
    let external = [
        external(FrontendKind::ExternalIp, "198.51.100.1", 80),
        external(FrontendKind::LoadBalancer, "203.0.113.1", 80),
        external(FrontendKind::NodePort, "192.0.2.1", 30080),
    ];
    web.frontends = [&*web.frontends, &external].concat().into();
    web
}

fn served_outside(services: &[&Arc<ServiceEntry>]) -> ServiceTable {
    ServiceTable {
        serves_packets: true,
        ..table(services)
    }
}

/// What the maps hold after the plan, of a port of IPv4: address, scope, for whom, endpoints, ranges.
fn rows_of(image: &MapImage) -> Vec<(String, Scope, Outside, usize, usize)> {
    let rows = image.frontends().iter().filter_map(|(key, row)| {
        let KeyPort::Port(scope, Protocol::Tcp, _) = key.port else {
            return None;
        };
        let set = image.services()[&row.service].set.as_ref().unwrap();
        let (backends, ranges) = (set.backends.len(), set.ranges().len());
        Some((
            key.address.to_string(),
            scope,
            row.outside,
            backends,
            ranges,
        ))
    });
    rows.collect()
}

#[test]
fn where_the_policy_is_cluster_clients_outside_share_the_rows_and_sets_of_this_node() {
    let web = Arc::new(outward(TrafficPolicy::Cluster));
    let (_, mut image) = start();
    plan(&table(&[&web]), &mut image);
    let (rows, usage) = (rows_of(&image), image.usage());
    assert!(rows.iter().all(|row| row.2 == Outside::No));
    let (mut maps, _) = start();
    let mut image = maps.observe().unwrap();
    maps.apply(&plan(&served_outside(&[&web]), &mut image))
        .unwrap();
    assert_eq!(image.usage(), usage);
    let shared = |(address, scope, _, backends, ranges): (String, _, _, _, _)| {
        // NodePorts on loopback are the node's own.
        let outside = match &*address {
            "127.0.0.1" => Outside::No,
            _ => Outside::Same,
        };
        (address, scope, outside, backends, ranges)
    };
    assert_eq!(
        rows_of(&image),
        rows.into_iter().map(shared).collect::<Vec<_>>()
    );
    assert!(maps.holds(&image).unwrap());
    // So are the self-test's.
    let tests = [SELF_TEST_V4, SELF_TEST_V6].map(|at| at.ip());
    for (key, row) in image
        .frontends()
        .iter()
        .filter(|(key, _)| tests.contains(&key.address))
    {
        assert_eq!(row.outside, Outside::No, "{key:?}");
    }
}

#[test]
fn where_the_external_policy_is_local_clients_outside_have_rows_and_endpoints_of_their_own() {
    let mut web = outward(TrafficPolicy::Local);
    let planned = |web: &ServiceEntry| {
        let mut image = MapImage::empty(Capacity {
            slots4: 32,
            ..CAPACITY
        });
        let planned = plan(&served_outside(&[&Arc::new(web.clone())]), &mut image);
        assert_eq!(planned.refused, []);
        rows_of(&image)
    };
    let row = |address: &str, scope, outside, backends, ranges| {
        (address.to_owned(), scope, outside, backends, ranges)
    };
    let (internal, external) = (Scope::Internal, Scope::External);
    let expected = |ranges| {
        [
            row("10.96.0.10", internal, Outside::Same, 3, 0),
            row("127.0.0.1", internal, Outside::No, 3, 0),
            row("192.0.2.1", internal, Outside::Apart, 3, 0),
            row("192.0.2.1", external, Outside::No, 1, 0),
            row("198.51.100.1", internal, Outside::Apart, 3, 0),
            row("198.51.100.1", external, Outside::No, 1, 0),
            row("203.0.113.1", internal, Outside::Apart, 3, ranges),
            row("203.0.113.1", external, Outside::No, 1, ranges),
        ]
    };
    assert_eq!(planned(&web), expected(0));
    // Ranges of load balancers hold for their addresses alone.
    web.source_ranges = ["10.0.0.0/8".parse().unwrap()].into();
    assert_eq!(planned(&web), expected(1));
    // A Service that asks for it inside, too, has one answer for everybody at its ClusterIP.
    web.internal_policy = TrafficPolicy::Local;
    assert_eq!(
        planned(&web)[0],
        row("10.96.0.10", internal, Outside::Same, 1, 0)
    );
}

/// Programs masquerade by the flag alone.
#[test]
fn a_row_says_apart_where_clients_outside_keep_their_address_and_same_where_they_do_not() {
    let both = [TrafficPolicy::Cluster, TrafficPolicy::Local];
    for (internal, external) in both
        .into_iter()
        .flat_map(|one| both.map(|other| (one, other)))
    {
        let mut web = outward(external);
        web.internal_policy = internal;
        let (_, mut image) = start();
        plan(&served_outside(&[&Arc::new(web.clone())]), &mut image);
        for frontend in &web.frontends {
            let port = KeyPort::Port(Scope::Internal, Protocol::Tcp, frontend.port);
            let address = frontend.address;
            let expected = match web.is_masqueraded(frontend.kind, Scope::External) {
                true => Outside::Same,
                false => Outside::Apart,
            };
            let row = image.frontends()[&FrontendKey { address, port }];
            assert_eq!(row.outside, expected, "{frontend:?}");
        }
    }
}

#[test]
fn what_is_left_alone_and_sctp_is_no_frontend_for_clients_outside_either() {
    let mut web = outward(TrafficPolicy::Local);
    let mut table = served_outside(&[&Arc::new(web.clone())]);
    table.on_node = vec!["10.96.0.10".parse().unwrap()];
    let (_, mut image) = start();
    plan(&table, &mut image);
    assert!(rows_of(&image).iter().all(|row| row.0 != "10.96.0.10"));
    web.key.protocol = Protocol::Sctp;
    let (_, mut image) = start();
    let rows = image.frontends().len();
    plan(&served_outside(&[&Arc::new(web)]), &mut image);
    let new = image
        .frontends()
        .keys()
        .filter(|key| key.port != KeyPort::Any);
    assert_eq!(new.count(), rows);
}

#[test]
fn an_external_ip_that_is_the_cluster_ip_too_gives_it_no_second_row_and_no_second_set() {
    let mut web = outward(TrafficPolicy::Local);
    let frontend = web.frontends[0];
    web.frontends = [FrontendKind::ClusterIp, FrontendKind::ExternalIp]
        .map(|kind| Frontend { kind, ..frontend })
        .into();
    web.internal_policy = TrafficPolicy::Local;
    let (mut maps, mut image) = start();
    let table = served_outside(&[&Arc::new(web)]);
    maps.apply(&plan(&table, &mut image)).unwrap();
    let only = (
        "10.96.0.10".to_owned(),
        Scope::Internal,
        Outside::Same,
        1,
        0,
    );
    assert_eq!(rows_of(&image), [only]);
    assert_eq!(plan(&table, &mut maps.observe().unwrap()).ops, []);
}

#[test]
fn a_row_that_sends_clients_outside_elsewhere_is_never_there_without_the_one_elsewhere() {
    let (_, mut image) = start();
    let [cluster, local] =
        [TrafficPolicy::Cluster, TrafficPolicy::Local].map(|policy| Arc::new(outward(policy)));
    let puts_and_deletes = |plan: &Plan| {
        let ops = plan.ops.iter().filter_map(|op| match op {
            Op::PutFrontend(key, row) => Some((key.is_external(), row.outside)),
            Op::DeleteFrontend(key) => Some((key.is_external(), Outside::No)),
            _ => None,
        });
        ops.collect::<Vec<_>>()
    };
    let (external, apart) = ((true, Outside::No), (false, Outside::Apart));
    plan(&served_outside(&[&cluster]), &mut image);
    let there = plan(&served_outside(&[&local]), &mut image);
    assert_eq!(kinds(&there).last(), Some(&"put"));
    assert_eq!(
        puts_and_deletes(&there),
        [[external; 3], [apart; 3]].concat()
    );
    let back = plan(&served_outside(&[&cluster]), &mut image);
    let same = (false, Outside::Same);
    assert_eq!(puts_and_deletes(&back), [[same; 3], [external; 3]].concat());
}

/// As after a restart, in which the address of one Service has come to another one.
#[test]
fn clients_outside_never_get_the_set_of_this_node_from_one_who_finds_the_rows_of_a_shared_one() {
    let capacity = Capacity {
        slots4: 32,
        ..CAPACITY
    };
    let mut maps = MemoryDataplane::new(capacity);
    let shared = Arc::new(outward(TrafficPolicy::Cluster));
    let first = plan(&served_outside(&[&shared]), &mut MapImage::empty(capacity));
    maps.apply(&first).unwrap();
    let mut other = outward(TrafficPolicy::Local);
    other.key.name = "other".into();
    other.v4 = EndpointSet {
        local: ["10.244.9.1:80".parse().unwrap()].into_iter().collect(),
        ..EndpointSet::cluster(["10.244.9.1:80", "10.244.9.2:80"].map(|at| at.parse().unwrap()))
    };
    let mut image = maps.observe().unwrap();
    let second = plan(&served_outside(&[&Arc::new(other.clone())]), &mut image);
    assert_eq!(second.refused, []);
    for op in second.ops {
        let ops = vec![op];
        maps.apply(&Plan {
            ops,
            ..Plan::default()
        })
        .unwrap();
        let to = "198.51.100.1:80".parse().unwrap();
        let seen = maps
            .observe()
            .unwrap()
            .in_force(to, Protocol::Tcp, Scope::External);
        let [before, after] = [&shared.v4.cluster, &other.v4.local];
        let allowed = [before, after].map(|set| InForce::Forward(set.clone()));
        assert!(allowed.contains(&seen), "{seen:?}");
    }
}

#[test]
fn an_agent_that_serves_no_packets_takes_what_clients_outside_had() {
    let local = Arc::new(outward(TrafficPolicy::Local));
    let capacity = Capacity {
        slots4: 32,
        ..CAPACITY
    };
    let mut maps = MemoryDataplane::new(capacity);
    let mut image = MapImage::empty(capacity);
    maps.apply(&plan(&served_outside(&[&local]), &mut image))
        .unwrap();
    // It is the same agent, or another one that finds the maps.
    for mut image in [image, maps.observe().unwrap()] {
        let mut maps = maps.clone();
        maps.apply(&plan(&table(&[&local]), &mut image)).unwrap();
        let rows = rows_of(&image);
        assert!(
            rows.iter()
                .all(|row| (row.1, row.2) == (Scope::Internal, Outside::No))
        );
        assert_eq!(rows.len(), 5);
        assert!(maps.holds(&image).unwrap());
    }
}

/// As an agent that has a packet path would leave them.
#[test]
fn rows_for_clients_outside_are_written_read_and_removed_as_others_are() {
    let (mut maps, image) = start();
    let row = |scope| {
        let address = "203.0.113.9".parse().unwrap();
        let port = KeyPort::Port(scope, Protocol::Tcp, 80);
        FrontendKey { address, port }
    };
    let own = image.service_of(&FrontendKey {
        address: SELF_TEST_V4.ip(),
        port: KeyPort::Port(Scope::Internal, Protocol::Udp, SELF_TEST_V4.port()),
    });
    let value = FrontendRow {
        service: own.unwrap(),
        ..FrontendRow::default()
    };
    let scopes = [Scope::Internal, Scope::External];
    let puts = scopes.map(|scope| Op::PutFrontend(row(scope), value));
    let ops = puts.to_vec();
    maps.apply(&Plan {
        ops,
        ..Plan::default()
    })
    .unwrap();
    let mut found = maps.observe().unwrap();
    for scope in scopes {
        assert_eq!(found.frontends().get(&row(scope)), Some(&value));
    }
    assert!(maps.holds(&found).unwrap());
    // Both are in no table, and go.
    maps.apply(&plan(&table(&[]), &mut found)).unwrap();
    for scope in scopes {
        assert_eq!(found.frontends().get(&row(scope)), None);
    }
    assert!(maps.holds(&found).unwrap());
    let left = maps.observe().unwrap();
    assert!(left.frontends().keys().eq(image.frontends().keys()));
}
