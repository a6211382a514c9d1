//! Maps that are too small: a Service fits or it does not.

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;

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
