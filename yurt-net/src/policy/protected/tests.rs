use std::collections::BTreeMap;

use super::super::fixtures::{World, frontends, ip, only, port};
use super::super::inputs::{ExternalIps, Place};
use super::*;
use crate::model::ServiceType;
use crate::policy::Networks;

/// `web`, whose owner has written these external IPs, on a node that speaks to the apiserver at 203.0.113.6:6443.
fn written(external: &[&str], of_port: u16) -> World {
    let mut world = World::web(None);
    world.config.protect.servers = vec!["203.0.113.6:6443".parse().unwrap()];
    world.node("a2", None, |node| {
        node.internal_ips = vec![ip("192.0.2.12")];
        node.external_ips = vec![ip("203.0.113.12")];
    });
    world.service("web", |service| {
        service.external_ips = external.iter().map(|address| ip(address)).collect();
        service.ports = [port("http", of_port, 0)].into();
    });
    world
}

fn given(world: &mut World) -> Vec<String> {
    frontends(only(&world.compile()))
}

#[test]
fn an_external_ip_takes_no_address_by_which_nodes_are_reached_and_the_rest_is_served() {
    let mut world = written(
        &[
            "192.0.2.11",
            "192.0.2.12",
            "203.0.113.12",
            "203.0.113.6",
            "169.254.2.1",
            "169.254.169.254",
            "192.0.0.8",
            "198.51.100.7",
        ],
        6443,
    );
    world.view.local_addresses = Some([ip("192.0.2.11"), ip("10.1.0.1")].into());
    let rest = ["ClusterIP 10.96.0.10:6443", "ExternalIP 198.51.100.7:6443"];
    assert_eq!(given(&mut world), rest);
    let told = world.rejections();
    for (address, why) in [
        ("192.0.2.11", "an address of this node"),
        ("192.0.2.12", "an address of Node a2"),
        ("203.0.113.12", "an address of Node a2"),
        ("203.0.113.6:6443", "where nodes reach the apiserver"),
        ("169.254.2.1", "a link-local address"),
        ("169.254.169.254", "a link-local address"),
        ("192.0.0.8", "the address of the self-test"),
    ] {
        let line = format!("Service web: ExternalIP {address} is {why}");
        assert!(
            told.iter().any(|one| one.starts_with(&line)),
            "{line}: {told:?}"
        );
    }
    assert_eq!(told.len(), 7, "{told:?}");
}

#[test]
fn an_address_that_is_only_on_an_interface_is_this_nodes_too() {
    let mut world = written(&["198.51.100.1"], 80);
    assert_eq!(given(&mut world).len(), 2);
    world.view.local_addresses = Some([ip("192.0.2.11"), ip("198.51.100.1")].into());
    assert_eq!(given(&mut world), ["ClusterIP 10.96.0.10:80"]);
}

/// The author would answer for the Pod: to the kubelet, which asks whether it lives, and to all who dial it directly.
#[test]
fn an_external_ip_takes_no_address_of_pods() {
    let mut world = written(&["10.1.0.2", "10.3.0.2", "198.51.100.7"], 8080);
    world.node("a2", None, |node| {
        node.pod_cidrs = vec!["10.3.0.0/24".parse().unwrap()]
    });
    let rest = ["ClusterIP 10.96.0.10:8080", "ExternalIP 198.51.100.7:8080"];
    assert_eq!(given(&mut world), rest);
    let told = |address, of| {
        format!(
            "Service web: ExternalIP {address} is an address of Pods ({of}), which no external IP and no load balancer may take"
        )
    };
    let told = [
        told("10.1.0.2", "10.1.0.0/24 of Node a1"),
        told("10.3.0.2", "10.3.0.0/24 of Node a2"),
    ];
    assert_eq!(world.rejections(), told);
}

