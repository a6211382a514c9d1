//! What Prometheus is told of a running agent, against what `status` says.

use std::collections::BTreeMap;
use std::io;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net::observe::status::Status;
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;

use crate::world::World;
use crate::world::all_answered;
use crate::world::eventually;

/// Where they are unless the agent is told otherwise.
const ADDRESS: &str = "127.0.0.1:10249";

/// Asks in the node's namespace, and returns what comes back.
fn get(node: &Node, path: &str) -> Result<String> {
    let exchange = || -> io::Result<String> {
        let mut stream = TcpStream::connect(ADDRESS)?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {ADDRESS}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    Ok(node.netns().run(exchange)??)
}

/// The samples, by series.
fn scrape(node: &Node) -> Result<BTreeMap<String, f64>> {
    let answer = get(node, "/metrics")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').context(line.to_owned())?;
            Ok((series.to_owned(), value.parse()?))
        })
        .collect()
}

/// Two nodes of a pool, each with an agent of its own; a client on the first.
fn world() -> Result<(World, Pod)> {
    let mut world = World::new(&[("edge-1", "hangzhou"), ("edge-2", "hangzhou")])?;
    let backend = world.backend(1, "backend")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").port(80, 8080);
    web.endpoints([&backend]);
    let client = world.node(0)?.pod("client")?;
    Ok((world, client))
}

/// Each figure of the status that does not change while nobody does anything.
fn is_the_same(samples: &BTreeMap<String, f64>, status: &Status) -> Result<()> {
    let mut expected: BTreeMap<String, f64> = BTreeMap::new();
    let mut expect = |series: String, value: u32| expected.insert(series, f64::from(value));
    let count = |count: u64| u32::try_from(count);
    expect("yurtnet_ready".to_owned(), status.ready.into());
    expect(
        "yurtnet_service_ports".to_owned(),
        count(status.services.try_into()?)?,
    );
    for total in [
        "yurtnet_tables_applied_total",
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
    ] {
        expect(total.to_owned(), count(status.applied)?);
    }
    for usage in &status.maps {
        let label = format!("{{map=\"{}\"}}", usage.map);
        expect(format!("yurtnet_map_entries{label}"), usage.used);
        expect(format!("yurtnet_map_capacity{label}"), usage.capacity);
    }
    for (reason, verdicts) in &status.counters {
        let series = format!("yurtnet_verdicts_total{{reason=\"{reason}\"}}");
        expect(series, count(*verdicts)?);
    }
    for (resource, received) in &status.source.received {
        for (what, value) in [
            ("received_bytes", received.bytes),
            ("received_objects", received.objects),
            ("lists", received.lists),
            ("watches", received.watches),
            ("watch_events", received.events),
        ] {
            let series = format!("yurtnet_source_{what}_total{{resource=\"{resource}\"}}");
            expect(series, count(value)?);
        }
    }
    let checkpoint = &status.checkpoint;
    expect(
        "yurtnet_checkpoint_writes_total".to_owned(),
        count(checkpoint.writes)?,
    );
    expect(
        "yurtnet_checkpoint_written_bytes_total".to_owned(),
        count(checkpoint.bytes_written)?,
    );
    for (series, value) in expected {
        let sample = samples.get(&series).copied();
        ensure!(sample == Some(value), "{series}: {sample:?}, not {value}");
    }
    Ok(())
}

#[test]
fn a_scrape_says_what_the_status_says() -> Result<()> {
    let (mut world, client) = world()?;
    // Both at the same address, each in its own namespace.
    let _agents = [world.start(0, &[])?, world.start(1, &[])?];
    all_answered(&client.connect_many(Tcp, "10.96.0.10:80", 20)?)?;
    for node in &world.nodes {
        let samples = scrape(node)?;
        let status = node.status()?;
        is_the_same(&samples, &status)?;
        let sample = |series: &str| samples.get(series).copied().context(series.to_owned());
        let node_info = format!(
            "yurtnet_node_info{{node=\"{}\",pool=\"hangzhou\"}}",
            node.name()
        );
        for is_so in [
            &node_info,
            "yurtnet_snapshot_provenance{provenance=\"file\"}",
            "yurtnet_self_test{result=\"passed\"}",
            "yurtnet_rejections{kind=\"Service\"}",
        ] {
            ensure!(sample(is_so)? == 1.0, "{is_so}");
        }
        let memory = sample("process_resident_memory_bytes")?;
        ensure!((1e6..1e8).contains(&memory), "{memory}");
        let last = sample("kubeproxy_sync_proxy_rules_last_timestamp_seconds")?;
        ensure!(last + 1.0 >= sample("process_start_time_seconds")?);
    }
    let forwarded = "yurtnet_verdicts_total{reason=\"forward\"}";
    ensure!(scrape(world.node(0)?)?[forwarded] >= 20.0);
    ensure!(get(world.node(0)?, "/healthz")?.ends_with("ok"));
    ensure!(get(world.node(0)?, "/")?.starts_with("HTTP/1.1 404 "));
    Ok(())
}

#[test]
fn an_agent_that_follows_an_apiserver_tells_what_it_received() -> Result<()> {
    let (world, _client) = world()?;
    let cloud = world.lab.cloud()?;
    cloud.apply(&world.manifests)?;
    cloud.start()?;
    let node = world.node(0)?;
    let _agent = node.start_agent_from(&cloud.source(), node.name(), &[])?;
    node.wait_for_status("a checkpoint", |status| {
        status.source.provenance == Origin::Live && status.checkpoint.writes > 0
    })?;
    // A bookmark may arrive between the two.
    let samples = eventually(node, || {
        let samples = scrape(node)?;
        is_the_same(&samples, &node.status()?)?;
        Ok(samples)
    })?;
    let source = format!("{{source=\"{}\"}}", cloud.source());
    for is_so in [
        "yurtnet_snapshot_provenance{provenance=\"live\"}",
        &format!("yurtnet_source_in_charge{source}"),
        &format!("yurtnet_source_up{source}"),
    ] {
        ensure!(samples.get(is_so) == Some(&1.0), "{is_so}: {samples:?}");
    }
    ensure!(samples["yurtnet_source_received_objects_total{resource=\"services\"}"] >= 1.0);
    Ok(())
}

#[test]
fn a_node_is_served_while_kube_proxy_has_the_port_and_metrics_come_when_it_is_gone() -> Result<()> {
    let (mut world, client) = world()?;
    let kube_proxy = world
        .node(0)?
        .netns()
        .run(|| TcpListener::bind(ADDRESS))?
        .context("take the port")?;
    let _agent = world.start(0, &[])?;
    all_answered(&client.connect_many(Tcp, "10.96.0.10:80", 20)?)?;
    let node = world.node(0)?;
    ensure!(node.agent_log().contains("metrics: cannot listen"));
    drop(kube_proxy);
    let samples = eventually(node, || scrape(node))?;
    is_the_same(&samples, &node.status()?)
}

#[test]
fn no_port_is_opened_where_none_is_wanted() -> Result<()> {
    let (mut world, _client) = world()?;
    let _agent = world.start(0, &["--metrics-bind-address="])?;
    let node = world.node(0)?;
    let connected = node.netns().run(|| TcpStream::connect(ADDRESS))?;
    let error = connected.err().context("somebody listens")?;
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    Ok(())
}
