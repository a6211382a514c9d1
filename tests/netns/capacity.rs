//! Maps that are too small: a Service fits or it does not.

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;

use crate::world;
use crate::world::World;
use crate::world::eventually;
use crate::world::status;

const SERVICES: u8 = 20;

fn addresses(n: u8) -> [String; 2] {
    [format!("10.96.1.{n}:80"), format!("198.51.100.{n}:80")]
}

/// Numbers of the Services that are served, at all their addresses; none may be at only one.
fn served(client: &Pod, backend: &Pod) -> Result<Vec<u8>> {
    let mut served = Vec::new();
    for n in 1..=SERVICES {
        let mut is_translated = Vec::new();
        for to in addresses(n) {
            let tally = client.dial(Tcp, &to, 1)?;
            is_translated.push(tally.answers.contains_key(&backend.at4(8080)));
        }
        ensure!(
            is_translated[0] == is_translated[1],
            "service {n} is half there: {is_translated:?}"
        );
        if is_translated[0] {
            served.push(n);
        }
    }
    Ok(served)
}

fn refused(world: &World) -> Result<Vec<String>> {
    let status = status(world.node(0)?)?;
    let list = status["refused"].as_array();
    Ok(list
        .into_iter()
        .flatten()
        .filter_map(|refused| refused["service"].as_str().map(str::to_owned))
        .filter(|service| !service.starts_with("default/zz-marker"))
        .collect())
}

fn what_does_not_fit_is_left_out_whole(flags: &[&str], map: &str) -> Result<()> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let client = world.node(0)?.pod("client")?;
    for n in 1..=SERVICES {
        let service = world.manifests.service(&format!("s{n:02}"));
        service.cluster_ip(&format!("10.96.1.{n}"));
        service.external_ip(&format!("198.51.100.{n}"));
        service.port(80, 8080).endpoints([&backend]);
    }
    let _agent = world.start(0, flags)?;
    let node = world.node(0)?;

    let fit = served(&client, &backend)?;
    let left_out = refused(&world)?;
    assert!((1..20).contains(&fit.len()), "{fit:?}");
    // Those that fit are the first by name.
    assert_eq!(fit, (1..=u8::try_from(fit.len())?).collect::<Vec<_>>());
    let expected: Vec<_> = (1..=SERVICES)
        .filter(|n| !fit.contains(n))
        .map(|n| format!("default/s{n:02}:tcp-80"))
        .collect();
    assert_eq!(left_out, expected);
    let status = status(node)?;
    assert_eq!(status["refused"][0]["map"], map, "{status}");
    assert_eq!(status["refused"][0]["hasSome"], false, "{status}");
    let log = node.agent_log();
    assert!(log.contains("map full") && log.contains(map), "{log}");

    // What is there stays there when others come and go.
    let first = fit.first().copied().unwrap_or_default();
    world.manifests.remove_service(&format!("s{first:02}"));
    world.write()?;
    eventually(world.node(0)?, || {
        let left_out = refused(&world)?;
        ensure!(left_out.len() == expected.len() - 1, "{left_out:?}");
        Ok(())
    })?;
    let now = served(&client, &backend)?;
    assert_eq!(now.len(), fit.len(), "{now:?}");
    assert!(fit[1..].iter().all(|n| now.contains(n)), "{now:?}");

    for n in 1..=16 {
        world.manifests.remove_service(&format!("s{n:02}"));
    }
    world.apply()?;
    assert_eq!(refused(&world)?, [""; 0]);
    assert_eq!(served(&client, &backend)?, [17, 18, 19, 20]);
    Ok(())
}