/// Who writes a load balancer's status comes between the kubelet and its Pods no more than who writes external IPs.
#[test]
fn a_load_balancer_takes_no_address_of_pods_and_is_served_at_nodes() {
    let mut world = written(&[], 8080);
    world.view.local_addresses = Some([ip("192.0.2.11"), ip("10.1.0.1")].into());
    world.view.pods = Arc::new([ip("10.9.0.2")].into());
    world.view.pod_routes = routes(&["10.8.0.0/24", "192.0.2.0/24"]);
    world.slice("kubelet", "kubelet", &[("192.0.2.12", None)]);
    in_kube_system(&mut world, "kubelet");
    for (address, is_served) in [
        ("10.1.0.2", false),
        ("10.9.0.2", false),
        ("10.8.0.2", false),
        ("192.0.2.13", false),
        ("198.51.100.7", true),
        ("192.0.2.11", true),
        ("192.0.2.12", true),
        ("10.1.0.1", true),
    ] {
        for pool in [false, true] {
            world.service("web", |service| {
                service.service_type = ServiceType::LoadBalancer;
                service.load_balancer_ips = [ip(address)].into();
            });
            world.snapshot.pool_services.clear();
            if pool {
                world.pool_service("web", "hangzhou", &[address]);
            }
            let all = given(&mut world);
            assert_eq!(all.len(), 1 + usize::from(is_served), "{address}");
            let told = world.rejections();
            let is_told = told
                .iter()
                .any(|reason| reason.contains("no load balancer may take"));
            assert_eq!(is_told, !is_served, "{told:?}");
        }
    }
    // A Pod that comes takes the address from a load balancer that has it.
    world.service("web", |service| {
        service.load_balancer_ips = [ip("198.51.100.7")].into();
    });
    world.pool_service("web", "hangzhou", &["198.51.100.8"]);
    assert_eq!(given(&mut world).len(), 2);
    world.view.pods = Arc::new([ip("198.51.100.8")].into());
    assert_eq!(given(&mut world).len(), 1);
}

fn routes(all: &[&str]) -> Arc<Networks<()>> {
    let all = all.iter().map(|text| (text.parse().unwrap(), ()));
    Arc::new(all.collect())
}

/// Puts a slice of the namespace `default` into kube-system.
fn in_kube_system(world: &mut World, slice: &str) {
    let name = NamespacedName::new("default", slice);
    let mut slice = world.snapshot.slices.remove(&name).unwrap();
    Arc::make_mut(&mut slice).name.namespace = "kube-system".into();
    let name = slice.name.clone();
    world.snapshot.slices.insert(name, slice);
}

/// As Calico and ptp have it, whose Nodes have no podCIDR that counts.
#[test]
fn an_external_ip_takes_no_address_to_which_a_route_of_this_node_leads_at_a_pod() {
    let mut world = written(&["10.9.0.2", "10.8.0.9", "10.9.0.3"], 8080);
    let all = given(&mut world);
    assert_eq!(all.len(), 4);
    world.view.pod_routes = routes(&["10.9.0.2/32", "10.8.0.0/24"]);
    let rest = ["ClusterIP 10.96.0.10:8080", "ExternalIP 10.9.0.3:8080"];
    assert_eq!(given(&mut world), rest);
    let told = |address, network| {
        format!(
            "Service web: ExternalIP {address} is an address of Pods ({network} by a route of this node), which no external \
             IP and no load balancer may take"
        )
    };
    assert_eq!(
        world.rejections(),
        [
            told("10.8.0.9", "10.8.0.0/24"),
            told("10.9.0.2", "10.9.0.2/32")
        ]
    );
    world.view.pod_routes = Arc::default();
    assert_eq!(given(&mut world), all);
}

/// Pods of other nodes are known by endpoints alone, and whose word that is matters.
#[test]
fn an_external_ip_takes_no_endpoint_of_kube_system_and_an_endpoint_of_a_tenant_takes_no_external_ip()
 {
    let mut world = written(&["10.9.0.2"], 8080);
    // Of a Service of another tenant, who may write what he likes.
    world.slice("dns", "dns", &[("10.9.0.2", None)]);
    let all = given(&mut world);
    assert_eq!(all.len(), 2);
    in_kube_system(&mut world, "dns");
    assert_eq!(given(&mut world), ["ClusterIP 10.96.0.10:8080"]);
    assert_eq!(
        world.rejections(),
        [
            "Service web: ExternalIP 10.9.0.2 is the address of an endpoint in kube-system, which no external IP of another \
             namespace may take"
        ]
    );
    // The endpoint moves.
    world.slice("dns", "dns", &[("10.9.0.3", None)]);
    in_kube_system(&mut world, "dns");
    assert_eq!(given(&mut world), all);
    world.slice("dns", "dns", &[("10.9.0.2", None)]);
    in_kube_system(&mut world, "dns");
    // Who writes there is trusted with it.
    let name = NamespacedName::new("default", "web");
    let mut service = world.snapshot.services.remove(&name).unwrap();
    Arc::make_mut(&mut service).name.namespace = "kube-system".into();
    let name = service.name.clone();
    world.snapshot.services.insert(name, service);
    assert_eq!(given(&mut world), all);
}

