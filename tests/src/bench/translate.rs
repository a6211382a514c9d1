//! The cost of translation for a packet: its programs against one that does nothing, on the same frames.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use anyhow::Result;
use anyhow::ensure;
use yurt_frames::ACK;
use yurt_frames::Packet;
use yurt_frames::SYN;
use yurt_frames::eth;
use yurt_frames::guard::OTHER;
use yurt_frames::guard::POD;
use yurt_frames::tcp;
use yurt_frames::udp;
use yurt_net::dataplane::pod::translate::Translate;
use yurt_net::node::routes::Routes;
use yurt_net::pods::translate::Pair;
use yurt_net::pods::translate::TranslateImage;
use yurt_net::pods::translate::TranslateRow;

use super::Options;
use super::frame::cost;
use super::report::Measure;
use crate::lab::Lab;
use crate::lab::Node;
use crate::testrun::IFINDEX;
use crate::testrun::NEXT;
use crate::testrun::Program;

/// Name of the measure.
pub const NAME: &str = "translate";

const TARGET_NS: f64 = 150.0;
/// How many other Pods are translated.
const NEIGHBOURS: u8 = 100;

/// Runs the measure, with the maps of a node of its own.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let node = lab.node(NAME)?;
    let mut translate = Translate::load(&node.bpffs(), None)?;
    let pinned = |name| Program::pinned(&node.bpffs().join("yurt-net/translate-v1").join(name));
    let programs = [pinned("yurt_xlate_out")?, pinned("yurt_xlate_in")?];
    let empty = Program::empty()?;
    let (mut series, mut claims) = (Vec::new(), Vec::new());
    for is_changed in [true, false] {
        bring(&mut translate, &node, is_changed)?;
        for (name, direction, packet) in frames(is_changed) {
            let frame = eth(OTHER.mac, POD.mac).then(packet).bytes();
            let program = &programs[direction];
            let is_as_it_was = program.pass(&frame)? == (NEXT, frame.clone());
            ensure!(is_as_it_was, "{name}: it is not that what comes next");
            let both = [&empty, program];
            let (both, claim) = cost((name, NAME), both, &frame, Some(TARGET_NS), options)?;
            series.extend(both);
            claims.push(claim);
        }
    }
    Ok(Measure {
        name: NAME,
        title: "What translation costs a packet",
        method: "BPF_PROG_TEST_RUN on one frame again and again, an empty program, translation, and the empty one again, by \
                 turns; the difference of the least of the rounds. What is changed is to be the same afterwards, so there the \
                 promised and the live address are one: all is done that a change takes. 101 Pods have rows.",
        unit: "ns",
        series,
        claims,
    })
}

/// Writes the rows. Frames are translated to the same addresses, so that each run gets the same frame.
fn bring(translate: &mut Translate, node: &Node, is_changed: bool) -> Result<()> {
    let mut wanted = TranslateImage::default();
    let promised4 = Ipv4Addr::new(10, 99, 0, 5);
    let promised6 = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 5);
    let row = |v4, v6| TranslateRow {
        mac: POD.mac,
        v4: Some(Pair {
            live: v4,
            promised: if is_changed { v4 } else { promised4 },
        }),
        v6: Some(Pair {
            live: v6,
            promised: if is_changed { v6 } else { promised6 },
        }),
    };
    wanted.rows.insert(IFINDEX, row(POD.v4, POD.v6));
    for index in 0..NEIGHBOURS {
        let v4 = Ipv4Addr::new(10, 244, 2, index);
        wanted
            .rows
            .insert(100 + u32::from(index), row(v4, OTHER.v6));
    }
    let bring = || translate.bring_to(&wanted, &Routes::open()?);
    let failures = node.netns().run(bring)??;
    ensure!(failures.is_empty(), "rows were not written: {failures:?}");
    Ok(())
}

/// Name, program, and packet.
fn frames(is_changed: bool) -> Vec<(&'static str, usize, Packet)> {
    const TO_POD: usize = 0;
    const FROM_POD: usize = 1;
    let to =
        |pod: IpAddr, remote: IpAddr| (SocketAddr::new(remote, 40000), SocketAddr::new(pod, 80));
    let (remote4, remote6) = ("192.0.2.7".parse(), "2001:db8::7".parse());
    let (Ok(remote4), Ok(remote6)) = (remote4, remote6) else {
        return Vec::new();
    };
    let (client4, pod4) = to(POD.v4.into(), remote4);
    let (client6, pod6) = to(POD.v6.into(), remote6);
    let data = &[7; 64];
    if is_changed {
        return vec![
            (
                "TCP to the Pod, IPv4",
                TO_POD,
                tcp(client4, pod4, ACK, data),
            ),
            (
                "TCP from the Pod, IPv4",
                FROM_POD,
                tcp(pod4, client4, ACK, data),
            ),
            (
                "TCP to the Pod, IPv6",
                TO_POD,
                tcp(client6, pod6, ACK, data),
            ),
            (
                "TCP from the Pod, IPv6",
                FROM_POD,
                tcp(pod6, client6, ACK, data),
            ),
            ("UDP to the Pod, IPv4", TO_POD, udp(client4, pod4, data)),
            ("UDP from the Pod, IPv4", FROM_POD, udp(pod4, client4, data)),
            ("UDP to the Pod, IPv6", TO_POD, udp(client6, pod6, data)),
            ("UDP from the Pod, IPv6", FROM_POD, udp(pod6, client6, data)),
        ];
    }
    vec![
        (
            "TCP to the live address, IPv4",
            TO_POD,
            tcp(client4, pod4, SYN, data),
        ),
        (
            "TCP from the live address, IPv4",
            FROM_POD,
            tcp(pod4, client4, ACK, data),
        ),
        (
            "UDP to the live address, IPv6",
            TO_POD,
            udp(client6, pod6, data),
        ),
        (
            "UDP from the live address, IPv6",
            FROM_POD,
            udp(pod6, client6, data),
        ),
    ]
}
