//! Services that are rejected for what they ask for, or in part, beside Services that change.

use std::time::Duration;

use super::{CAPACITY, FLOOR, Node, address, processor_time};
use crate::model::{Service, ServiceType, Touched, TrafficPolicy};
use crate::plan::MapImage;
use crate::policy::fixtures::{World, ip, port};

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