/// Where the network hands out addresses by itself Nodes have no podCIDR, and the ledger knows those of this node.
#[test]
fn an_external_ip_takes_no_address_that_a_pod_of_this_node_has_in_the_ledger() {
    let mut world = written(&["10.9.0.2", "10.9.0.3"], 8080);
    world.service("other", |service| {
        service.cluster_ips = [ip("10.96.0.11")].into()
    });
    let of_web = |world: &mut World| {
        let table = world.compile();
        assert_eq!(table.services.len(), 2);
        frontends(&table.services[1])
    };
    let all = of_web(&mut world);
    assert_eq!(all.len(), 3);
    world.view.pods = Arc::new([ip("10.9.0.2"), ip("10.96.0.11")].into());
    let rest = ["ClusterIP 10.96.0.10:8080", "ExternalIP 10.9.0.3:8080"];
    assert_eq!(of_web(&mut world), rest);
    assert_eq!(
        world.rejections(),
        [
            "Service web: ExternalIP 10.9.0.2 is the address of a Pod of this node, which no external IP and no load \
             balancer may take"
        ]
    );
    world.view.pods = Arc::default();
    assert_eq!(of_web(&mut world), all);
    assert!(world.rejections().is_empty());
}

#[test]
fn yurthubs_ipv6_address_is_not_an_external_ip() {
    let mut world = written(&["fd00::2:1", "2001:db8::7"], 10268);
    world.service("web", |service| {
        service.cluster_ips = [ip("10.96.0.10"), ip("fd00:96::10")].into();
    });
    assert_eq!(given(&mut world).len(), 3);
    assert_eq!(
        world.rejections(),
        ["Service web: ExternalIP fd00::2:1 is YurtHub's address"]
    );
}

#[test]
fn where_the_apiservers_say_that_they_are_nothing_else_is() {
    let mut world = written(&["203.0.113.7"], 8080);
    world.slice("kubernetes", "kubernetes", &[("203.0.113.7", None)]);
    assert_eq!(given(&mut world), ["ClusterIP 10.96.0.10:8080"]);
    // Another port of the same machine is not the apiserver.
    world.service("web", |service| {
        service.ports = [port("http", 80, 0)].into()
    });
    assert_eq!(given(&mut world).len(), 2);
}

/// k3s' ServiceLB and kube-vip write the nodes' own addresses.
#[test]
fn a_load_balancer_on_the_nodes_addresses_is_served_but_not_on_their_lifelines() {
    let mut world = written(&[], 80);
    world.config.protect.given = vec!["192.0.2.11:9100".parse().unwrap()];
    world
        .config
        .protect
        .servers
        .push("192.0.2.11:6443".parse().unwrap());
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip("192.0.2.11"), ip("192.0.2.12")].into();
    });
    assert_eq!(given(&mut world).len(), 3);
    let at_both = [22, 10250, 10256, 10261, 10267, 10268, 10269, 10249];
    let here = [6443, 9100];
    for (ports, left) in [(&at_both[..], 1), (&here, 2)] {
        for &number in ports {
            world.service("web", |service| {
                service.ports = [port("http", number, 0)].into()
            });
            assert_eq!(given(&mut world).len(), left, "{number}");
        }
    }
    world.service("web", |service| {
        service.load_balancer_ips = [ip("169.254.2.1"), ip("fd00::2:1")].into();
        service.cluster_ips = [ip("10.96.0.10"), ip("fd00:96::10")].into();
    });
    assert_eq!(given(&mut world).len(), 2);
}

/// Whoever answers for the nameserver says where the apiserver is.
#[test]
fn an_external_ip_takes_no_nameserver_of_the_node_at_the_ports_of_dns() {
    for (number, left) in [(53, 1), (853, 1), (80, 2)] {
        let mut world = written(&["198.51.100.53"], number);
        world.view.nameservers = [ip("198.51.100.53")].into();
        assert_eq!(given(&mut world).len(), left, "{number}");
    }
    // A DNS server of the cluster, which its nodes ask as well.
    let mut world = written(&[], 53);
    world.view.nameservers = [ip("10.96.0.10"), ip("198.51.100.53")].into();
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip("198.51.100.53")].into();
    });
    assert_eq!(given(&mut world).len(), 2);
    let protected = Protected::new(&world.snapshot, &world.config, &world.view);
    let whose = protected.whose(ip("198.51.100.53"));
    assert_eq!(whose, Some(Whose::Nameserver));
}

#[test]
fn a_node_port_is_no_lifeline_and_nothing_of_loopback() {
    let mut world = written(&[], 80);
    world
        .config
        .protect
        .servers
        .push("127.0.0.1:30443".parse().unwrap());
    for (number, is_served) in [
        (30080, true),
        (10250, false),
        (10261, false),
        (30443, false),
    ] {
        world.service("web", |service| {
            service.service_type = ServiceType::NodePort;
            service.ports = [port("http", 80, number)].into();
        });
        assert_eq!(
            given(&mut world).len(),
            1 + usize::from(is_served),
            "{number}"
        );
    }
}

