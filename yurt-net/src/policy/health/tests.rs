//! Through `compile`: what a load balancer hears on node a1.

use super::*;
use crate::model::{Service, ServiceType};
use crate::policy::Place;
use crate::policy::fixtures::{World, frontends, ip, port};

/// A load balancer's Service with this health check port, whose policy is Local.
fn balanced(service: &mut Service, port: u16) {
    service.service_type = ServiceType::LoadBalancer;
    service.external_policy = TrafficPolicy::Local;
    service.health_check_node_port = port;
}

/// `web` with its endpoints 10.1.0.2 on a1, 10.1.1.2 on a2, 10.2.0.2 on b1.
fn world() -> World {
    let mut world = World::web(None);
    world.service("web", |service| balanced(service, 30999));
    world
}

/// `port name count` of each health check.
fn checks(world: &mut World) -> Vec<String> {
    let checks = world.compile().health_checks.into_iter();
    checks
        .map(|check| {
            let HealthCheck {
                port,
                service,
                local_endpoints,
            } = check;
            format!("{port} {} {local_endpoints}", service.name)
        })
        .collect()
}

#[test]
fn a_load_balancer_is_told_how_many_endpoints_of_this_node_are_ready() {
    let mut world = world();
    assert_eq!(checks(&mut world), ["30999 web 1"]);
    // One address has one vote, whatever its ports and slices; what is not ready has none.
    world.slice(
        "web-2",
        "web",
        &[("10.1.0.2", Some("a1")), ("10.1.0.3", Some("a1"))],
    );
    assert_eq!(checks(&mut world), ["30999 web 2"]);
    world.slice_with("web-2", "web", &[("10.1.0.3", Some("a1"))], |slice| {
        let mut endpoints: Vec<_> = slice.endpoints.iter().collect();
        for endpoint in &mut endpoints {
            (endpoint.is_ready, endpoint.is_terminating) = (false, true);
        }
        slice.endpoints = endpoints.into();
    });
    assert_eq!(checks(&mut world), ["30999 web 1"]);
    world.slice("web-1", "web", &[("10.1.1.2", Some("a2"))]);
    assert_eq!(checks(&mut world), ["30999 web 0"]);
}

#[test]
fn a_service_without_a_load_balancer_on_this_node_has_no_health_check() {
    let others: [fn(&mut Service); 6] = [
        |service| service.external_policy = TrafficPolicy::Cluster,
        |service| service.service_type = ServiceType::NodePort,
        |service| service.health_check_node_port = 0,
        |service| service.is_discarded = true,
        |service| service.is_proxied_elsewhere = true,
        |service| service.listen = Some("-hangzhou,*".into()),
    ];
    for other in others {
        let mut world = world();
        assert_eq!(checks(&mut world).len(), 1);
        world.service("web", other);
        assert!(checks(&mut world).is_empty());
        world.service("web", |service| {
            balanced(service, 30999);
            (service.is_discarded, service.is_proxied_elsewhere) = (false, false);
            service.listen = None;
        });
        assert_eq!(checks(&mut world), ["30999 web 1"], "it comes back");
    }
    let mut world = world();
    world.pool_service("web", "shanghai", &["203.0.113.9"]);
    assert!(checks(&mut world).is_empty(), "it is another pool's");
    world.pool_service("web", "hangzhou", &["203.0.113.10"]);
    assert_eq!(checks(&mut world).len(), 1);
}

#[test]
fn a_health_check_takes_no_port_by_which_the_node_is_reached() {
    let mut world = world();
    world.config.protect.servers = vec!["192.0.2.1:6443".parse().unwrap()];
    world.config.protect.agent_ports = vec![10249, 10256];
    world.config.protect.given = vec!["192.0.2.77:31000".parse::<Place>().unwrap()];
    for taken in [22, 6443, 10250, 10256, 10249, 10261, 10268, 31000] {
        world.service("web", |service| service.health_check_node_port = taken);
        assert!(checks(&mut world).is_empty(), "{taken}");
        let said = format!("Service web: healthCheckNodePort {taken} is ");
        let rejections = world.rejections();
        assert!(
            rejections.iter().any(|one| one.starts_with(&said)),
            "{rejections:?}"
        );
        assert_eq!(
            world.compile().services.len(),
            1,
            "the rest of it is served"
        );
    }
    world.service("web", |service| service.health_check_node_port = 31001);
    assert_eq!(checks(&mut world).len(), 1);
    assert!(world.rejections().is_empty());
}

