//! `loadBalancerSourceRanges`: at the load balancer's addresses only clients inside are admitted, Pods too.

use std::net::IpAddr;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::world::World;
use crate::world::eventually;
use crate::world::fails_with;
use crate::world::is_refused_by;
use crate::world::mapped;
use crate::world::names;
use crate::world::status;
use crate::world::who_answers;

const VIP: &str = "203.0.113.10:80";
const VIP6: &str = "[2001:db8::10]:80";
const DROP: &str = "EHOSTUNREACH";

struct Stage {
    inside: Pod,
    outside: Pod,
    agent: Agent,
    world: World,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut world = World::single()?;
        let backend = world.backend(0, "backend")?;
        let node = world.node(0)?;
        let (inside, outside) = (node.pod("inside")?, node.pod("outside")?);
        let web = world.manifests.service("web");
        web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
        web.load_balancer_ip("203.0.113.10")
            .load_balancer_ip("2001:db8::10")
            .external_ip("198.51.100.10");
        web.port(80, 8080).udp_port(80, 8080).endpoints([&backend]);
        let ranges = [
            format!("{}/32", inside.ip4()),
            format!("{}/128", inside.ip6()),
        ];
        web.source_ranges(&[&ranges[0], &ranges[1]]);
        let agent = world.start(0, &[])?;
        Ok(Self {
            inside,
            outside,
            agent,
            world,
        })
    }

    /// Waits until the agent knows the clients that there are: those that it does not are refused.
    fn is_admitted(&self, client: &Pod, to: &str) -> Result<()> {
        eventually(self.world.node(0)?, || {
            let who = who_answers(client, to)?;
            ensure!(who == names(["backend"]), "{to}: {who:?}");
            Ok(())
        })
    }

    fn is_dropped(&self, client: &Pod, to: &str) -> Result<()> {
        eventually(self.world.node(0)?, || {
            fails_with(client, Tcp, to, DROP)?;
            fails_with(client, Udp, to, DROP)
        })
    }
}

fn known_clients(stage: &Stage) -> Result<u64> {
    let known = &status(stage.world.node(0)?)?["clients"]["known"];
    known.as_u64().context("clients.known")
}

#[test]
fn only_clients_inside_are_admitted_and_only_the_load_balancer_asks() -> Result<()> {
    let stage = Stage::new()?;
    let host = stage.world.node(0)?.host()?;
    for to in [VIP, &mapped(VIP)?, VIP6] {
        stage.is_admitted(&stage.inside, to)?;
        stage.is_dropped(&stage.outside, to)?;
        stage.is_dropped(&host, to)?;
    }
    for to in ["10.96.0.10:80", "[fd00:96::10]:80", "198.51.100.10:80"] {
        for client in [&stage.inside, &stage.outside, &host] {
            ensure!(who_answers(client, to)? == names(["backend"]), "{to}");
        }
    }
    let counters = &status(stage.world.node(0)?)?["counters"];
    assert!(
        counters["drop_source_range"].as_u64() > Some(0),
        "{counters}"
    );
    Ok(())
}

#[test]
fn other_ranges_are_in_force_at_once_and_without_any_everybody_is_admitted() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.is_admitted(&stage.inside, VIP)?;
    stage.is_dropped(&stage.outside, VIP)?;
    assert!(known_clients(&stage)? >= 3, "the node, and its Pods");
    let ranges = [
        format!("{}/32", stage.outside.ip4()),
        "10.9.9.9/32".to_owned(),
    ];
    let web = stage.world.manifests.service("web");
    web.source_ranges(&[&ranges[0], &ranges[1]]);
    stage.world.apply()?;
    fails_with(&stage.inside, Tcp, VIP, DROP)?;
    who_answers(&stage.outside, VIP)?;
    // No range of this family: all are admitted, as kube-proxy has it.
    who_answers(&stage.inside, VIP6)?;
    stage.world.manifests.service("web").source_ranges(&[]);
    stage.world.apply()?;
    for client in [&stage.inside, &stage.outside] {
        who_answers(client, VIP)?;
    }
    assert_eq!(
        known_clients(&stage)?,
        0,
        "nobody asks for clients any more"
    );
    Ok(())
}

#[test]
fn a_pod_that_comes_later_is_known_soon_and_never_admitted_before() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.is_admitted(&stage.inside, VIP)?;
    let subnet = stage.world.node(0)?.pod_cidr4();
    stage
        .world
        .manifests
        .service("web")
        .source_ranges(&[&subnet]);
    stage.world.apply()?;
    let late = stage.world.node(0)?.pod("late")?;
    let first = late.attempt(Tcp, VIP)?;
    ensure!(
        matches!(first.errno(), None | Some("ECONNREFUSED")),
        "{first:?}"
    );
    stage.is_admitted(&late, VIP)
}

