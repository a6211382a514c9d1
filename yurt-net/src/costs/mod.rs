//! What objects cost that an apiserver accepts: four times as large is at most about four times as much work, and what
//! somebody else changes does not wait for it.
//!
//! Judged by the processor time of this thread, as ratios in one run: what else the machine does moves neither.
#![expect(
    unsafe_code,
    reason = "the thread's own clock, which the standard library lacks"
)]

mod rejected;
mod sources;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::model::{
    EndpointPort, MAX_PORTS, Protocol, ServicePort, ServiceType, Touched, TrafficPolicy,
};
use crate::plan::{Capacity, MapImage, Plan, plan};
use crate::policy::compile;
use crate::policy::fixtures::{World, ip, port};
use crate::table::{MAX_ENDPOINTS, MAX_FRONTENDS, MAX_SOURCE_RANGES};

/// The defaults of `run`.
const CAPACITY: Capacity = Capacity {
    frontends4: 20_480,
    frontends6: 8192,
    services: 16_384,
    slots4: 32_768,
    slots6: 8192,
};

/// A quadratic step would be 16 times as much for four times the size.
const RATIO: u32 = 8;

fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes into `time`, which outlives it.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Duration::from_nanos(seconds * 1_000_000_000 + nanoseconds)
}

fn address(n: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n).unwrap() * 2 + 256).into()
}

fn number(n: usize) -> u16 {
    u16::try_from(n % 60_000 + 1).unwrap()
}

fn name(n: usize) -> String {
    format!("port-{n}")
}

fn ports(count: usize) -> Box<[ServicePort]> {
    (0..count).map(|n| port(&name(n), number(n), 0)).collect()
}

/// A world with a Service of somebody else, and one of a tenant who writes as much as he can.
type Tenant = fn(&mut World, usize);

fn many_ports(world: &mut World, count: usize) {
    world.service("big", |service| service.ports = ports(count));
    world.slice_with("big-1", "big", &[("10.1.0.2", None)], |slice| {
        slice.ports = (0..count)
            .map(|n| EndpointPort {
                name: name(n).into(),
                protocol: Protocol::Tcp,
                port: number(n),
            })
            .collect();
    });
}

fn many_external_ips(world: &mut World, count: usize) {
    world.service("big", |s| {
        s.external_ips = (0..count).map(address).collect()
    });
    world.slice("big-1", "big", &[("10.1.0.2", None)]);
}

fn many_addresses_of_a_load_balancer(world: &mut World, count: usize) {
    world.service("big", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.external_ips = (0..count).map(address).collect();
        service.load_balancer_ips = (0..count).map(address).collect();
        service.external_policy = TrafficPolicy::Local;
        service.source_ranges = ["192.0.2.0/24".parse().unwrap()].into();
    });
    world.slice("big-1", "big", &[("10.1.0.2", None)]);
}

fn many_source_ranges(world: &mut World, count: usize) {
    world.service("big", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip("198.51.100.1")].into();
        service.source_ranges = (0..count).map(|n| address(n).into()).collect();
    });
    world.slice("big-1", "big", &[("10.1.0.2", None)]);
}

fn many_endpoints(world: &mut World, count: usize) {
    world.service("big", |_| ());
    let all: Vec<String> = (0..count).map(|n| address(n).to_string()).collect();
    for (n, part) in all.chunks(100).enumerate() {
        let endpoints: Vec<_> = part
            .iter()
            .map(|address| (&**address, Some("a2")))
            .collect();
        world.slice(&format!("big-{n}"), "big", &endpoints);
    }
}

fn many_slices_and_ports(world: &mut World, count: usize) {
    world.service("big", |service| service.ports = ports(count));
    for n in 0..count {
        world.slice(&format!("big-{n}"), "big", &[("10.1.0.2", None)]);
    }
}

fn many_addresses_that_another_has(world: &mut World, count: usize) {
    for name in ["big", "bigger"] {
        world.service(name, |s| s.external_ips = (0..count).map(address).collect());
    }
    world.slice("big-1", "big", &[("10.1.0.2", None)]);
}

/// In sizes that are below all limits, so that what is judged is the work and not the limit; and above.
const TENANTS: [(&str, Tenant, usize); 7] = [
    ("ports", many_ports, 200),
    ("external IPs", many_external_ips, 200),
    (
        "a load balancer's addresses",
        many_addresses_of_a_load_balancer,
        200,
    ),
    ("source ranges", many_source_ranges, 5000),
    ("endpoints", many_endpoints, 2000),
    ("slices and ports", many_slices_and_ports, 50),
    (
        "addresses that another has",
        many_addresses_that_another_has,
        200,
    ),
];

