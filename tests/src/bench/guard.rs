//! The cost of the guard for a packet: its program against one that does nothing, on the same frames.

use std::net::IpAddr;
use std::net::Ipv4Addr;

use anyhow::Result;
use anyhow::ensure;
use ipnetwork::IpNetwork;
use yurt_frames::ACK;
use yurt_frames::Arp;
use yurt_frames::guard::Host;
use yurt_frames::guard::OTHER;
use yurt_frames::guard::POD;
use yurt_frames::guard::advertisement;
use yurt_frames::guard::sent;
use yurt_frames::ip;
use yurt_net::dataplane::pod::guard::Guard;
use yurt_net::pods::guard::GuardOp;
use yurt_net::pods::guard::GuardRow;
use yurt_net::pods::guard::Mode;

use super::Options;
use super::frame::cost;
use super::report::Measure;
use crate::lab::Lab;
use crate::testrun::IFINDEX;
use crate::testrun::NEXT;
use crate::testrun::Program;

/// Name of the measure.
pub const NAME: &str = "guard";

const TARGET_NS: f64 = 20.0;
/// How many other Pods have rows in the map.
const NEIGHBOURS: u8 = 100;

/// Runs the measure, with the maps of a node of its own.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let node = lab.node(NAME)?;
    let mut guard = Guard::load(&node.bpffs(), None)?;
    let neighbours = (0..NEIGHBOURS).map(|index| {
        let host = Host {
            mac: [0x0a, 0x58, 10, 244, 2, index],
            v4: Ipv4Addr::new(10, 244, 2, index),
            ..OTHER
        };
        GuardOp::PutRow(100 + u32::from(index), row(host))
    });
    let rows: Vec<_> = neighbours
        .chain([GuardOp::PutRow(IFINDEX, row(POD))])
        .collect();
    ensure!(
        guard.apply(&rows).failures.is_empty(),
        "rows were not written"
    );
    let program = Program::pinned(&node.bpffs().join("yurt-net/guard-v1/yurt_guard_in"))?;
    let empty = Program::empty()?;

    let (mut series, mut claims) = (Vec::new(), Vec::new());
    for (name, frame, is_judged) in frames() {
        ensure!(program.verdict(&frame)? == NEXT, "{name}: found fault with");
        let bound = is_judged.then_some(TARGET_NS);
        let (both, claim) = cost((name, NAME), [&empty, &program], &frame, bound, options)?;
        series.extend(both);
        claims.push(claim);
    }
    Ok(Measure {
        name: NAME,
        title: "What the guard costs a packet",
        method: "BPF_PROG_TEST_RUN on one frame again and again, an empty program, the guard, and the empty one again, by \
                 turns; the difference of the least of the rounds. 101 Pods have rows.",
        unit: "ns",
        series,
        claims,
    })
}

/// Frames that Pods send all the time, which are judged, and other frames.
fn frames() -> Vec<(&'static str, Vec<u8>, bool)> {
    let [v4, v6] = [ip(POD.v4, OTHER.v4), ip(POD.v6, OTHER.v6)];
    let ask = Arp::request((POD.mac, POD.v4), OTHER.v4);
    let advertised = advertisement(POD.v6, POD.v6, POD.mac);
    let judged = [
        ("TCP, IPv4", v4.clone().tcp(40000, 80, ACK)),
        ("UDP, IPv4", v4.clone().udp(40000, 53).data(b"question")),
        ("TCP, IPv6", v6.clone().tcp(40000, 80, ACK)),
        ("UDP, IPv6", v6.clone().udp(40000, 53).data(b"hello")),
        ("ICMP, IPv4", v4.ping(1)),
        ("ICMP, IPv6", v6.ping(1)),
        ("ARP", ask.into()),
    ];
    let judged = judged
        .into_iter()
        .map(|(name, packet)| (name, packet, true));
    let frames = judged.chain([("neighbour advertisement", advertised, false)]);
    frames
        .map(|(name, packet, is_judged)| (name, sent(POD.mac, packet), is_judged))
        .collect()
}

fn row(host: Host) -> GuardRow {
    let own: [IpAddr; 3] = [host.v4.into(), host.v6.into(), host.link_local.into()];
    GuardRow {
        mode: Mode::Enforce,
        macs: vec![host.mac],
        own: own.map(IpNetwork::from).into(),
        extra: Vec::new(),
    }
}
