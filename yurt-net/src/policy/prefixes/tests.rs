//! The prefixes of ClusterIPs.

use super::pods_among_services;
use crate::policy::fixtures::{World, ip};
use crate::table::MAX_PREFIXES;

/// What is said of a node `a1` with Pods in 10.1.0.0/24.
fn said(edit: impl FnOnce(&mut World)) -> Option<String> {
    let mut world = World::web(None);
    edit(&mut world);
    let table = world.compile();
    pods_among_services(&world.snapshot, &table)
}

#[test]
fn a_pod_cidr_that_shares_addresses_with_a_service_cidr_is_told() {
    for cidr in ["10.0.0.0/8", "10.1.0.0/24", "10.1.0.128/25"] {
        let said = said(|world| world.service_cidr("all", &[cidr, "fd00::/112"]));
        let said = said.unwrap_or_default();
        let expected = format!("podCIDR 10.1.0.0/24 of Node a1 overlaps the service CIDR {cidr}:");
        assert!(said.starts_with(&expected), "{said}");
    }
    assert_eq!(
        said(|world| world.service_cidr("all", &["10.96.0.0/12"])),
        None
    );
    assert_eq!(said(|_| ()), None);
}

#[test]
fn so_is_one_of_another_node_if_the_own_one_is_in_order() {
    let said = said(|world| {
        world.service_cidr("all", &["10.96.0.0/12"]);
        world.node("a0", None, |node| {
            node.pod_cidrs = vec![
                "fd00:1::/64".parse().unwrap(),
                "10.97.0.0/24".parse().unwrap(),
            ];
        });
    });
    let said = said.unwrap_or_default();
    assert!(
        said.starts_with("podCIDR 10.97.0.0/24 of Node a0 overlaps"),
        "{said}"
    );
}

#[test]
fn where_nobody_says_what_the_service_cidr_is_a_cluster_ip_among_pods_is_told() {
    for cidr in [None, Some("10.96.0.0/12")] {
        let said = said(|world| {
            world.service_cidr("all", cidr.as_slice());
            world.service("web", |service| {
                service.cluster_ips = [ip("10.1.0.77")].into()
            });
        });
        let said = said.unwrap_or_default();
        assert!(
            said.starts_with("podCIDR 10.1.0.0/24 of Node a1 contains the ClusterIP 10.1.0.77:"),
            "{said}"
        );
    }
}

fn prefixes(world: &mut World) -> (Vec<String>, bool) {
    let found = world.compile().cluster_prefixes;
    let prefixes = found.prefixes.iter().map(ToString::to_string).collect();
    (prefixes, found.are_service_cidrs)
}

#[test]
fn cluster_prefixes_are_the_flag_else_the_objects_else_a_cover() {
    let mut world = World::web(None);
    let known = |prefixes: &[&str], are_cidrs| {
        let prefixes: Vec<_> = prefixes.iter().map(|&p| p.to_owned()).collect();
        (prefixes, are_cidrs)
    };
    assert_eq!(prefixes(&mut world), known(&["10.96.0.10/32"], false));
    world.service("api", |service| {
        service.cluster_ips = [ip("10.96.0.1")].into()
    });
    assert_eq!(prefixes(&mut world), known(&["10.96.0.0/28"], false));
    world.service_cidr("kubernetes", &["10.96.0.0/12", "fd00:96::/108"]);
    assert_eq!(
        prefixes(&mut world),
        known(&["10.96.0.0/12", "fd00:96::/108"], true)
    );
    world.config.service_cidrs = vec!["10.96.0.0/28".parse().unwrap()];
    assert_eq!(prefixes(&mut world), known(&["10.96.0.0/28"], true));
    // A ClusterIP outside what the flag says still counts, exactly.
    world.service("old", |service| {
        service.cluster_ips = [ip("10.90.0.1")].into()
    });
    assert_eq!(
        prefixes(&mut world),
        known(&["10.90.0.1/32", "10.96.0.0/28"], true)
    );
    assert_eq!(world.rejections(), [""; 0]);
}

#[test]
fn too_many_service_cidrs_are_covered_and_rejected() {
    let mut world = World::web(None);
    for block in 0..20 {
        world.service_cidr(
            &format!("cidr-{block:02}"),
            &[&format!("10.{}.0.0/24", 100 + block * 2)],
        );
    }
    let (found, are_service_cidrs) = prefixes(&mut world);
    assert_eq!((found.len(), are_service_cidrs), (MAX_PREFIXES, false));
    assert_eq!(world.rejections().len(), 1);
}

#[test]
fn two_halves_of_a_service_cidr_are_one_prefix_and_a_part_of_one_is_none() {
    let mut world = World::web(None);
    world.service_cidr("low", &["10.96.0.0/25", "10.96.0.64/26"]);
    world.service_cidr("high", &["10.96.0.128/25"]);
    assert_eq!(
        prefixes(&mut world),
        (vec!["10.96.0.0/24".to_owned()], true)
    );
}

#[test]
fn many_cluster_ips_outside_the_service_cidrs_switch_refusing_off_and_say_so() {
    let mut world = World::web(None);
    world.service_cidr("wrong", &["172.16.0.0/24"]);
    for n in 0..20 {
        let cluster_ip = ip(&format!("10.{}.0.1", n * 2));
        world.service(&format!("s{n}"), |service| {
            service.cluster_ips = [cluster_ip].into()
        });
    }
    let (found, are_service_cidrs) = prefixes(&mut world);
    assert!(found.len() <= MAX_PREFIXES);
    assert!(!are_service_cidrs);
    assert_eq!(
        world.rejections(),
        [
            "ServiceCIDR wrong: many ClusterIPs are outside the service CIDRs: \
          connections to unallocated ClusterIPs are not refused"
        ]
    );
}
