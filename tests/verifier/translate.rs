//! Translation's programs on frames: what becomes of them in the kernel, with the checksums and the sizes that it keeps
//! itself.

use std::net::IpAddr;
use std::net::SocketAddr;

use anyhow::Context as _;
use anyhow::Result;
use yurt_frames::ACK;
use yurt_frames::Arp;
use yurt_frames::Packet;
use yurt_frames::SYN;
use yurt_frames::Udp;
use yurt_frames::eth;
use yurt_frames::flaws;
use yurt_frames::guard::OTHER;
use yurt_frames::guard::POD;
use yurt_frames::guard::advertised;
use yurt_frames::guard::discovery;
use yurt_frames::guard::option;
use yurt_frames::guard::sent;
use yurt_frames::guard::solicitation;
use yurt_frames::ip;
use yurt_frames::tcp;
use yurt_frames::udp;
use yurt_net::dataplane::pod::translate::Translate;
use yurt_net::node::routes::Routes;
use yurt_net::pods::translate::Pair;
use yurt_net::pods::translate::TranslateImage;
use yurt_net::pods::translate::TranslateRow;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::lab::Node;
use yurt_net_tests::testrun::IFINDEX;
use yurt_net_tests::testrun::NEXT;
use yurt_net_tests::testrun::Program;
use yurt_net_tests::testrun::REDIRECT;

/// The programs, without any device: the loopback, where test input comes from, is the Pod's.
struct World {
    translate: Translate,
    to_pod: Program,
    from_pod: Program,
    // Dropped last.
    _node: Node,
    _lab: Lab,
}

#[derive(Clone, Copy)]
struct Cast {
    live: IpAddr,
    promised: IpAddr,
    remote: IpAddr,
}

fn casts() -> Result<[Cast; 2]> {
    Ok([
        Cast {
            live: POD.v4.into(),
            promised: "10.99.0.5".parse()?,
            remote: "192.0.2.7".parse()?,
        },
        Cast {
            live: POD.v6.into(),
            promised: "fd00:99::5".parse()?,
            remote: "2001:db8::7".parse()?,
        },
    ])
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let node = lab.node("edge-1")?;
        let mut translate = Translate::load(&node.bpffs(), None)?;
        let row = TranslateRow {
            mac: POD.mac,
            v4: Some(Pair {
                live: POD.v4,
                promised: "10.99.0.5".parse()?,
            }),
            v6: Some(Pair {
                live: POD.v6,
                promised: "fd00:99::5".parse()?,
            }),
        };
        let wanted = TranslateImage {
            rows: [(IFINDEX, row)].into(),
            ..TranslateImage::default()
        };
        let bring = || translate.bring_to(&wanted, &Routes::open()?);
        let failures = node.netns().run(bring)??;
        assert!(failures.is_empty(), "{failures:?}");
        let pinned = |name| Program::pinned(&node.bpffs().join("yurt-net/translate-v1").join(name));
        Ok(Self {
            to_pod: pinned("yurt_xlate_out")?,
            from_pod: pinned("yurt_xlate_in")?,
            translate,
            _node: node,
            _lab: lab,
        })
    }

    /// The counters that are not zero.
    fn counts(&self) -> Result<Vec<String>> {
        let counts = self.translate.counters()?.read()?.into_iter();
        let moved = counts.filter(|(_, count)| *count > 0);
        Ok(moved
            .map(|(name, count)| format!("{count} {name}"))
            .collect())
    }
}

fn frame(packet: Packet) -> Vec<u8> {
    eth(OTHER.mac, POD.mac).then(packet).bytes()
}

fn at(addr: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(addr, port)
}

#[track_caller]
fn assert_passed((verdict, after): (u32, Vec<u8>), expected: &[u8]) {
    assert_eq!(verdict, NEXT);
    assert_eq!(flaws(&after), [""; 0]);
    assert_eq!(after, expected);
}

