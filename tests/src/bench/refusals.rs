//! The cost of telling what is refused: refused connects while nobody listens, and while somebody does.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net::dataplane::events::Listener;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::universe;
use crate::lab::Lab;
use crate::lab::Manifests;
use crate::lab::Node;
use crate::lab::Pod;
use crate::lab::Proto::Tcp;

/// Name of the measure.
pub const NAME: &str = "refusals";

const REFUSING: &str = "10.96.0.20:80";
/// How often `monitor` looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs the measure on a node of its own.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let node = lab.node(NAME)?;
    let client = node.pod("client")?;
    let mut manifests = Manifests::new();
    manifests.node(&node).pool("bench");
    let empty = manifests.service("empty");
    empty.cluster_ip("10.96.0.20").port(80, 8080);
    let agent = universe::start_agent(&node, &manifests)?;
    let connects = if options.quick { 2_000 } else { 20_000 };
    // What the agent has just done must end first.
    thread::sleep(Duration::from_secs(1));
    refused(&client, connects)?;
    let (mut unheard, mut again, mut heard, mut told) = (vec![], vec![], vec![], vec![]);
    for _ in 0..options.rounds(15) {
        unheard.push(refused(&client, connects)?);
        let (took, share) = listened_to(&node, &client, connects)?;
        heard.push(took);
        told.push(share);
        again.push(refused(&client, connects)?);
    }
    agent.kill9()?;
    let over = |of: &[f64]| {
        unheard
            .iter()
            .zip(of)
            .map(|(one, other)| other / one)
            .collect()
    };
    Ok(Measure {
        name: NAME,
        title: "Refused connects, as fast as one process makes them",
        method: "socket(), connect() that is refused, close(), one after the other by one process; nobody listens, or \
                 somebody reads the ring ten times a second. Ratios of rounds.",
        unit: "",
        series: Vec::new(),
        claims: vec![
            Claim::new("listened to / not", "", over(&heard)).at_most(1.25),
            Claim::new("  not, once more / not", "", over(&again)),
            Claim::new("a refused connect, not listened to", "us", unheard.clone()),
            Claim::new("events that were told, of those that happened", "%", told),
        ],
    })
}

/// Microseconds of a refused connect, as the mean of so many.
fn refused(client: &Pod, connects: u32) -> Result<f64> {
    let start = Instant::now();
    let tally = client.dial(Tcp, REFUSING, connects)?;
    let took = start.elapsed();
    let refused: u64 = tally.errors.values().sum();
    ensure!(refused == u64::from(connects), "{tally:?}");
    Ok(took.as_secs_f64() * 1e6 / f64::from(connects))
}

/// The same while somebody listens, and how many of them in a hundred were told.
fn listened_to(node: &Node, client: &Pod, connects: u32) -> Result<(f64, f64)> {
    let (is_heard, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let listener = scope.spawn(|| -> Result<f64> {
            let mut listener = Listener::start(&node.bpffs())?.context("programs that tell")?;
            is_heard.store(true, Ordering::Release);
            let mut told = 0;
            while !is_over.load(Ordering::Acquire) {
                listener.ask()?;
                told += listener.take().len();
                thread::sleep(LOOK_EVERY);
            }
            told += listener.take().len();
            Ok(f64::from(u32::try_from(told)?))
        });
        while !is_heard.load(Ordering::Acquire) && !listener.is_finished() {
            thread::yield_now();
        }
        let took = refused(client, connects);
        is_over.store(true, Ordering::Release);
        let told = listener.join().ok().context("the listener has ended")??;
        Ok((took?, told * 100.0 / f64::from(connects)))
    })
}