#[test]
fn an_address_of_this_node_that_is_protected_as_a_whole_leaves_no_port_to_health_checks() {
    let mut world = world();
    world.config.protect.given = vec!["198.51.100.1".parse::<Place>().unwrap()];
    assert_eq!(checks(&mut world).len(), 1, "it is another machine's");
    world.config.protect.given = vec!["127.0.0.1".parse::<Place>().unwrap()];
    assert!(checks(&mut world).is_empty());
}

#[test]
fn of_two_services_with_one_port_the_older_one_has_it_and_a_nodeport_comes_before_both() {
    let mut world = world();
    world.service("web", |service| service.created_at = 20);
    world.service("app", |service| {
        balanced(service, 30999);
        service.cluster_ips = ["10.96.0.11".parse().unwrap()].into();
        service.created_at = 30;
    });
    assert_eq!(checks(&mut world), ["30999 web 1"]);
    let lost = "Service app: healthCheckNodePort 30999 is that of default/web, which comes first";
    assert_eq!(world.rejections(), [lost]);
    // A slice of the one that has it not changes nothing.
    world.slice(
        "app-1",
        "app",
        &[("10.1.0.7", Some("a1")), ("10.1.0.8", Some("a1"))],
    );
    assert_eq!(checks(&mut world), ["30999 web 1"]);
    world.service("web", |service| service.created_at = 40);
    assert_eq!(checks(&mut world), ["30999 app 2"]);
    world.service("np", |service| {
        service.service_type = ServiceType::NodePort;
        service.cluster_ips = ["10.96.0.12".parse().unwrap()].into();
        service.ports = [port("http", 80, 30999)].into();
    });
    assert!(checks(&mut world).is_empty());
    assert_eq!(world.rejections().len(), 2);
}

/// k3s' ServiceLB and kube-vip write the nodes' addresses into the status, and the ports are the tenant's choice.
#[test]
fn a_load_balancer_at_an_address_of_this_node_takes_no_health_check_port() {
    let mut world = world();
    world.view.local_addresses = Some(["192.0.2.11", "10.1.0.1"].map(ip).into());
    let addresses = ["192.0.2.11", "10.1.0.1", "203.0.113.7"].map(ip);
    world.service("thief", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.cluster_ips = [ip("10.96.0.11")].into();
        service.load_balancer_ips = addresses.into();
        service.ports = [port("http", 30999, 0)].into();
    });
    let thief = |world: &mut World| {
        let table = world.compile();
        let mut entries = table.services.iter();
        frontends(entries.find(|entry| &*entry.key.name == "thief").unwrap())
    };
    let rest = [
        "ClusterIP 10.96.0.11:30999",
        "LoadBalancer 203.0.113.7:30999",
    ];
    assert_eq!(thief(&mut world), rest);
    assert_eq!(checks(&mut world), ["30999 web 1"]);
    let told = |address| {
        format!(
            "Service thief: {address}:30999/TCP belongs to default/web: it is its healthCheckNodePort, at an address of \
             this node"
        )
    };
    assert_eq!(world.rejections(), ["10.1.0.1", "192.0.2.11"].map(told));
    // It follows the port.
    world.service("web", |service| service.health_check_node_port = 30998);
    assert_eq!(thief(&mut world).len(), 4);
    assert!(world.rejections().is_empty());
    world.service("web", |service| service.health_check_node_port = 30999);
    assert_eq!(thief(&mut world), rest);
    // As an external IP it is not even asked for.
    world.service("thief", |service| {
        service.service_type = ServiceType::ClusterIp;
        service.load_balancer_ips = [].into();
        service.external_ips = addresses.into();
    });
    let rest = ["ClusterIP 10.96.0.11:30999", "ExternalIP 203.0.113.7:30999"];
    assert_eq!(thief(&mut world), rest);
    // The listener is one of TCP.
    world.service("thief", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = addresses.into();
        service.external_ips = [].into();
        service.ports[0].protocol = Protocol::Udp;
    });
    assert_eq!(thief(&mut world).len(), 4);
}