#[test]
fn packets_go_to_the_live_address_and_come_from_the_promised_one_with_all_checksums_right()
-> Result<()> {
    let world = World::new()?;
    for Cast {
        live,
        promised,
        remote,
    } in casts()?
    {
        let of = |source, to| -> Vec<Vec<u8>> {
            let (from, to_port) = (at(source, 40000), at(to, 80));
            let without_sum = Udp {
                checksum: Some(0),
                ..Udp::new(40000, 80)
            };
            let packets = [
                tcp(from, to_port, SYN, b""),
                tcp(from, to_port, ACK, b"hello"),
                udp(from, to_port, b"hello"),
                ip(source, to).then(without_sum).data(b"hello"),
                ip(source, to).sctp(40000, 80),
                ip(source, to).ping(77),
                ip(source, to).port_unreachable(&[]),
            ];
            let fragments = udp(from, to_port, &[7; 40]).fragments(9, &[24]);
            packets.into_iter().chain(fragments).map(frame).collect()
        };
        for (sent, expected) in of(remote, promised).iter().zip(of(remote, live)) {
            let (verdict, after) = world.to_pod.pass(sent)?;
            assert_eq!((verdict, after), (NEXT, expected));
        }
        for (sent, expected) in of(live, remote).iter().zip(of(promised, remote)) {
            let (verdict, after) = world.from_pod.pass(sent)?;
            assert_eq!((verdict, after), (NEXT, expected));
        }
    }
    assert_eq!(world.counts()?, ["18 from_pod", "18 to_pod"]);
    Ok(())
}

#[test]
fn a_flow_that_came_in_at_the_live_address_keeps_it_until_it_comes_in_at_the_other() -> Result<()> {
    let world = World::new()?;
    for Cast {
        live,
        promised,
        remote,
    } in casts()?
    {
        let client = at(remote, 40000);
        let ask = |addr| frame(udp(client, at(addr, 53), b"question"));
        let answer = |addr| frame(udp(at(addr, 53), client, b"answer"));
        assert_passed(world.from_pod.pass(&answer(live))?, &answer(promised));
        assert_passed(world.to_pod.pass(&ask(live))?, &ask(live));
        assert_passed(world.from_pod.pass(&answer(live))?, &answer(live));
        assert_passed(world.to_pod.pass(&ask(promised))?, &ask(live));
        assert_passed(world.from_pod.pass(&answer(live))?, &answer(promised));
        // A connection is remembered for as long as nothing opens anew.
        let dial = |addr, flags| frame(tcp(client, at(addr, 80), flags, b""));
        let reply = |addr, flags| frame(tcp(at(addr, 80), client, flags, b""));
        assert_passed(world.to_pod.pass(&dial(live, SYN))?, &dial(live, SYN));
        assert_passed(
            world.from_pod.pass(&reply(live, SYN | ACK))?,
            &reply(live, SYN | ACK),
        );
        assert_passed(
            world.from_pod.pass(&reply(live, SYN))?,
            &reply(promised, SYN),
        );
        assert_passed(
            world.from_pod.pass(&reply(live, ACK))?,
            &reply(promised, ACK),
        );
    }
    assert_eq!(world.counts()?, ["8 from_pod", "4 kept_live", "2 to_pod"]);
    Ok(())
}

#[test]
fn an_error_is_changed_along_with_the_packet_in_it() -> Result<()> {
    let world = World::new()?;
    for Cast {
        live,
        promised,
        remote,
    } in casts()?
    {
        let header = if live.is_ipv4() { 20 } else { 40 };
        let errors = |source, to, about: &[u8]| {
            let error = ip(source, to);
            [
                error.clone().port_unreachable(about),
                error.clone().too_big(1280, about),
                error.time_exceeded(about),
            ]
            .map(frame)
        };
        let sent = |addr| tcp(at(addr, 40000), at(remote, 80), ACK, b"hello").bytes();
        let (promised_whole, live_whole) = (sent(promised), sent(live));
        for length in [promised_whole.len(), header + 8] {
            let told = errors(remote, promised, &promised_whole[..length]);
            let expected = errors(remote, live, &live_whole[..length]);
            for (told, expected) in told.iter().zip(&expected) {
                assert_passed(world.to_pod.pass(told)?, expected);
            }
        }
        let asked = |addr| udp(at(remote, 40000), at(addr, 9), b"nobody there").bytes();
        let told = errors(live, remote, &asked(live));
        let expected = errors(promised, remote, &asked(promised));
        for (told, expected) in told.iter().zip(&expected) {
            assert_passed(world.from_pod.pass(told)?, expected);
        }
    }
    Ok(())
}

