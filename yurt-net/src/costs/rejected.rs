//! Services that are rejected for what they ask for, or in part, beside Services that change.

use std::sync::Arc;
use std::time::Duration;

use super::{CAPACITY, FLOOR, Node, RATIO, address, processor_time};
use crate::model::{Kind, Manifest, ManifestObject, Service, ServiceType, Touched, TrafficPolicy};
use crate::plan::{Capacity, MapImage};
use crate::policy::fixtures::{World, ip, port};
use crate::table::ServiceEntry;

/// Of so many, all but one ask in vain.
const MANY: usize = 3000;

/// What a tenant writes into each of his Services.
type Wish = fn(&mut Service);

const WISHES: [(&str, Wish); 4] = [
    ("one external IP", |service| {
        service.external_ips = [ip("203.0.113.1")].into();
    }),
    ("one NodePort", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = [port("http", 80, 31000)].into();
    }),
    ("an unknown topology key", |service| {
        service.topology_keys = Some("rack".into());
    }),
    ("one health check port", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.external_policy = TrafficPolicy::Local;
        service.health_check_node_port = 31000;
    }),
];

/// A node with so many Services of a tenant.
fn node(count: usize, wish: Wish) -> Node {
    let mut world = World::new();
    world.service_cidr("all", &["10.0.0.0/8"]);
    for n in 0..count {
        world.service(&format!("many-{n:05}"), |service| {
            service.cluster_ips = [address(n)].into();
            wish(service);
        });
    }
    let mut node = Node {
        world,
        image: MapImage::empty(CAPACITY),
        flips: 0,
    };
    node.follow(&Touched::Anything);
    node
}

/// The least that a change of one Service takes, of a few.
fn least(node: &mut Node, name: &str, change: impl Fn(&mut Service, usize)) -> Duration {
    let times = (0..7).map(|n| {
        node.world.service(name, |service| change(service, n));
        let started = processor_time();
        node.follow(&Touched::Anything);
        processor_time() - started
    });
    times.min().unwrap()
}

#[test]
fn services_that_ask_in_vain_cost_others_what_good_ones_cost_them() {
    let other = |service: &mut Service, n| {
        service.cluster_ips = [ip(&format!("10.96.0.{}", n + 1))].into();
    };
    let beside_good = least(&mut node(MANY, |_| ()), "other", other);
    for (what, wish) in WISHES {
        let mut node = node(MANY, wish);
        assert!(node.world.compile().rejections.len() + 1 >= MANY, "{what}");
        let beside = least(&mut node, "other", other);
        assert!(
            beside < beside_good * 3 + FLOOR,
            "{what}: {beside:?} beside {MANY} that ask in vain, {beside_good:?} beside as many that do not"
        );
    }
}

/// A tenant may do that as often as he likes.
#[test]
fn an_owner_that_lets_a_place_go_and_takes_it_again_costs_no_more_beside_many_that_ask_for_it() {
    let (_, wish) = WISHES[0];
    let wishes = |service: &mut Service, n: usize| match n % 2 {
        0 => service.external_ips = [].into(),
        _ => wish(service),
    };
    let beside_good = least(&mut node(MANY, |_| ()), "first", wishes);
    let mut node = node(MANY, wish);
    let beside = least(&mut node, "first", wishes);
    assert!(
        beside < beside_good * 3 + FLOOR,
        "{beside:?} beside {MANY} that ask for it, {beside_good:?} beside as many that do not"
    );
    let has_it = |node: &Node| {
        let table = node.world.memo.table();
        let has_it = |entry: &&Arc<ServiceEntry>| {
            let mut frontends = entry.frontends.iter();
            frontends.any(|f| f.address == ip("203.0.113.1"))
        };
        let owner = table.services.iter().find(has_it);
        owner.map(|entry| entry.key.name.to_string())
    };
    assert_eq!(has_it(&node).as_deref(), Some("many-00000"));
    node.world.service("first", |service| wishes(service, 1));
    node.follow(&Touched::Anything);
    assert_eq!(has_it(&node).as_deref(), Some("first"));
    let told = node.world.rejections();
    assert_eq!(told.len(), MANY);
    assert_eq!(
        told[7],
        "Service many-00007: 203.0.113.1:80/TCP belongs to another Service: many ask for it, and `yurt-net explain` names the \
         one that has it"
    );
}

#[test]
fn services_that_have_no_room_cost_others_what_good_ones_cost_them() {
    let beside = |frontends4| {
        let mut node = node(10_000, |_| ());
        node.world.service("other", |service| {
            service.cluster_ips = [ip("10.96.0.20")].into();
        });
        node.world.slice("other-1", "other", &[("10.1.0.9", None)]);
        node.image = MapImage::empty(Capacity {
            frontends4,
            ..CAPACITY
        });
        let first = node.follow(&Touched::Anything);
        (node.least("other", "other"), first.refused.len())
    };
    let [(fit, none), (full, many)] = [beside(CAPACITY.frontends4), beside(500)];
    assert!(none == 0 && many > 9000, "{none} {many}");
    assert!(
        full < fit * 3 + FLOOR * 4,
        "{full:?} beside {many} without room, {fit:?} without"
    );
}

/// As a directory with one manifest for each Service has it.
#[test]
fn rejections_that_name_the_manifests_of_their_objects_cost_what_each_of_them_costs() {
    let other = |service: &mut Service, n| {
        service.cluster_ips = [ip(&format!("10.96.0.{}", n + 1))].into();
    };
    let [small, large] = [1000, 4000].map(|count| {
        let (_, wish) = WISHES[2];
        let mut node = node(count, wish);
        let snapshot = &mut node.world.snapshot;
        for (n, name) in snapshot.services.keys().enumerate() {
            // The last by name are in the first files.
            let file = format!("{:05}.yaml", count - n);
            let said = ManifestObject {
                kind: Kind::Service,
                name: name.clone(),
                document: 1,
            };
            let manifest = Manifest::new(file.clone().into(), vec![said]);
            snapshot.manifests.insert(file.into(), Arc::new(manifest));
        }
        let told = node.world.compile().rejections;
        assert_eq!(told.len(), count);
        assert_eq!(told[3].source, format!("{:05}.yaml#1", count - 3));
        least(&mut node, "other", other)
    });
    assert!(
        large < small * RATIO + FLOOR,
        "{small:?}, {large:?} for four times as many"
    );
}