/// A Service of any namespace with one TCP port for each number, and its one endpoint.
fn service_of(
    namespace: &str,
    name: &str,
    cluster_ip: &str,
    external: &[String],
    ports: std::ops::Range<u16>,
    backend: &Pod,
) -> String {
    let ports = || ports.clone().map(|port| (format!("p{port}"), port));
    let of_service: Vec<String> = ports()
        .map(|(name, port)| format!("{{name: {name}, port: {port}, targetPort: 8080}}"))
        .collect();
    let of_slice: Vec<String> = ports()
        .map(|(name, _)| format!("{{name: {name}, port: 8080}}"))
        .collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: {cluster_ip}, clusterIPs: [{cluster_ip}], externalIPs: {external:?}, ports: [{}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{}]\nendpoints: [{{addresses: [\"{}\"]}}]\n",
        of_service.join(", "),
        of_slice.join(", "),
        backend.ip4()
    )
}

/// Names decided before: a tenant's are where its owner wants them in the alphabet.
#[test]
fn a_tenant_that_fills_the_map_leaves_room_for_dns_the_apiserver_and_other_tenants() -> Result<()> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let client = world.node(0)?.pod("client")?;
    for n in 1..=3 {
        let external: Vec<String> = (1..=5).map(|id| format!("198.51.{n}.{id}")).collect();
        let cluster_ip = format!("10.96.1.{n}");
        let (name, ports) = (format!("s{n}"), 1000..1010);
        let greedy = service_of("a-tenant", &name, &cluster_ip, &external, ports, &backend);
        world.manifests.raw(&greedy);
    }
    let others = [
        ("default", "kubernetes", "10.96.0.1"),
        ("kube-system", "kube-dns", "10.96.0.10"),
        ("z-tenant", "shop", "10.96.0.30"),
    ];
    for (namespace, name, cluster_ip) in others {
        let service = service_of(namespace, name, cluster_ip, &[], 80..81, &backend);
        world.manifests.raw(&service);
    }
    // The first is new maps, as after a reboot, the second an agent that takes them over.
    let flags = ["--max-frontends4", "60", "--kubernetes-via-hub", "off"];
    let mut agent = world.start(0, &flags)?;
    for _ in 0..2 {
        for (_, name, cluster_ip) in others {
            let tally = client.dial(Tcp, &format!("{cluster_ip}:80"), 1)?;
            ensure!(
                tally.answers.contains_key(&backend.at4(8080)),
                "{name}: {tally:?}"
            );
        }
        let left_out = refused(&world)?;
        ensure!(!left_out.is_empty());
        ensure!(
            left_out.iter().all(|name| name.starts_with("a-tenant/")),
            "{left_out:?}"
        );
        agent = world.restart(&agent, 0, &flags)?;
    }
    // Counts, and no line for each.
    let table = String::from_utf8(world.node(0)?.yurt_net(&["status"])?.stdout)?;
    ensure!(
        table.contains("DOES NOT FIT (") && table.contains(" yurt_fe4)"),
        "{table}"
    );
    ensure!(table.contains("more: `yurt-net explain`"), "{table}");
    // It does, of one that is left out and of one that is not.
    let left_out = refused(&world)?;
    let name = left_out.first().context("nothing is left out")?;
    // Its name says where it would be: `a-tenant/s1:p1000`.
    let (service, port) = name.rsplit_once(":p").context("no port")?;
    let lost = format!(
        "10.96.1.{}:{port}/tcp",
        service.trim_start_matches("a-tenant/s")
    );
    let from = client.ip4().to_string();
    for (to, is_left_out) in [(&*lost, true), ("10.96.0.30:80/tcp", false)] {
        let ask = ["explain", "--from", &from, "--to", to];
        let told = world.node(0)?.yurt_net(&ask)?;
        let told = String::from_utf8(told.stdout)?;
        ensure!(
            told.contains("yurt_fe4 is full, raise --max-frontends4") == is_left_out,
            "{to}: {told}"
        );
        ensure!(told.starts_with("refuse: ") == is_left_out, "{to}: {told}");
    }
    Ok(())
}

/// A Service of one port, with endpoints that nobody has to be at.
fn large(namespace: &str, name: &str, cluster_ip: &str, endpoints: u8) -> String {
    let network = namespace.len();
    let endpoints = (1..=endpoints).map(|n| format!("{{addresses: [\"10.77.{network}.{n}\"]}}"));
    let endpoints: Vec<String> = endpoints.collect();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: {cluster_ip}, clusterIPs: [{cluster_ip}], ports: [{{port: 80, targetPort: 8080}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// As a newcomer, which it was from then on, it asked for more than was left, for good.
#[test]
fn a_large_service_gives_kube_system_a_part_of_its_slots_and_serves_the_rest() -> Result<()> {
    let mut world = World::single()?;
    world
        .manifests
        .raw(&large("tenant", "bulk", "10.96.1.1", 110));
    let _agent = world.start(0, &["--max-slots4", "128"])?;
    let all = world::explain(world.node(0)?, "127.0.0.1", "10.96.1.1:80/TCP")?;
    ensure!(
        all["endpoints"].as_array().map(Vec::len) == Some(110),
        "{all}"
    );

    world
        .manifests
        .raw(&large("kube-system", "second", "10.96.1.2", 40));
    world.apply()?;
    eventually(world.node(0)?, || {
        let node = world.node(0)?;
        let system = world::explain(node, "127.0.0.1", "10.96.1.2:80/TCP")?;
        ensure!(system["verdict"] == "forward", "{system}");
        ensure!(
            system["endpoints"].as_array().map(Vec::len) == Some(40),
            "{system}"
        );
        let bulk = world::explain(node, "127.0.0.1", "10.96.1.1:80/TCP")?;
        let left = bulk["endpoints"].as_array().map_or(0, Vec::len);
        ensure!(
            bulk["verdict"] == "forward" && (75..110).contains(&left),
            "{bulk}"
        );
        let reason = bulk["reason"].as_str().unwrap_or_default();
        let told = format!(
            "only {left} of 110 endpoints are in force: yurt_slot is full, raise --max-slots4"
        );
        ensure!(reason.contains(&told), "{bulk}");
        ensure!(
            refused(&world)? == ["tenant/bulk:"],
            "{:?}",
            refused(&world)?
        );
        let status = status(node)?;
        let refused = &status["refused"][0];
        ensure!(refused["hasSome"] == true, "{status}");
        let part = (&refused["endpointsInForce"], &refused["endpoints"]);
        ensure!(*part.0 == left && *part.1 == 110, "{status}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn services_that_do_not_fit_are_left_out_whole_and_come_when_there_is_room() -> Result<()> {
    what_does_not_fit_is_left_out_whole(&["--max-services", "8"], "yurt_svc")
}

#[test]
fn services_whose_frontends_do_not_fit_are_left_out_whole() -> Result<()> {
    what_does_not_fit_is_left_out_whole(&["--max-frontends4", "20"], "yurt_fe4")
}

#[test]
fn services_whose_endpoints_do_not_fit_are_left_out_whole() -> Result<()> {
    what_does_not_fit_is_left_out_whole(&["--max-slots4", "8"], "yurt_slot")
}