struct Node {
    world: World,
    image: MapImage,
    flips: usize,
}

impl Node {
    fn new(tenant: Option<(Tenant, usize)>) -> Self {
        let mut world = World::new();
        world.service_cidr("all", &["10.96.0.0/12"]);
        world.service("other", |service| {
            service.cluster_ips = [ip("10.96.0.20")].into()
        });
        world.slice("other-1", "other", &[("10.1.0.9", None)]);
        if let Some((tenant, size)) = tenant {
            tenant(&mut world, size);
        }
        let mut node = Self {
            world,
            image: MapImage::empty(CAPACITY),
            flips: 0,
        };
        node.follow(&Touched::Anything);
        node
    }

    fn follow(&mut self, touched: &Touched) -> Plan {
        let World {
            snapshot,
            config,
            view,
            memory,
            memo,
            ..
        } = &mut self.world;
        let compiled = compile(snapshot, touched, config, view, memory, memo);
        plan(compiled.table, &mut self.image)
    }

    /// A slice changes; what follows from it, and what it took.
    fn flip(&mut self, slice: &str, service: &str) -> (Plan, Duration) {
        self.flips += 1;
        let (name, address) = (format!("{slice}-0flip"), address(self.flips + 100_000));
        self.world
            .slice(&name, service, &[(&address.to_string(), None)]);
        let name = crate::model::NamespacedName::new("default", &*name);
        let touched = Touched::Slices([name].into());
        let started = processor_time();
        let plan = self.follow(&touched);
        (plan, processor_time() - started)
    }

    /// The least of a few: what disturbs only adds.
    fn least(&mut self, slice: &str, service: &str) -> Duration {
        (0..7).map(|_| self.flip(slice, service).1).min().unwrap()
    }
}

/// Costs that do not depend on the size.
const FLOOR: Duration = Duration::from_micros(300);

#[test]
fn four_times_the_size_is_not_sixteen_times_the_work() {
    for (what, tenant, size) in TENANTS {
        let [small, large] = [size, size * 4].map(|size| {
            let mut node = Node::new(Some((tenant, size)));
            node.least("big", "big")
        });
        assert!(
            large < small * RATIO + FLOOR,
            "{what}: {small:?} for {size}, {large:?} for four times as many"
        );
    }
}

/// Slices and PoolServices of one Service, all of which are other ones with each generation.
fn many_objects(world: &mut World, count: usize, generation: usize) {
    world.service("big", |service| {
        service.service_type = ServiceType::LoadBalancer;
    });
    for n in 0..count {
        let address = address(n % 100 + generation * 100).to_string();
        world.slice(&format!("big-{n}"), "big", &[(&address, None)]);
        world.pool_service("big", &format!("pool-{n}"), &[&address]);
    }
}

/// A square of so many would be several times what all of them cost when they come.
const MANY: usize = 32_000;

#[test]
fn objects_of_one_service_that_all_change_at_once_cost_what_each_of_them_costs() {
    let mut node = Node::new(None);
    let took = [0, 1, 2].map(|generation| {
        many_objects(&mut node.world, MANY, generation);
        let started = processor_time();
        node.follow(&Touched::Anything);
        processor_time() - started
    });
    // At first there is nothing that could go.
    let [come, change, change_again] = took;
    assert!(change.min(change_again) < come * 4, "{took:?}");
}

#[test]
fn slices_that_all_go_at_once_cost_what_each_of_them_costs() {
    let mut took = [Duration::MAX; 2];
    for _ in 0..2 {
        let mut node = Node::new(None);
        node.world.service("big", |_| ());
        for n in 0..MANY {
            let name = format!("big-{n}");
            node.world.slice(&name, "big", &[("10.1.0.2", None)]);
        }
        let started = processor_time();
        node.follow(&Touched::Anything);
        took[0] = took[0].min(processor_time() - started);
        let slices = std::mem::take(&mut node.world.snapshot.slices);
        let touched = Touched::Slices(slices.into_keys().collect());
        let started = processor_time();
        node.follow(&touched);
        took[1] = took[1].min(processor_time() - started);
    }
    let [come, go] = took;
    assert!(go < come * 2, "{took:?}");
}

