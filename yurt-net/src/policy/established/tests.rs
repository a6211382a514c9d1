//! Rules as tables, and the invariant over random clusters.

use std::sync::Arc;

use super::*;
use crate::model::{EndpointSlice, ServiceType, TrafficPolicy};
use crate::policy::fixtures::{World, ip, port};

fn flow(frontend: &str, backend: &str) -> Flow {
    Flow {
        protocol: Protocol::Tcp,
        frontend: frontend.parse().unwrap(),
        backend: backend.parse().unwrap(),
    }
}

fn standings(world: &mut World, flows: &[(&str, &str)]) -> Vec<Standing> {
    let table = world.compile();
    let flows: Vec<Flow> = flows.iter().map(|(f, b)| flow(f, b)).collect();
    let judge = Judge {
        snapshot: &world.snapshot,
        config: &world.config,
        view: &world.view,
        memory: &world.memory,
        table: &table,
    };
    judge.standings(&flows)
}

fn edit_slice(world: &mut World, edit: impl FnOnce(&mut EndpointSlice)) {
    let slice = world.snapshot.slices.values_mut().next().unwrap();
    edit(Arc::make_mut(slice));
}

const VIP: &str = "10.96.0.10:80";
const HERE: (&str, &str) = (VIP, "10.1.0.2:8080");
const NEIGHBOUR: (&str, &str) = (VIP, "10.1.1.2:8080");

#[test]
fn a_backend_stands_by_its_service_its_port_and_the_address_that_was_dialled() {
    use Standing::{InForce, Withdrawn};
    let mut world = World::web(None);
    for (flow, expected) in [
        (HERE, InForce),
        (NEIGHBOUR, InForce),
        ((VIP, "10.1.0.9:8080"), Withdrawn),
        ((VIP, "10.1.0.2:9090"), Withdrawn),
        (("10.96.0.10:81", "10.1.0.2:8080"), Withdrawn),
        (("10.96.0.11:80", "10.1.0.2:8080"), Withdrawn),
    ] {
        assert_eq!(standings(&mut world, &[flow]), [expected], "{flow:?}");
    }
    let slice = world.snapshot.slices.keys().next().unwrap().clone();
    world.snapshot.slices.remove(&slice);
    assert_eq!(standings(&mut world, &[HERE]), [Withdrawn]);
}

#[test]
fn a_flow_to_a_node_port_outlives_the_address_of_the_node_that_it_dialled() {
    use Standing::{InForce, Withdrawn};
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = [port("http", 80, 30080)].into();
    });
    world.node("a1", None, |node| {
        node.internal_ips = vec![ip("192.0.2.11")]
    });
    for (frontend, backend, expected) in [
        ("192.0.2.11:30080", "10.1.0.2:8080", InForce),
        ("192.0.2.10:30080", "10.1.0.2:8080", InForce),
        ("127.0.0.1:30080", "10.1.0.2:8080", InForce),
        ("192.0.2.10:30080", "10.1.0.9:8080", Withdrawn),
        ("192.0.2.10:30081", "10.1.0.2:8080", Withdrawn),
    ] {
        let flow = (frontend, backend);
        assert_eq!(standings(&mut world, &[flow]), [expected], "{flow:?}");
    }
}

#[test]
fn a_terminating_backend_serves_until_it_says_otherwise() {
    let mut world = World::web(None);
    edit_slice(&mut world, |slice| {
        slice.endpoints.edit(|all| {
            all[0].is_ready = false;
            all[0].is_terminating = true;
        });
    });
    let expected = [Standing::Serving, Standing::InForce];
    assert_eq!(standings(&mut world, &[HERE, NEIGHBOUR]), expected);
    edit_slice(&mut world, |slice| {
        slice.endpoints.edit(|all| all[0].is_serving = false)
    });
    let expected = [Standing::Withdrawn, Standing::InForce];
    assert_eq!(standings(&mut world, &[HERE, NEIGHBOUR]), expected);
}