#[test]
fn a_node_has_no_more_health_checks_than_it_has_sockets_for() {
    let asked = |number: u16| {
        let service = NamespacedName::new("default", format!("web-{number}"));
        let check = HealthCheck {
            port: 31000 + number,
            service,
            local_endpoints: 1,
        };
        (u64::from(number) + 1, check)
    };
    let most = u16::try_from(MAX_HEALTH_CHECKS).unwrap();
    let all: Vec<Asked> = (0..=most).rev().map(asked).collect();
    let (served, refused) = settle(all, [].iter(), MAX_HEALTH_CHECKS);
    assert_eq!(served.len(), MAX_HEALTH_CHECKS);
    assert!(served.is_sorted_by_key(|check| check.port));
    let youngest = NamespacedName::new("default", format!("web-{most}"));
    assert_eq!(
        refused,
        [(youngest, Refusal::TooMany(MAX_HEALTH_CHECKS))].into()
    );
}

#[test]
fn one_namespace_with_many_health_checks_closes_none_of_another() {
    let most = u16::try_from(MAX_HEALTH_CHECKS).unwrap();
    let asked = |number: u16, namespace: &str| {
        let check = HealthCheck {
            port: 30000 + number,
            service: NamespacedName::new(namespace, format!("web-{number}")),
            local_endpoints: 1,
        };
        (u64::from(number) + 1, check)
    };
    let many = (0..most + 100).map(|number| asked(number, "many"));
    let few = (2000..2003).map(|number| asked(number, "few"));
    let system = [asked(2500, "kube-system")];
    let all: Vec<Asked> = many.chain(few).chain(system).collect();
    let (served, refused) = settle(all, [].iter(), MAX_HEALTH_CHECKS);
    let count = |namespace: &str| {
        let of = |check: &&HealthCheck| &*check.service.namespace == namespace;
        served.iter().filter(of).count()
    };
    assert_eq!(
        ["kube-system", "few", "many"].map(count),
        [1, 3, MAX_HEALTH_CHECKS - 4]
    );
    assert!(served.is_sorted_by_key(|check| check.port));
    assert_eq!(refused.len(), 104);
    // Its youngest are left out.
    let is_young = |service: &NamespacedName| {
        let number: u16 = service.name["web-".len()..].parse().unwrap();
        &*service.namespace == "many" && number >= most - 4
    };
    assert!(refused.keys().all(is_young), "{refused:?}");
}

#[test]
fn where_the_agent_may_open_few_files_there_are_fewer_health_checks_and_who_has_none_is_told_why() {
    let mut world = world();
    world.config.max_health_checks = 2;
    for n in 1..4 {
        world.service(&format!("web-{n}"), |service| {
            balanced(service, 31000 + n);
            service.cluster_ips = [ip(&format!("10.96.1.{n}"))].into();
            service.created_at = 20 + u64::from(n);
        });
    }
    world.service("web", |service| service.created_at = 10);
    assert_eq!(checks(&mut world), ["30999 web 1", "31001 web-1 0"]);
    let told = |n| {
        format!(
            "Service web-{n}: healthCheckNodePort 3100{n} is one too many: namespaces share the 2 of this node evenly, and \
             the agent may open no files for more: raise its limit of open files (RLIMIT_NOFILE)"
        )
    };
    assert_eq!(world.rejections(), [told(2), told(3)]);
}

/// The memo has no say: what is counted in place is what a first compile counts.
#[test]
fn a_slice_that_changes_is_counted_as_if_all_were_new() {
    let mut world = world();
    world.compile();
    for here in [0, 3, 1] {
        let endpoints: Vec<String> = (0..here).map(|n| format!("10.1.0.{}", 2 + n)).collect();
        let endpoints: Vec<_> = endpoints.iter().map(|one| (&**one, Some("a1"))).collect();
        world.slice("web-1", "web", &endpoints);
        let followed = world.compile().health_checks;
        world.memo = Default::default();
        assert_eq!(world.compile().health_checks, followed);
        assert_eq!(followed[0].local_endpoints, here);
    }
}