#[test]
fn beyond_the_limits_size_costs_next_to_nothing() {
    for (what, tenant, size) in TENANTS {
        // As many as 1.5 MB of JSON hold.
        let [limit, far] = [size * 10, size * 40].map(|size| {
            let mut node = Node::new(Some((tenant, size)));
            node.least("big", "big")
        });
        assert!(
            far < limit * RATIO + FLOOR,
            "{what}: {limit:?} for {}, {far:?} for four times as many",
            size * 10
        );
    }
}

#[test]
fn what_does_not_fit_stays_out_of_the_way_of_what_others_change() {
    let alone = Node::new(None).least("other", "other");
    for (what, tenant, size) in TENANTS {
        let mut node = Node::new(Some((tenant, size * 40)));
        let (plan, _) = node.flip("other", "other");
        assert!(plan.ops.len() <= 4, "{what}: {} writes", plan.ops.len());
        let beside = node.least("other", "other");
        assert!(
            beside < alone * RATIO + FLOOR * 4,
            "{what}: {beside:?} instead of {alone:?}"
        );
    }
}

#[test]
fn a_hundred_services_that_fill_the_maps_stay_out_of_the_way() {
    let mut world = World::new();
    world.service_cidr("all", &["10.96.0.0/12"]);
    for n in 0..100 {
        world.service(&format!("big{n}"), |service| {
            service.cluster_ips = [address(n)].into();
            service.external_ips = (0..900).map(|m| address(1000 + n * 1000 + m)).collect();
            service.ports = ports(4);
        });
    }
    world.service("other", |service| {
        service.cluster_ips = [ip("10.96.0.20")].into()
    });
    world.slice("other-1", "other", &[("10.1.0.9", None)]);
    let mut node = Node {
        world,
        image: MapImage::empty(CAPACITY),
        flips: 0,
    };
    let started = processor_time();
    let first = node.follow(&Touched::Anything);
    let whole = processor_time() - started;
    assert!(!first.refused.is_empty());
    let second = node.least("other", "other");
    assert!(
        second * 20 < whole,
        "a change takes {second:?}, all of it {whole:?}"
    );
    let (plan, _) = node.flip("other", "other");
    assert_eq!(
        plan.refused, first.refused,
        "they are told as long as they are left out"
    );
}

#[test]
fn each_limit_is_told_in_a_rejection() {
    let said = |edit: fn(&mut World)| {
        let mut world = World::new();
        edit(&mut world);
        world.rejections().join("\n")
    };
    let ports = said(|world| many_ports(world, MAX_PORTS + 1));
    assert!(
        ports.contains("Service big: it has more than 1000 ports"),
        "{ports}"
    );
    assert!(
        ports.contains("EndpointSlice big-1 has more than 1000 ports"),
        "{ports}"
    );
    let addresses = said(|world| many_external_ips(world, 2000));
    assert!(
        addresses.contains("more than 1000 addresses of kind ExternalIP"),
        "{addresses}"
    );
    let frontends = said(|world| {
        many_external_ips(world, 900);
        world.service("big", |service| service.ports = self::ports(10));
    });
    assert!(
        frontends.contains(&format!("more than {MAX_FRONTENDS} frontends")),
        "{frontends}"
    );
    let ranges = said(|world| many_source_ranges(world, MAX_SOURCE_RANGES + 1));
    assert!(
        ranges.contains("admits more than 127 source ranges"),
        "{ranges}"
    );
    let endpoints = said(|world| many_endpoints(world, MAX_ENDPOINTS + 1));
    assert!(
        endpoints.contains(&format!("at most {MAX_ENDPOINTS} are served")),
        "{endpoints}"
    );
}

#[test]
fn a_limit_costs_the_rest_and_not_the_service() {
    let mut node = Node::new(Some((many_endpoints, MAX_ENDPOINTS + 5000)));
    let table = node.world.compile();
    let big = table
        .services
        .iter()
        .find(|entry| &*entry.key.name == "big");
    let kept = big.unwrap().v4.cluster.len();
    assert!(
        (MAX_ENDPOINTS * 9 / 10..=MAX_ENDPOINTS).contains(&kept),
        "{kept}"
    );
    let mut node = Node::new(Some((many_ports, MAX_PORTS + 5)));
    let served = node.world.compile().services;
    let big = served.iter().filter(|entry| &*entry.key.name == "big");
    assert_eq!(
        big.filter(|entry| !entry.v4.cluster.is_empty()).count(),
        MAX_PORTS
    );
}