#[test]
fn a_backend_that_the_traffic_policy_leaves_out_serves() {
    let mut world = World::web(None);
    world.service("web", |s| s.internal_policy = TrafficPolicy::Local);
    let expected = [Standing::InForce, Standing::Serving];
    assert_eq!(standings(&mut world, &[HERE, NEIGHBOUR]), expected);
}

#[test]
fn a_backend_in_another_pool_is_outside_the_closure_and_not_withdrawn() {
    let mut world = World::web(Some("kubernetes.io/hostname"));
    let expected = [Standing::InForce, Standing::OutsideClosure];
    assert_eq!(standings(&mut world, &[HERE, NEIGHBOUR]), expected);
    edit_slice(&mut world, |slice| {
        slice.endpoints.edit(|all| {
            for endpoint in all {
                endpoint.is_ready = false;
                endpoint.is_serving = false;
            }
        });
    });
    let expected = [Standing::Withdrawn; 2];
    assert_eq!(standings(&mut world, &[HERE, NEIGHBOUR]), expected);
}

#[test]
fn a_node_port_is_known_on_all_of_loopback() {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports[0].node_port = 30080;
    });
    let flows = [
        ("127.0.0.1:30080", "10.1.0.2:8080"),
        ("127.9.9.9:30080", "10.1.0.2:8080"),
        ("192.0.2.11:30080", "10.1.0.2:8080"),
    ];
    assert_eq!(standings(&mut world, &flows), [Standing::InForce; 3]);
}

#[test]
fn only_udp_is_ended_for_a_withdrawn_backend_and_only_reset_ends_what_serves_elsewhere() {
    use ClosureEstablished::{Keep, Reset};
    use Fate::{End, Watch};
    for (standing, protocol, keep, reset) in [
        (Standing::InForce, Protocol::Tcp, Fate::Keep, Fate::Keep),
        (Standing::InForce, Protocol::Udp, Fate::Keep, Fate::Keep),
        (Standing::Serving, Protocol::Tcp, Watch, Watch),
        (Standing::Serving, Protocol::Udp, Watch, Watch),
        (Standing::OutsideClosure, Protocol::Tcp, Watch, End),
        (Standing::OutsideClosure, Protocol::Udp, Watch, End),
        (Standing::Withdrawn, Protocol::Tcp, Fate::Keep, Fate::Keep),
        (Standing::Withdrawn, Protocol::Udp, End, End),
    ] {
        let what = format!("{standing:?} {protocol}");
        assert_eq!(standing.fate(protocol, Keep), keep, "{what}");
        assert_eq!(standing.fate(protocol, Reset), reset, "{what}");
    }
}

#[test]
fn a_compile_says_which_backends_went_and_nothing_by_growing() {
    let suspects = |backends: &[&str]| {
        let mut suspects = Suspects::default();
        for backend in backends {
            suspects.add(Protocol::Tcp, backend.parse().unwrap());
        }
        suspects
    };
    let all = suspects(&["10.1.0.2:8080", "10.1.1.2:8080", "10.2.0.2:8080"]);
    let mut world = World::web(None);
    world.compile();
    assert_eq!(world.lost, Suspects::default());
    edit_slice(&mut world, |slice| {
        slice.endpoints.edit(|all| all[0].is_ready = false)
    });
    world.compile();
    assert_eq!(world.lost, suspects(&["10.1.0.2:8080"]));
    edit_slice(&mut world, |slice| {
        slice.endpoints.edit(|all| all[0].is_ready = true)
    });
    world.compile();
    assert_eq!(world.lost, Suspects::default());
    world.service("web", |service| {
        service.cluster_ips = [ip("10.96.0.11")].into()
    });
    world.compile();
    assert_eq!(world.lost, all);
    let services = std::mem::take(&mut world.snapshot.services);
    world.compile();
    assert_eq!(world.lost, all);
    world.snapshot.services = services;
    world.compile();
    assert_eq!(world.lost, Suspects::default());
}
