//! Conflicts between Services.

use std::sync::Arc;

use crate::model::{NamespacedName, Protocol, Rejection, Service, ServiceType};
use crate::policy::fixtures::{World, frontends, ip, port};

#[test]
fn of_two_services_with_one_frontend_the_first_by_name_keeps_it() {
    let mut world = World::web(None);
    let shared = || vec![ip("203.0.113.1")];
    world.service("web", |service| service.external_ips = shared().into());
    world.service("api", |service| {
        service.cluster_ips = [ip("10.96.0.20")].into();
        service.external_ips = shared().into();
    });
    let table = world.compile();
    assert_eq!(
        frontends(&table.services[0]),
        ["ClusterIP 10.96.0.20:80", "ExternalIP 203.0.113.1:80"]
    );
    assert_eq!(frontends(&table.services[1]), ["ClusterIP 10.96.0.10:80"]);
    assert_eq!(
        world.rejections(),
        ["Service web: 203.0.113.1:80/TCP belongs to default/api:http: the first by name keeps it"]
    );
}

/// A load balancer of kube-system has an address in force, and somebody else comes who wants it, with a name that is
/// earlier.
#[test]
fn nobody_takes_an_address_that_is_in_force() {
    let at = ip("203.0.113.1");
    let balanced = |service: &mut Service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [at].into();
    };
    let external = |service: &mut Service| service.external_ips = [at].into();
    type Claim<'a> = (&'a str, u64, &'a dyn Fn(&mut Service));
    let cases: [(Claim<'_>, Claim<'_>, &str); 6] = [
        (
            ("kube-system", 900, &balanced),
            ("aaa", 1000, &external),
            "a load balancer's address or a NodePort comes before an external IP",
        ),
        (
            // An old Service may write new external IPs.
            ("shop", 900, &balanced),
            ("aaa", 100, &external),
            "a load balancer's address or a NodePort comes before an external IP",
        ),
        (
            ("kube-system", 900, &external),
            ("aaa", 100, &external),
            "default/kubernetes and kube-system come first",
        ),
        (
            ("shop", 900, &external),
            ("aaa", 1000, &external),
            "the older Service comes first",
        ),
        (
            ("shop", 900, &balanced),
            ("aaa", 0, &balanced),
            "the older Service comes first",
        ),
        (
            ("aab", 900, &balanced),
            ("zzz", 900, &balanced),
            "the first by name keeps it",
        ),
    ];
    for (owner, attacker, why) in cases {
        let mut world = World::new();
        let mut add = |(namespace, created_at, claim): Claim<'_>, cluster_ip| {
            world.service("web", |service| {
                service.created_at = created_at;
                service.cluster_ips = [ip(cluster_ip)].into();
                claim(service);
            });
            // The fixture knows one namespace.
            let services = &mut world.snapshot.services;
            let mut service = services
                .remove(&NamespacedName::new("default", "web"))
                .unwrap();
            Arc::make_mut(&mut service).name = NamespacedName::new(namespace, "web");
            services.insert(service.name.clone(), service);
        };
        add(owner, "10.96.0.10");
        add(attacker, "10.96.0.11");
        let table = world.compile();
        let has_it = table.services.iter().filter(|entry| {
            let mut frontends = entry.frontends.iter();
            frontends.any(|frontend| frontend.address == at)
        });
        let has_it: Vec<&str> = has_it.map(|entry| &*entry.key.namespace).collect();
        assert_eq!(has_it, [owner.0], "{why}");
        let said = format!("203.0.113.1:80/TCP belongs to {}/web:http: {why}", owner.0);
        let told = table.rejections.iter();
        let told: Vec<_> = told.map(|r| (&*r.namespace, &*r.reason)).collect();
        assert_eq!(told, [(attacker.0, &*said)]);
    }
}

