//! Rules for clients outside: source ranges, session affinity, and the addresses that have NodePorts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Proto;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::outside::BALANCER;
use crate::outside::NODE_PORT;
use crate::outside::Stage;
use crate::world::names;

const PROTOS: [Proto; 2] = [Tcp, Udp];
/// For what is dropped, which a counter proves.
const SILENCE: Duration = Duration::from_millis(300);

fn gateways(node: &Node) -> Result<[IpAddr; 2]> {
    let first = |cidr: String| -> Result<IpAddr> {
        let network: ipnetwork::IpNetwork = cidr.parse()?;
        network.iter().nth(1).context("an empty network")
    };
    Ok([first(node.pod_cidr4())?, first(node.pod_cidr6())?])
}

fn errno(stage: &Stage, proto: Proto, to: &str) -> Result<Option<String>> {
    let to: SocketAddr = to.parse()?;
    let attempts = stage.client.attempt_all(&[(proto, to)], 1, SILENCE)?;
    let attempt = attempts.first().context("an attempt")?;
    Ok(attempt.errno().map(str::to_owned))
}

#[test]
fn source_ranges_admit_clients_outside_at_the_balancer_by_the_source_of_their_packets() -> Result<()>
{
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let home = format!("{}/32", stage.world.node(2)?.ip4());
    let web = stage.world.manifests.service("web");
    web.source_ranges(&[&home]);
    let _agent = stage.start(&[&near, &far])?;
    let both = names(["near", "far"]);
    let frontends = stage.frontends()?;
    for to in &frontends {
        for proto in PROTOS {
            assert_eq!(stage.who(proto, to)?, both, "{proto:?} {to}");
        }
    }
    let web = stage.world.manifests.service("web");
    web.source_ranges(&["192.0.2.250/32"]);
    stage.world.apply()?;
    let before = stage.count("drop_source_range")?;
    let balancer = format!("{}:80", BALANCER[0]);
    for proto in PROTOS {
        let errno = errno(&stage, proto, &balancer)?;
        assert_eq!(errno.as_deref(), Some("TIMEOUT"), "{proto:?}");
    }
    ensure!(stage.count("drop_source_range")? - before >= 2);
    // No range of this family admits all, and NodePorts have no ranges.
    for to in frontends.iter().filter(|to| **to != balancer) {
        for proto in PROTOS {
            assert_eq!(stage.who(proto, to)?, both, "{proto:?} {to}");
        }
    }
    Ok(())
}

#[test]
fn a_client_outside_stays_with_its_endpoint_at_all_frontends_of_a_service_port() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    stage.world.manifests.service("web").affinity(600);
    let agent = stage.start(&[&near, &far])?;
    let frontends = stage.frontends()?;
    let mut first = Vec::new();
    for proto in PROTOS {
        for is_v6 in [false, true] {
            let mut of_family = frontends.iter().filter(|to| to.starts_with('[') == is_v6);
            let who: BTreeSet<String> = of_family
                .by_ref()
                .map(|to| stage.who(proto, to))
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect();
            assert_eq!(who.len(), 1, "{proto:?} {who:?}");
            first.push((proto, is_v6, who));
        }
    }
    // Without an agent, too.
    agent.kill9()?;
    for (proto, is_v6, who) in &first {
        for to in frontends.iter().filter(|to| to.starts_with('[') == *is_v6) {
            assert_eq!(stage.who(*proto, to)?, *who, "{proto:?} {to}");
        }
    }
    Ok(())
}

#[test]
fn clients_outside_find_node_ports_at_the_addresses_that_the_operator_names_and_at_no_others()
-> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let node = stage.world.node(0)?.clone();
    let inside = gateways(&node)?;
    let at = |address: IpAddr| SocketAddr::new(address, NODE_PORT).to_string();
    let primary = [IpAddr::from(node.ip4()), node.ip6().into()].map(at);
    let inside = inside.map(at);
    let cidrs = format!("{},{}", node.pod_cidr4(), node.pod_cidr6());
    let both = names(["near", "far"]);
    for (flag, served, others) in [
        ("primary", vec![&primary], vec![&inside]),
        (cidrs.as_str(), vec![&inside], vec![&primary]),
        ("0.0.0.0/0,::/0", vec![&primary, &inside], vec![]),
    ] {
        let agent = stage.start_with(&[&near, &far], &["--nodeport-addresses", flag])?;
        for proto in PROTOS {
            for to in served.iter().copied().flatten() {
                assert_eq!(stage.who(proto, to)?, both, "{flag}: {proto:?} {to}");
            }
            // Nobody listens there, and the node says so.
            for to in others.iter().copied().flatten() {
                let errno = errno(&stage, proto, to)?;
                assert_eq!(
                    errno.as_deref(),
                    Some("ECONNREFUSED"),
                    "{flag}: {proto:?} {to}"
                );
            }
        }
        agent.kill9()?;
    }
    Ok(())
}