#[test]
fn who_asks_for_the_promised_address_is_answered_where_the_pod_is() -> Result<()> {
    let world = World::new()?;
    let [v4, v6] = casts()?;
    let (IpAddr::V4(promised4), IpAddr::V6(promised6)) = (v4.promised, v6.promised) else {
        unreachable!()
    };
    let request = sent(OTHER.mac, Arp::request((OTHER.mac, OTHER.v4), promised4));
    let (verdict, answer) = world.to_pod.pass(&request)?;
    assert_eq!(verdict, REDIRECT);
    let expected = Arp::answer((POD.mac, promised4), (OTHER.mac, OTHER.v4));
    assert_eq!(answer, eth(POD.mac, OTHER.mac).then(expected).padded());
    let message = advertised(0x60, promised6, POD.mac);
    let expected = eth(POD.mac, OTHER.mac).then(discovery(promised6, OTHER.v6, message));
    for options in [
        option(1, OTHER.mac),
        Vec::new(),
        [option(14, OTHER.mac), option(1, OTHER.mac)].concat(),
    ] {
        let request = sent(OTHER.mac, solicitation(OTHER.v6, promised6, &options));
        let (verdict, answer) = world.to_pod.pass(&request)?;
        assert_eq!(verdict, REDIRECT);
        assert_eq!(flaws(&answer), [""; 0]);
        assert_eq!(answer, expected.bytes());
    }
    // What it has itself, it answers for itself.
    for request in [
        Arp::request((OTHER.mac, OTHER.v4), POD.v4).into(),
        Arp::answer((OTHER.mac, OTHER.v4), ([0; 6], promised4)).into(),
        solicitation(OTHER.v6, POD.v6, &option(1, OTHER.mac)),
    ] {
        let request = sent(OTHER.mac, request);
        assert_eq!(world.to_pod.pass(&request)?, (NEXT, request));
    }
    assert_eq!(world.counts()?, ["4 answered"]);
    Ok(())
}

#[test]
fn what_a_pod_sends_to_itself_at_the_promised_address_turns_at_its_device() -> Result<()> {
    let world = World::new()?;
    for Cast { live, promised, .. } in casts()? {
        let of = |source, to| frame(tcp(at(source, 40000), at(to, 80), SYN, b""));
        let (verdict, after) = world.from_pod.pass(&of(live, promised))?;
        assert_eq!(verdict, REDIRECT);
        assert_eq!(after[12..], of(promised, promised)[12..]);
        assert_passed(
            world.to_pod.pass(&of(promised, promised))?,
            &of(promised, live),
        );
    }
    Ok(())
}

#[test]
fn tagged_frames_and_devices_without_a_row_are_left_alone() -> Result<()> {
    let mut world = World::new()?;
    let [
        Cast {
            promised, remote, ..
        },
        _,
    ] = casts()?;
    let packet = tcp(at(remote, 1), at(promised, 2), SYN, b"");
    let in_vlan = eth(OTHER.mac, POD.mac)
        .vlan(100)
        .then(packet.clone())
        .bytes();
    let packet = frame(packet);
    assert_eq!(world.to_pod.pass(&in_vlan)?.0, NEXT);
    let none = TranslateImage::default();
    let translate = &mut world.translate;
    let bring = || translate.bring_to(&none, &Routes::open()?);
    let failures = world._node.netns().run(bring)??;
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(world.to_pod.pass(&packet)?, (NEXT, packet));
    assert_eq!(world.counts()?, [""; 0]);
    Ok(())
}

#[test]
fn an_agent_after_another_finds_what_was_translated_and_what_is_remembered() -> Result<()> {
    let mut world = World::new()?;
    let [Cast { live, remote, .. }, _] = casts()?;
    let (client, server) = (at(remote, 40000), at(live, 80));
    let ask = frame(tcp(client, server, SYN, b""));
    let answer = frame(tcp(server, client, SYN | ACK, b""));
    assert_passed(world.to_pod.pass(&ask)?, &ask);
    world.translate = Translate::load(&world._node.bpffs(), None)?;
    let pin = world
        ._node
        .bpffs()
        .join("yurt-net/translate-v1/yurt_xlate_in");
    let next = Program::pinned(&pin).context("the next agent's program")?;
    assert_passed(next.pass(&answer)?, &answer);
    Ok(())
}