/// systemd-resolved listens at 127.0.0.53, and a NodePort answers at all of 127.0.0.0/8.
#[test]
fn a_node_port_takes_nothing_that_is_protected_at_any_loopback_address_of_its_family() {
    let protect: [fn(&mut World); 3] = [
        |world| world.view.nameservers = [ip("127.0.0.53")].into(),
        |world| world.config.protect.servers = vec!["127.0.0.2:53".parse().unwrap()],
        |world| world.config.protect.given = vec!["127.1.2.3:53".parse().unwrap()],
    ];
    for protect in protect {
        for (number, is_served) in [(53, false), (30053, true)] {
            let mut world = written(&[], 80);
            protect(&mut world);
            world.service("web", |service| {
                service.service_type = ServiceType::NodePort;
                service.ports = [port("dns", 80, number)].into();
            });
            let all = given(&mut world);
            assert_eq!(all.len(), 1 + usize::from(is_served), "{all:?}");
            let told = world.rejections();
            let is_told = told
                .iter()
                .any(|reason| reason.contains("NodePort 192.0.2.11:53"));
            assert_eq!(is_told, !is_served, "{told:?}");
        }
    }
    // The other family's loopback is another address.
    let mut world = written(&[], 80);
    world.view.nameservers = [ip("::1")].into();
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = [port("dns", 80, 53)].into();
    });
    assert_eq!(given(&mut world).len(), 2);
}

/// k3s and kubeadm: a Pod's environment names the ClusterIP of default/kubernetes.
#[test]
fn the_cluster_ip_that_the_environment_calls_the_apiserver_is_served_to_default_kubernetes_alone() {
    for (name, is_served) in [("kubernetes", true), ("web", false)] {
        let mut world = World::new();
        world.config.protect.servers = vec!["10.96.0.1:443".parse().unwrap()];
        world.service(name, |service| {
            service.cluster_ips = [ip("10.96.0.1")].into();
            service.ports = [port("https", 443, 0)].into();
        });
        assert_eq!(given(&mut world).len(), usize::from(is_served), "{name}");
    }
}

#[test]
fn the_operator_narrows_which_external_ips_are_served() {
    for (flag, left) in [("all", 3), ("none", 1), ("198.51.100.0/24, fd00::/8", 2)] {
        let mut world = written(&["198.51.100.7", "203.0.113.9"], 80);
        world.config.protect.external_ips = flag.parse().unwrap();
        assert_eq!(given(&mut world).len(), left, "{flag}");
        assert_eq!(world.rejections().len(), 3 - left, "{flag}");
    }
    assert!("some".parse::<ExternalIps>().is_err());
    assert!("[fd00::1]".parse::<Place>().is_ok() && "fd00::1".parse::<Place>().is_ok());
    assert!("192.0.2.1:x".parse::<Place>().is_err());
}

#[test]
fn others_are_told_whose_an_address_is_and_all_that_can_be_named() {
    let world = written(&[], 80);
    let protected = Protected::new(&world.snapshot, &world.config, &world.view);
    assert_eq!(protected.whose(ip("192.0.2.11")), Some(Whose::ThisNode));
    assert_eq!(protected.whose(ip("203.0.113.6")), Some(Whose::Server));
    assert_eq!(protected.whose(ip("fd00::2:1")), Some(Whose::Hub));
    assert_eq!(protected.whose(ip("198.51.100.1")), None);
    let listed: BTreeMap<IpAddr, Whose> = protected.listed().collect();
    for (address, whose) in &listed {
        assert_eq!(protected.whose(*address).as_ref(), Some(whose));
    }
    for address in [
        "192.0.2.11",
        "192.0.2.12",
        "203.0.113.6",
        "169.254.2.1",
        "fd00::2:1",
    ] {
        assert!(listed.contains_key(&ip(address)), "{address}");
    }
    assert!(listed.contains_key(&SELF_TEST_V4.ip()) && listed.contains_key(&SELF_TEST_V6.ip()));
}

#[test]
fn a_pod_cidr_with_nodes_in_it_is_told_and_takes_no_external_ip_away() {
    for (cidr, is_wrong) in [
        ("0.0.0.0/0", true),
        ("203.0.113.0/24", true),
        ("192.0.0.0/8", true),
        ("198.51.100.0/24", false),
        ("::/0", true),
    ] {
        let mut world = written(&["198.51.100.7"], 80);
        world.node("z9", None, |node| {
            node.internal_ips = vec![ip("192.0.2.99")];
            node.pod_cidrs = vec![cidr.parse().unwrap()];
        });
        let is_taken = cidr.starts_with("198.51");
        assert_eq!(given(&mut world).len(), 2 - usize::from(is_taken), "{cidr}");
        let told = world.rejections();
        let of_node = told
            .iter()
            .filter(|told| told.starts_with("Node z9: podCIDR"));
        assert_eq!(of_node.count(), usize::from(is_wrong), "{cidr}: {told:?}");
    }
}