#[test]
fn nobody_takes_a_cluster_ip_over_by_naming_it_as_an_external_address() {
    let mut world = World::web(None);
    world.service("api", |service| {
        service.cluster_ips = [ip("10.96.0.20")].into();
        service.external_ips = [ip("10.96.0.10")].into();
    });
    let table = world.compile();
    assert_eq!(frontends(&table.services[0]), ["ClusterIP 10.96.0.20:80"]);
    assert_eq!(frontends(&table.services[1]), ["ClusterIP 10.96.0.10:80"]);
    assert_eq!(
        world.rejections(),
        ["Service api: 10.96.0.10:80/TCP belongs to default/web:http: a ClusterIP comes first"]
    );
    // And gets it back when the other one lets go.
    let again = world.compile();
    assert!(Arc::ptr_eq(&table.services[0], &again.services[0]));
    world.service("web", |service| {
        service.cluster_ips = [ip("10.96.0.11")].into()
    });
    assert_eq!(
        frontends(&world.compile().services[0]),
        ["ClusterIP 10.96.0.20:80", "ExternalIP 10.96.0.10:80"]
    );
    assert_eq!(world.rejections(), [""; 0]);
}

#[test]
fn the_same_port_number_with_another_protocol_is_another_frontend() {
    let mut world = World::web(None);
    world.service("web", |service| {
        let mut dns = port("http", 80, 0);
        dns.protocol = Protocol::Udp;
        let mut sctp = port("http", 80, 0);
        sctp.protocol = Protocol::Sctp;
        service.ports = [port("http", 80, 0), dns, sctp, port("http", 81, 0)].into();
    });
    let table = world.compile();
    let protocols: Vec<_> = table
        .services
        .iter()
        .map(|entry| entry.key.protocol)
        .collect();
    assert_eq!(protocols, [Protocol::Sctp, Protocol::Tcp, Protocol::Udp]);
    // A second TCP port of the same name has no key of its own.
    assert_eq!(
        world.rejections(),
        ["Service web: port \"http\" with TCP is there twice: the later one is left out"]
    );
}

/// A thousand want one address, and something else changes, or one of them does.
#[test]
fn what_is_said_of_a_service_is_made_anew_only_where_it_changes() {
    let mut world = World::new();
    let name = |n: usize| format!("many-{n:04}");
    for n in 0..1000 {
        world.service(&name(n), |service| {
            service.cluster_ips = [ip(&format!("10.97.{}.{}", n / 250, n % 250))].into();
            service.external_ips = [ip("203.0.113.1")].into();
            service.topology_keys = Some("rack".into());
        });
    }
    let mut last = world.compile().rejections;
    assert_eq!(last.len(), 999 + 1000);
    let mut made_anew = |world: &mut World| {
        let now = world.compile().rejections;
        let is_old = |new: &&Arc<Rejection>| last.iter().any(|old| Arc::ptr_eq(old, new));
        let count = now.iter().filter(|one| !is_old(one)).count();
        last = now;
        count
    };
    world.service("other", |service| {
        service.cluster_ips = [ip("10.98.0.1")].into()
    });
    assert_eq!(made_anew(&mut world), 0);
    // Who loses it comes and goes.
    let address = |world: &mut World, n, address| {
        world.service(&name(n), |service| {
            service.external_ips = [ip(address)].into()
        });
    };
    address(&mut world, 500, "203.0.113.2");
    assert_eq!(made_anew(&mut world), 0);
    address(&mut world, 500, "203.0.113.1");
    assert_eq!(made_anew(&mut world), 1);
    // Who has it lets go: so many are not told who is next.
    address(&mut world, 0, "203.0.113.3");
    assert_eq!(made_anew(&mut world), 0);
    world.service(&name(700), |service| service.topology_keys = None);
    assert_eq!(made_anew(&mut world), 0);
    // Few are, when the last of many turns away.
    for n in (52..1000).rev() {
        address(&mut world, n, "203.0.113.4");
    }
    made_anew(&mut world);
    let is_named = |told: &Vec<String>| {
        told.iter()
            .any(|told| told.contains("belongs to default/many-0001"))
    };
    assert!(!is_named(&world.rejections()));
    address(&mut world, 51, "203.0.113.4");
    assert!(is_named(&world.rejections()));
}
