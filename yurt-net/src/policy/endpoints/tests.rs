use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use crate::model::{NamespacedName, Touched, TrafficPolicy};
use crate::policy::compile;
use crate::policy::fixtures::World;

/// Endpoints 10.1.0.0 and so on; those up to `here` are on this node.
fn world(here: u8, all: u8) -> World {
    let mut world = World::new();
    world.service("web", |_| ());
    let addresses: Vec<String> = (0..all).map(|last| format!("10.1.0.{last}")).collect();
    let endpoints: Vec<_> = (0..)
        .zip(&addresses)
        .map(|(last, address)| {
            let node = if last < here { "a1" } else { "a2" };
            (address.as_str(), Some(node))
        })
        .collect();
    world.slice("web-1", "web", &endpoints);
    world
}

fn selected(world: &mut World) -> Vec<String> {
    let all = world.selected();
    let all = all.iter().filter_map(|at| at.strip_suffix(":8080"));
    all.filter_map(|at| at.strip_prefix("10.1.0."))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_backend_whose_probe_fails_is_left_out_and_is_back_when_it_answers() {
    let mut world = world(2, 3);
    world.failing(&["10.1.0.1"]);
    assert_eq!(selected(&mut world), ["0", "2"]);
    assert_eq!(
        world.dropped(),
        ["10.1.0.1:8080 a probe fails, and the source is stale"]
    );
    world.failing(&[]);
    assert_eq!(selected(&mut world), ["0", "1", "2"]);
    assert_eq!(world.dropped(), [""; 0]);
}

#[test]
fn neither_the_last_nor_more_than_half_of_a_set_are_left_out() {
    for (here, all, expected) in [
        (1, 1, vec!["0"]),
        (2, 2, vec!["1"]),
        (3, 3, vec!["1", "2"]),
        (4, 4, vec!["2", "3"]),
        // What others say of their own nodes stands.
        (0, 2, vec!["0", "1"]),
        (1, 2, vec!["1"]),
    ] {
        let mut world = world(here, all);
        world.failing(&["10.1.0.0", "10.1.0.1", "10.1.0.2", "10.1.0.3"]);
        assert_eq!(selected(&mut world), expected, "{here} of {all}");
    }
}

#[test]
fn each_policy_has_a_set_of_its_own() {
    let mut world = world(1, 3);
    world.failing(&["10.1.0.0"]);
    assert_eq!(selected(&mut world), ["1", "2"]);
    // Of those on this node it is the last one.
    world.service("web", |service| {
        service.internal_policy = TrafficPolicy::Local;
    });
    assert_eq!(selected(&mut world), ["0"]);
}

#[test]
fn a_backend_that_is_no_pod_but_stands_where_one_fails_is_left_out_by_a_known_table_as_by_a_new_one()
 {
    let mut world = world(1, 2);
    let name = NamespacedName::new("default", "web-1");
    assert!(world.snapshot.slices[&name].pods.is_empty());
    assert_eq!(selected(&mut world), ["0", "1"]);
    world.failing(&["10.1.0.0"]);
    assert_eq!(selected(&mut world), ["1"]);
}

#[test]
fn only_services_with_endpoints_here_are_compiled_again() {
    let mut world = world(1, 2);
    world.service("api", |service| {
        service.cluster_ips = ["10.96.0.20".parse().unwrap()].into();
    });
    world.slice("api-1", "api", &[("10.1.0.0", Some("a2"))]);
    let before = world.compile();
    world.failing(&["10.1.0.0"]);
    let after = world.compile();
    assert!(Arc::ptr_eq(&before.services[0], &after.services[0]));
    assert!(!Arc::ptr_eq(&before.services[1], &after.services[1]));
}

proptest! {
    #[test]
    fn what_is_left_is_at_least_half_and_whoever_goes_fails_here(
        here in 0u8..6,
        elsewhere in 0u8..4,
        failing in prop::collection::btree_set(0u8..9, 0..9),
    ) {
        let all = here + elsewhere;
        let mut world = world(here, all);
        let names: Vec<_> = failing.iter().map(|last| format!("10.1.0.{last}")).collect();
        world.failing(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let left: BTreeSet<u8> = selected(&mut world).iter().map(|last| last.parse().unwrap()).collect();
        prop_assert!(2 * left.len() >= usize::from(all));
        prop_assert!(left.is_empty() == (all == 0));
        for last in 0..all {
            let may_go = last < here && failing.contains(&last);
            prop_assert!(may_go || left.contains(&last));
        }
    }
}

#[test]
fn an_address_of_the_wrong_family_costs_its_endpoint_and_not_the_slice() {
    let mut world = World::new();
    world.service("web", |_| ());
    world.slice("web-1", "web", &[("10.1.0.2", None), ("fd00::2", None)]);
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
    assert_eq!(
        world.rejections(),
        [
            "Service web: EndpointSlice web-1: an endpoint is left out: fd00::2 in a slice of addressType IPv4"
        ]
    );
}

#[test]
fn nothing_is_sent_to_an_address_that_no_host_has() {
    let mut world = World::new();
    world.service_cidr("all", &["10.96.0.0/16"]);
    world.service("web", |_| ());
    for bad in [
        "0.0.0.0",
        "127.0.0.1",
        "127.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "10.96.0.99",
    ] {
        world.slice("web-1", "web", &[("10.1.0.2", None), (bad, None)]);
        assert_eq!(world.selected(), ["10.1.0.2:8080"], "{bad}");
        let said = world.rejections().join("\n");
        assert!(said.contains(&format!("left out: {bad} is ")), "{said}");
        world.slice("web-1", "web", &[(bad, None)]);
        assert_eq!(world.selected(), [""; 0], "{bad} alone");
    }
}

#[test]
fn what_a_slice_brings_that_is_left_out_is_told_at_once_and_no_longer_when_it_is_gone() {
    let mut world = World::new();
    world.service("web", |_| ());
    world.slice("web-1", "web", &[("10.1.0.2", None)]);
    assert_eq!(world.rejections(), [""; 0]);
    let only = Touched::Slices([NamespacedName::new("default", "web-1")].into());
    for (second, told) in [("127.0.0.1", 1), ("10.1.0.3", 0), ("127.0.0.1", 1)] {
        world.slice("web-1", "web", &[("10.1.0.2", None), (second, None)]);
        let World {
            snapshot,
            config,
            view,
            memory,
            memo,
            ..
        } = &mut world;
        let compiled = compile(snapshot, &only, config, view, memory, memo);
        assert_eq!(compiled.table.rejections.len(), told, "{second}");
        assert_eq!(compiled.new_rejections.len(), told, "{second}");
    }
}