#[test]
fn ranges_stand_before_the_endpoints_also_where_there_are_none() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.is_admitted(&stage.inside, VIP)?;
    stage.world.manifests.service("web").endpoints([]);
    stage.world.apply()?;
    is_refused_by(&stage.inside, Tcp, VIP)?;
    stage.is_dropped(&stage.outside, VIP)
}

#[test]
fn more_ranges_than_the_kernel_compares_leave_the_load_balancer_to_the_network() -> Result<()> {
    let mut stage = Stage::new()?;
    let many: Vec<String> = (0..128)
        .map(|number| format!("10.9.{number}.0/24"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    stage.world.manifests.service("web").source_ranges(&many);
    stage.world.apply()?;
    let node = stage.world.node(0)?;
    let rejected = status(node)?["rejections"].to_string();
    assert!(
        rejected.contains("more than 127 source ranges"),
        "{rejected}"
    );
    let to: IpAddr = "203.0.113.10".parse()?;
    let explained = crate::world::explain(node, "127.0.0.1", &format!("{to}:80/TCP"))?;
    assert_eq!(explained["verdict"], "pass", "{explained}");
    stage
        .world
        .manifests
        .service("web")
        .source_ranges(&many[..127]);
    stage.world.apply()?;
    stage.is_dropped(&stage.inside, VIP)
}

#[test]
fn an_agent_that_starts_again_admits_the_same_clients_without_a_gap() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.is_admitted(&stage.inside, VIP)?;
    let traffic = stage
        .inside
        .start_traffic(Tcp, VIP, 1, std::time::Duration::from_millis(1))?;
    stage.world.restart(&stage.agent, 0, &[])?;
    let tally = traffic.stop()?;
    assert_eq!(tally.failed(), 0, "{tally:?}");
    fails_with(&stage.outside, Tcp, VIP, DROP)
}

/// Whatever it dials with: what a Pod has inside is its own word, and who it is says the node.
#[test]
fn an_address_that_a_pod_gave_itself_admits_it_nowhere() -> Result<()> {
    let mut stage = Stage::new()?;
    let elsewhere = ["10.9.9.0/24", "fd00:9::/64"];
    let inside = format!("{}/32", stage.inside.ip4());
    let inside6 = format!("{}/128", stage.inside.ip6());
    let web = stage.world.manifests.service("web");
    web.source_ranges(&[elsewhere[0], elsewhere[1], &inside, &inside6]);
    stage.world.apply()?;
    for to in [VIP, VIP6] {
        stage.is_admitted(&stage.inside, to)?;
        stage.is_dropped(&stage.outside, to)?;
    }
    // First on its lo, then what it dials with, then as if it were another Pod; and as many as it likes.
    let world = &stage.world;
    let gateways = (
        world.node(0)?.pod_cidr4().replace(".0/24", ".1"),
        world.node(0)?.pod_cidr6().replace("::/64", "::1"),
    );
    let mut many = String::new();
    for number in 0..2_000 {
        many += &format!(
            "addr add 10.9.{}.{}/32 dev lo\n",
            10 + number / 250,
            number % 250
        );
    }
    let claims = [
        "addr add 10.9.9.9/32 dev lo\naddr add fd00:9::9/128 dev lo nodad\n".to_owned(),
        format!(
            "route replace default via {} src 10.9.9.9\nroute replace default via {} src fd00:9::9\n",
            gateways.0, gateways.1
        ),
        format!(
            "addr add {} dev lo\naddr add {} dev lo nodad\n",
            inside, inside6
        ),
        many,
    ];
    for (number, claim) in claims.iter().enumerate() {
        stage.outside.netns().ip(claim)?;
        // An agent that has seen this Pod has looked at the others, too.
        let later = stage.world.node(0)?.pod(&format!("later-{number}"))?;
        let ranges = [
            elsewhere[0].to_owned(),
            elsewhere[1].to_owned(),
            inside.clone(),
            inside6.clone(),
            format!("{}/32", later.ip4()),
            format!("{}/128", later.ip6()),
        ];
        let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
        stage.world.manifests.service("web").source_ranges(&ranges);
        stage.world.apply()?;
        for to in [VIP, VIP6] {
            stage.is_admitted(&later, to)?;
            fails_with(&stage.outside, Tcp, to, DROP)?;
            stage.is_admitted(&stage.inside, to)?;
        }
    }
    Ok(())
}
