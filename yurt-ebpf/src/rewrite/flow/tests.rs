use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use yurt_frames::{ACK, Packet as Sent, SYN, Tcp, addresses, flaws, ip as host, tcp, udp};

use super::*;
use crate::abi::{
    Affinity, AffinityKey, Backend4, Backend6, Conf, FLOW_CLOSED_S, FLOW_HALF_CLOSED_S,
    FLOW_OPENING_S, FLOW_PART_S, FLOW_QUIET_S, FRONTEND_OUTSIDE, FRONTEND_OUTSIDE_APART, Flow,
    FlowKey, FrontendKey4, FrontendKey6, FrontendValue, Handled, PREFIXES_ARE_SERVICE_CIDRS,
    Prefix4, PublishWord, SCOPE_EXTERNAL, SCOPE_INTERNAL,
};
use crate::frame::ip::{TCP, UDP};
use crate::rewrite::tests::{Bytes, frame, octets, without_sum};
use crate::select::Tables;

mod inside;

const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;

/// A Service.
#[derive(Clone, Default)]
struct Entry {
    word: PublishWord,
    affinity: Affinity,
}

/// The table, the flows and the clock of a node, for both families.
pub(super) struct Node {
    rows: BTreeMap<(IpAddr, u16, u8, u8), (u32, u8)>,
    services: Vec<Entry>,
    slots: Vec<SocketAddr>,
    ranges: BTreeMap<u32, Backend4>,
    conf: Conf,
    flows4: Map<[u8; 4]>,
    flows6: Map<[u8; 16]>,
    pub(super) random: Cell<u32>,
    pub(super) now_s: u32,
    ports: (u16, u16),
    node: [IpAddr; 2],
}

/// The flows of one family.
struct Map<A: Address> {
    up: Vec<(FlowKey<A>, Flow<A>)>,
    opening: Vec<(FlowKey<A>, Flow<A>)>,
    affinity: Vec<(u64, Affinity, A::Backend)>,
    is_full: bool,
}

impl<A: Address> Map<A> {
    fn new() -> Self {
        Self {
            up: Vec::new(),
            opening: Vec::new(),
            affinity: Vec::new(),
            is_full: false,
        }
    }
}

fn is_same<A: Address>(a: &FlowKey<A>, b: &FlowKey<A>) -> bool {
    a.source == b.source
        && a.destination == b.destination
        && (a.source_port_be, a.destination_port_be) == (b.source_port_be, b.destination_port_be)
        && (a.protocol, a.place) == (b.protocol, b.place)
}

impl<A: Address> Flows<A> for Map<A> {
    fn find(&mut self, key: &FlowKey<A>) -> Option<Found<'_, A>> {
        let up = self.up.iter_mut().map(|entry| (entry, false));
        let opening = self.opening.iter_mut().map(|entry| (entry, true));
        let mut entries = up.chain(opening);
        let ((_, flow), is_opening) = entries.find(|((known, _), _)| is_same(known, key))?;
        Some(Found { flow, is_opening })
    }

    fn open(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.opening.retain(|(known, _)| !is_same(known, key));
        self.opening.push((*key, *flow));
        !self.is_full
    }

    fn open_new(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        let is_new = !self.opening.iter().any(|(known, _)| is_same(known, key));
        is_new && self.open(key, flow)
    }

    fn settle(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.forget(key);
        self.up.push((*key, *flow));
        true
    }

    fn retire(&mut self, key: &FlowKey<A>, flow: &Flow<A>) {
        self.forget(key);
        self.opening.push((*key, *flow));
    }

    fn forget(&mut self, key: &FlowKey<A>) {
        self.up.retain(|(known, _)| !is_same(known, key));
        self.opening.retain(|(known, _)| !is_same(known, key));
    }
}

impl<A: Address> Memory<A> for Map<A> {
    fn recall(&mut self, client: u64, affinity: Affinity, backend: &mut A::Backend) -> bool {
        let mut known = self.affinity.iter();
        let known = known.find(|(of, under, _)| (*of, *under) == (client, affinity));
        if let Some((.., known)) = known {
            *backend = *known;
        }
        known.is_some()
    }

    fn remember(&mut self, client: u64, affinity: Affinity, backend: &A::Backend) {
        self.affinity
            .retain(|(of, under, _)| (*of, *under) != (client, affinity));
        self.affinity.push((client, affinity, *backend));
    }
}

/// What the decision sees of a node, but its flows.
struct View<'a, const IS_INSIDE: bool = false>(&'a Node);

impl<const IS_INSIDE: bool> Here for View<'_, IS_INSIDE> {
    const IS_INSIDE: bool = IS_INSIDE;

    fn random(&self) -> u32 {
        // Any numbers that do not repeat soon.
        let next = self
            .0
            .random
            .get()
            .wrapping_mul(0x9e37_79b1)
            .wrapping_add(0x7f4a_7c15);
        self.0.random.set(next);
        next
    }

    fn now_s(&self) -> u32 {
        self.0.now_s
    }

    fn ifindex(&self) -> u32 {
        2
    }

    fn ports(&self) -> (u16, u16) {
        self.0.ports
    }
}

impl<const IS_INSIDE: bool> View<'_, IS_INSIDE> {
    fn row(&self, addr: IpAddr, port_be: [u8; 2], protocol: u8, scope: u8) -> Option<(u32, u8)> {
        let key = (addr, u16::from_be_bytes(port_be), protocol, scope);
        self.0.rows.get(&key).copied()
    }
}

impl<const IS_INSIDE: bool> Tables for View<'_, IS_INSIDE> {
    fn filter(&self, _: u32) -> Option<u64> {
        Some(u64::MAX)
    }

    fn frontend4(&self, key: &FrontendKey4) -> Option<FrontendValue> {
        let row = self.row(key.addr.into(), key.port_be, key.protocol, key.scope);
        row.map(|(service, flags)| FrontendValue::new(service, key.fingerprint(), flags))
    }

    fn frontend6(&self, key: &FrontendKey6) -> Option<FrontendValue> {
        let row = self.row(key.addr.into(), key.port_be, key.protocol, key.scope);
        row.map(|(service, flags)| FrontendValue::new(service, key.fingerprint(), flags))
    }

    fn publish_word(&self, service: u32) -> Option<PublishWord> {
        self.0
            .services
            .get(service as usize)
            .map(|entry| entry.word)
    }

    fn affinity(&self, service: u32) -> Affinity {
        let entry = self.0.services.get(service as usize);
        entry.map(|entry| entry.affinity).unwrap_or_default()
    }

    fn backend4(&self, slot: u32) -> Option<Backend4> {
        if let Some(range) = self.0.ranges.get(&slot) {
            return Some(*range);
        }
        match self.0.slots.get(slot as usize)? {
            SocketAddr::V4(at) => Some(at.ip().octets().backend(at.port().to_be_bytes())),
            SocketAddr::V6(_) => None,
        }
    }

    fn backend6(&self, slot: u32) -> Option<Backend6> {
        match self.0.slots.get(slot as usize)? {
            SocketAddr::V6(at) => Some(at.ip().octets().backend(at.port().to_be_bytes())),
            SocketAddr::V4(_) => None,
        }
    }

    fn conf(&self) -> Option<&Conf> {
        Some(&self.0.conf)
    }
}

/// Both programs that see what comes in, as the kernel runs them.
fn come_in<A: Address, const IS_INSIDE: bool>(
    packet: &mut Bytes,
    view: &View<'_, IS_INSIDE>,
    flows: &mut Map<A>,
) -> Verdict {
    match arriving(packet, flows, view, &mut scratch()) {
        Verdict::Opens => opening(packet, view, flows, view, &mut scratch()),
        Verdict::Error => error_arriving(packet, flows, view, &mut scratch()),
        verdict => verdict,
    }
}

/// Both programs that see what leaves.
fn go_out<A: Address, const IS_INSIDE: bool>(
    packet: &mut Bytes,
    view: &View<'_, IS_INSIDE>,
    flows: &mut Map<A>,
    is_forwarded: bool,
    node: impl FnOnce() -> Option<A>,
) -> Verdict {
    match leaving(packet, flows, view, &mut scratch(), is_forwarded, node) {
        Verdict::Error => error_leaving(packet, flows, view, &mut scratch()),
        verdict => verdict,
    }
}

/// As the kernel makes it.
fn scratch<A: Address>() -> Scratch<A> {
    // SAFETY: numbers, and enumerations that have a value 0.
    unsafe { std::mem::zeroed() }
}

impl Node {
    pub(super) fn new() -> Self {
        Self {
            rows: BTreeMap::new(),
            services: Vec::new(),
            slots: Vec::new(),
            ranges: BTreeMap::new(),
            conf: Conf::default(),
            flows4: Map::new(),
            flows6: Map::new(),
            random: Cell::new(1),
            now_s: 1000,
            ports: (61000, 4536),
            node: [ip("192.0.2.11"), ip("2001:db8::11")],
        }
    }

    /// A Service at these frontends, for clients outside too.
    pub(super) fn serve(&mut self, protocol: u8, at: &[&str], backends: &[&str]) -> usize {
        let index = self.add(backends);
        for at in at {
            let at: SocketAddr = at.parse().unwrap();
            let key = (at.ip(), at.port(), protocol, SCOPE_INTERNAL);
            self.rows
                .insert(key, (u32::try_from(index).unwrap(), FRONTEND_OUTSIDE));
        }
        index
    }

    /// A set of backends.
    fn add(&mut self, backends: &[&str]) -> usize {
        let mut backends: Vec<SocketAddr> = backends.iter().map(|at| at.parse().unwrap()).collect();
        backends.sort();
        let base = u32::try_from(self.slots.len()).unwrap();
        let word = PublishWord::new(base, u16::try_from(backends.len()).unwrap(), 1);
        self.slots.append(&mut backends);
        self.services.push(Entry {
            word,
            ..Entry::default()
        });
        self.services.len() - 1
    }

    pub(super) fn arrive(&mut self, packet: &Sent) -> (Verdict, Vec<u8>) {
        self.arrive_at::<false>(packet)
    }

    /// At a device that leads to a Pod of this node, or outside.
    fn arrive_at<const IS_INSIDE: bool>(&mut self, packet: &Sent) -> (Verdict, Vec<u8>) {
        let mut bytes = Bytes(frame(packet));
        let verdict = if packet
            .addresses()
            .is_some_and(|(source, _)| source.is_ipv4())
        {
            let mut flows = std::mem::replace(&mut self.flows4, Map::new());
            let view = View::<IS_INSIDE>(self);
            let verdict = come_in(&mut bytes, &view, &mut flows);
            self.flows4 = flows;
            verdict
        } else {
            let mut flows = std::mem::replace(&mut self.flows6, Map::new());
            let view = View::<IS_INSIDE>(self);
            let verdict = come_in(&mut bytes, &view, &mut flows);
            self.flows6 = flows;
            verdict
        };
        (verdict, bytes.0)
    }

    pub(super) fn leave(&mut self, packet: &Sent, is_forwarded: bool) -> (Verdict, Vec<u8>) {
        self.leave_at::<false>(packet, is_forwarded)
    }

    /// See `arrive_at`.
    fn leave_at<const IS_INSIDE: bool>(
        &mut self,
        packet: &Sent,
        is_forwarded: bool,
    ) -> (Verdict, Vec<u8>) {
        let mut bytes = Bytes(frame(packet));
        let verdict = if packet
            .addresses()
            .is_some_and(|(source, _)| source.is_ipv4())
        {
            let mut flows = std::mem::replace(&mut self.flows4, Map::new());
            let node = || Some(octets(self.node[0]));
            let here = View::<IS_INSIDE>(self);
            let verdict = go_out(&mut bytes, &here, &mut flows, is_forwarded, node);
            self.flows4 = flows;
            verdict
        } else {
            let mut flows = std::mem::replace(&mut self.flows6, Map::new());
            let node = || Some(octets(self.node[1]));
            let here = View::<IS_INSIDE>(self);
            let verdict = go_out(&mut bytes, &here, &mut flows, is_forwarded, node);
            self.flows6 = flows;
            verdict
        };
        (verdict, bytes.0)
    }

    /// A packet that comes in and is led to a backend: which one.
    #[track_caller]
    fn led(&mut self, packet: &Sent, as_what: Handled) -> SocketAddr {
        let (verdict, after) = self.arrive(packet);
        assert_eq!(verdict, Verdict::Is(as_what));
        assert_eq!(flaws(&after), [""; 0]);
        ends(&after[14..]).1
    }

    /// A packet that leaves: from where to where it appears.
    #[track_caller]
    fn sent(&mut self, packet: &Sent, as_what: Handled) -> (SocketAddr, SocketAddr) {
        let (verdict, after) = self.leave(packet, true);
        assert_eq!(verdict, Verdict::Is(as_what));
        assert_eq!(flaws(&after), [""; 0]);
        ends(&after[14..])
    }

    #[track_caller]
    fn is_handled(&mut self, packet: &Sent, as_what: Handled) {
        assert_eq!(self.arrive(packet).0, Verdict::Is(as_what));
    }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An IP header between two hosts.
fn host_to_host(from: SocketAddr, to: SocketAddr) -> Sent {
    host(from.ip(), to.ip())
}

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Source and destination of a packet with ports.
pub(super) fn ends(packet: &[u8]) -> (SocketAddr, SocketAddr) {
    let (source, to) = addresses(packet);
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    (
        SocketAddr::new(source, port(header)),
        SocketAddr::new(to, port(header + 2)),
    )
}

/// A client, the frontend that it dials, a backend, and another frontend with the same backend; of one family.
pub(super) struct Cast {
    pub(super) client: SocketAddr,
    pub(super) dialled: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) node: IpAddr,
}

pub(super) fn casts() -> [Cast; 2] {
    let cast = |[client, dialled, backend, node]: [&str; 4]| Cast {
        client: at(client),
        dialled: at(dialled),
        backend: at(backend),
        node: ip(node),
    };
    [
        cast([
            "198.51.100.7:40000",
            "192.0.2.11:30080",
            "10.244.1.5:8080",
            "192.0.2.11",
        ]),
        cast([
            "[2001:db8:9::7]:40000",
            "[2001:db8::11]:30080",
            "[fd00:244:1::5]:8080",
            "2001:db8::11",
        ]),
    ]
}

#[test]
fn a_client_outside_is_led_to_a_backend_and_sees_only_the_address_that_it_dialled() {
    for Cast {
        client,
        dialled,
        backend,
        ..
    } in casts()
    {
        let mut node = Node::new();
        let (from, to) = (dialled.to_string(), backend.to_string());
        node.serve(TCP, &[&from], &[&to]);
        node.serve(UDP, &[&from], &[&to]);
        let asked = [
            (tcp(client, dialled, SYN, b""), Handled::NewFlow),
            (tcp(client, dialled, ACK, b"question"), Handled::ToBackend),
            (udp(client, dialled, b"question"), Handled::NewFlow),
            (udp(client, dialled, b"another one"), Handled::ToBackend),
        ];
        for (packet, as_what) in asked {
            assert_eq!(node.led(&packet, as_what), backend);
        }
        let answers = [
            tcp(backend, client, SYN | ACK, b""),
            udp(backend, client, b"answer"),
        ];
        for packet in answers {
            assert_eq!(node.sent(&packet, Handled::ToClient), (dialled, client));
        }
        if client.is_ipv4() {
            let (_, after) = node.arrive(&without_sum(client, dialled));
            assert_eq!(after, frame(&without_sum(client, backend)));
        }
    }
}

#[test]
fn a_backend_elsewhere_sees_the_nodes_address_and_its_answer_comes_back_to_the_client() {
    for Cast {
        client,
        dialled,
        backend,
        node: address,
    } in casts()
    {
        let mut node = Node::new();
        node.serve(UDP, &[&dialled.to_string()], &[&backend.to_string()]);
        let asked = udp(client, dialled, b"question");
        assert_eq!(node.led(&asked, Handled::NewFlow), backend);
        let (seen, to) = node.sent(&udp(client, backend, b"question"), Handled::ToBackend);
        assert_eq!((seen.ip(), to), (address, backend));
        assert!((61000..65536).contains(&u32::from(seen.port())), "{seen}");
        // The second one has the same port.
        let again = node.sent(&udp(client, backend, b"another one"), Handled::ToBackend);
        assert_eq!(again, (seen, backend));
        // As it comes in it is the client's, and as it leaves it comes from the address that was dialled.
        let (verdict, after) = node.arrive(&udp(backend, seen, b"answer"));
        assert_eq!(verdict, Verdict::Is(Handled::ToClient));
        assert_eq!(ends(&after[14..]), (backend, client));
        let answer = udp(backend, client, b"answer");
        assert_eq!(node.sent(&answer, Handled::ToClient), (dialled, client));
        // To nobody who has not asked.
        let stranger = SocketAddr::new(seen.ip(), if seen.port() == 61000 { 61001 } else { 61000 });
        assert_eq!(node.arrive(&udp(backend, stranger, b"")).0, Verdict::Pass);
    }
}

#[test]
fn a_client_that_has_a_port_of_the_range_keeps_it_while_that_is_free() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.2.5:53"]);
    let seen = |node: &mut Node, client: &str| {
        let client = at(client);
        node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
        let (seen, _) = node.sent(&udp(client, at("10.244.2.5:53"), b"?"), Handled::ToBackend);
        seen.port()
    };
    assert_eq!(seen(&mut node, "198.51.100.7:61234"), 61234);
    let other = seen(&mut node, "198.51.100.8:61234");
    assert_ne!(other, 61234);
}

#[test]
fn without_a_free_port_or_an_address_a_flow_is_dropped_and_costs_nobody_else() {
    let mut node = Node::new();
    node.ports = (61000, 2);
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.2.5:53"]);
    let backend = at("10.244.2.5:53");
    let mut seen = Vec::new();
    for host in 1..=40 {
        let client = SocketAddr::new(ip(&format!("198.51.100.{host}")), 40000);
        node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
        let (verdict, after) = node.leave(&udp(client, backend, b"?"), true);
        match verdict {
            Verdict::Is(Handled::ToBackend) => seen.push(ends(&after[14..]).0),
            other => assert_eq!(other, Verdict::Is(Handled::DropNoPort)),
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2);
    // When they are over, their ports are free.
    node.now_s += FLOW_QUIET_S + 1;
    let client = at("198.51.100.99:40000");
    node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
    node.sent(&udp(client, backend, b"?"), Handled::ToBackend);
    node.node = [ip("0.0.0.0"), ip("::")];
    let client = at("198.51.100.98:40000");
    node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
    let (verdict, _) = node.leave(&udp(client, backend, b"?"), true);
    assert_eq!(verdict, Verdict::Is(Handled::DropNoPort));
}

/// A Service of fifty backends on this node, and a client that has a connection to one of them.
fn connected(client: SocketAddr, dialled: SocketAddr) -> (Node, usize, SocketAddr) {
    let backends: Vec<String> = (1..=50).map(|host| format!("10.244.1.{host}:80")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut node = Node::new();
    let index = node.serve(TCP, &[&dialled.to_string()], &backends);
    let backend = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
    let led = node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
    assert_eq!(led, backend);
    (node, index, backend)
}

#[test]
fn a_syn_that_is_sent_again_goes_to_the_same_backend() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, ..) = connected(at("198.51.100.8:1"), dialled);
    let first = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    for _ in 0..5 {
        let again = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
        assert_eq!(again, first);
    }
}

#[test]
fn a_stray_syn_moves_no_connection_that_is_up() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, _, backend) = connected(client, dialled);
    for _ in 0..10 {
        let led = node.led(&tcp(client, dialled, SYN, b""), Handled::ToBackend);
        assert_eq!(led, backend);
        let led = node.led(&tcp(client, dialled, ACK, b"more"), Handled::ToBackend);
        assert_eq!(led, backend);
    }
}

#[test]
fn a_port_that_is_used_again_gets_no_backend_of_before_that_has_gone() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, index, _) = connected(client, dialled);
    let other = node.add(&["10.244.9.9:80"]);
    node.services[index] = node.services[other].clone();
    let led = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    assert_eq!(led, at("10.244.9.9:80"));
}

/// A RST whose number is the one that its receiver expects.
fn reset(from: SocketAddr, to: SocketAddr) -> Sent {
    host_to_host(from, to).then(Tcp {
        sequence: 9,
        ..Tcp::new(from.port(), to.port(), RST)
    })
}

#[test]
fn a_connection_that_was_closed_by_both_sides_or_reset_by_one_is_decided_anew() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    for way in 0..4 {
        for _ in 0..10 {
            let (mut node, _, backend) = connected(client, dialled);
            if way == 0 {
                node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient);
            }
            if way <= 1 {
                node.led(&tcp(client, dialled, FIN_ACK, b""), Handled::ToBackend);
            }
            match way {
                0 => {}
                1 => drop(node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient)),
                2 => drop(node.sent(&reset(backend, client), Handled::ToClient)),
                _ => drop(node.led(&reset(client, dialled), Handled::ToBackend)),
            }
            // What ends it is still led, and it takes no room from those that are up.
            node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
            assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (0, 2));
            let again = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
            let answer = node.sent(&tcp(again, client, SYN | ACK, b""), Handled::ToClient);
            assert_eq!(answer, (dialled, client));
            let led = node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
            assert_eq!(led, again);
            node.now_s += FLOW_CLOSED_S + 1;
            node.sent(&tcp(again, client, ACK, b""), Handled::ToClient);
        }
    }
}

#[test]
fn a_connection_that_one_side_has_closed_lives_for_as_long_as_the_other_one_may_need() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    for is_by_client in [true, false] {
        let (mut node, _, backend) = connected(client, dialled);
        if is_by_client {
            node.led(&tcp(client, dialled, FIN_ACK, b""), Handled::ToBackend);
        } else {
            node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient);
        }
        for _ in 0..3 {
            node.now_s += FLOW_HALF_CLOSED_S;
            let answer = node.sent(&tcp(backend, client, ACK, b"!"), Handled::ToClient);
            assert_eq!(answer, (dialled, client));
            let led = node.led(&tcp(client, dialled, ACK, b"?"), Handled::ToBackend);
            assert_eq!(led, backend);
        }
    }
}

#[test]
fn who_does_not_know_where_a_connection_is_neither_ends_nor_moves_it() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let blind = |flags| {
        host_to_host(client, dialled).then(Tcp {
            sequence: 0x7000_0000,
            acknowledged: 0x7000_0000,
            ..Tcp::new(client.port(), dialled.port(), flags)
        })
    };
    for flags in [RST, RST | ACK, FIN_ACK, FIN_ACK | RST] {
        let (mut node, _, backend) = connected(client, dialled);
        for packet in [blind(flags), blind(SYN), blind(ACK)] {
            assert_eq!(node.led(&packet, Handled::ToBackend), backend);
        }
        assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (2, 0));
        node.now_s += FLOW_CLOSED_S + 1;
        let led = node.led(&tcp(client, dialled, ACK, b"?"), Handled::ToBackend);
        assert_eq!(led, backend, "{flags}");
        let answer = node.sent(&tcp(backend, client, ACK, b"!"), Handled::ToClient);
        assert_eq!(answer, (dialled, client));
    }
}

#[test]
fn a_forged_syn_does_not_take_the_answers_of_a_connection_without_a_service() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let mut node = Node::new();
    node.serve(TCP, &["192.0.2.11:80"], &["10.244.1.5:80"]);
    let backend = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    let far = host_to_host(backend, client).then(Tcp {
        acknowledged: 0x5000_0000,
        ..Tcp::new(backend.port(), client.port(), ACK)
    });
    assert_eq!(node.leave(&far, false), (Verdict::Pass, frame(&far)));
    // The backend's answer to that SYN is the flow's.
    let answer = node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
    assert_eq!(answer, (dialled, client));
}

#[test]
fn syns_that_nobody_has_answered_give_way_to_others_after_three_seconds() {
    let mut node = Node::new();
    node.serve(TCP, &["192.0.2.11:80"], &["10.244.2.5:80"]);
    let (dialled, backend) = (at("192.0.2.11:80"), at("10.244.2.5:80"));
    let dial = |node: &mut Node, host: usize| {
        let client = at(&format!(
            "198.51.100.{}:{}",
            host % 250 + 1,
            1000 + host / 250
        ));
        node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
        node.leave(&tcp(client, backend, SYN, b""), true).0
    };
    let mut hosts = 0..;
    while dial(&mut node, hosts.next().unwrap()) != Verdict::Is(Handled::DropNoPort) {}
    node.now_s += FLOW_OPENING_S + 1;
    let is_found = Verdict::Is(Handled::ToBackend);
    assert_eq!(dial(&mut node, hosts.next().unwrap()), is_found);
}

#[test]
fn only_who_has_seen_the_backends_answer_has_a_flow_that_is_up() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, _, _) = connected(client, dialled);
    assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (2, 0));
    for host in 1..=5 {
        let client = SocketAddr::new(ip(&format!("203.0.113.{host}")), 1);
        let backend = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
        let blind = Tcp {
            acknowledged: 0x9000_0000,
            ..Tcp::new(client.port(), dialled.port(), ACK)
        };
        let blind = host_to_host(client, dialled).then(blind);
        node.led(&blind, Handled::ToBackend);
        node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
        node.led(&blind, Handled::ToBackend);
    }
    assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (2, 10));
}

#[test]
fn a_masqueraded_flow_that_is_up_is_so_in_all_of_its_entries() {
    let mut node = Node::new();
    node.serve(TCP, &["192.0.2.11:80"], &["10.244.2.5:80"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let backend = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    let (seen, _) = node.sent(&tcp(client, backend, SYN, b""), Handled::ToBackend);
    node.is_handled(&tcp(backend, seen, SYN | ACK, b""), Handled::ToClient);
    node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
    assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (0, 3));
    node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
    assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (3, 0));
    let again = node.sent(&tcp(client, backend, ACK, b""), Handled::ToBackend);
    assert_eq!(again, (seen, backend));
}

#[test]
fn who_dials_a_backend_itself_gets_its_answers_as_they_are() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, _, backend) = connected(client, dialled);
    let direct = tcp(client, backend, SYN, b"");
    let answer = tcp(backend, client, SYN | ACK, b"");
    // Not while answers could be either's.
    node.is_handled(&direct, Handled::DropClash);
    node.led(&tcp(client, dialled, FIN_ACK, b""), Handled::ToBackend);
    node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient);
    assert_eq!(node.arrive(&direct), (Verdict::Pass, frame(&direct)));
    assert_eq!(node.leave(&answer, false), (Verdict::Pass, frame(&answer)));
    // Or a while after it was reset.
    let (mut node, _, backend) = connected(client, dialled);
    node.sent(&reset(backend, client), Handled::ToClient);
    node.now_s += FLOW_CLOSED_S + 1;
    let answer = tcp(backend, client, SYN | ACK, b"");
    assert_eq!(node.leave(&answer, false), (Verdict::Pass, frame(&answer)));
}

#[test]
fn of_datagrams_to_a_backend_and_to_its_service_those_of_a_flow_that_was_answered_count() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:53"));
    let backend = at("10.244.1.5:53");
    let answer = udp(backend, client, b"!");
    let direct = udp(client, backend, b"?");
    for _ in 0..2 {
        node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
        assert_eq!(node.arrive(&direct), (Verdict::Pass, frame(&direct)));
        assert_eq!(node.leave(&answer, false), (Verdict::Pass, frame(&answer)));
    }
    // Whoever sends with the client's address does not end what was answered.
    node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
    assert_eq!(node.sent(&answer, Handled::ToClient), (dialled, client));
    node.is_handled(&direct, Handled::DropClash);
    assert_eq!(node.sent(&answer, Handled::ToClient), (dialled, client));
}

#[test]
fn an_established_flow_stays_with_its_backend_whatever_the_table_says() {
    let mut node = Node::new();
    let index = node.serve(TCP, &["192.0.2.11:80"], &["10.244.1.5:80"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
    let other = node.add(&["10.244.1.6:80"]);
    node.services[index] = node.services[other].clone();
    node.now_s += 100_000;
    let led = node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
    assert_eq!(led, at("10.244.1.5:80"));
    node.rows.clear();
    let led = node.led(&tcp(client, dialled, FIN_ACK, b""), Handled::ToBackend);
    assert_eq!(led, at("10.244.1.5:80"));
    // Of no Service any more.
    assert_eq!(
        node.arrive(&tcp(client, dialled, SYN, b"")).0,
        Verdict::Pass
    );
}

#[test]
fn a_quiet_flow_of_datagrams_is_over_and_decides_anew() {
    let mut node = Node::new();
    let index = node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:53"));
    node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
    let other = node.add(&["10.244.1.6:53"]);
    node.services[index] = node.services[other].clone();
    node.now_s += FLOW_QUIET_S;
    let led = node.led(&udp(client, dialled, b"?"), Handled::ToBackend);
    assert_eq!(led, at("10.244.1.5:53"));
    node.now_s += FLOW_QUIET_S + 1;
    let led = node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
    assert_eq!(led, at("10.244.1.6:53"));
    node.sent(&udp(led, client, b"!"), Handled::ToClient);
    for _ in 0..2 {
        let led = node.led(&udp(client, dialled, b"?"), Handled::ToBackend);
        assert_eq!(led, at("10.244.1.6:53"));
    }
}

#[test]
fn a_flow_of_datagrams_lives_in_both_directions_for_as_long_as_anybody_sends() {
    for is_here in [true, false] {
        let mut node = Node::new();
        let index = node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
        let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:53"));
        let backend = node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
        let mut seen = client;
        if !is_here {
            seen = node.sent(&udp(client, backend, b"?"), Handled::ToBackend).0;
        }
        let other = node.add(&["10.244.1.6:53"]);
        node.services[index] = node.services[other].clone();
        let answer = |node: &mut Node| {
            if !is_here {
                node.is_handled(&udp(backend, seen, b"!"), Handled::ToClient);
            }
            let answer = node.sent(&udp(backend, client, b"!"), Handled::ToClient);
            assert_eq!(answer, (dialled, client));
        };
        // Only the client, for long.
        for _ in 0..5 {
            node.now_s += FLOW_QUIET_S - 1;
            let led = node.led(&udp(client, dialled, b"?"), Handled::ToBackend);
            assert_eq!(led, backend);
            if !is_here {
                let again = node.sent(&udp(client, backend, b"?"), Handled::ToBackend);
                assert_eq!(again.0, seen);
            }
        }
        // Only the backend.
        for _ in 0..5 {
            answer(&mut node);
            node.now_s += FLOW_QUIET_S - 1;
        }
        answer(&mut node);
        let led = node.led(&udp(client, dialled, b"?"), Handled::ToBackend);
        assert_eq!(led, backend);
        node.now_s += FLOW_QUIET_S + 1;
        let led = node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
        assert_eq!(led, at("10.244.1.6:53"));
    }
}

#[test]
fn two_flows_of_one_client_port_to_one_backend_are_never_mixed_up() {
    let mut node = Node::new();
    let backend = "10.244.1.5:80";
    node.serve(TCP, &["192.0.2.11:80"], &[backend]);
    node.serve(TCP, &["192.0.2.11:81"], &[backend]);
    let client = at("198.51.100.7:40000");
    node.led(
        &tcp(client, at("192.0.2.11:80"), SYN, b""),
        Handled::NewFlow,
    );
    node.is_handled(
        &tcp(client, at("192.0.2.11:81"), SYN, b""),
        Handled::DropClash,
    );
    // Where there is another backend, it has that one.
    node.serve(TCP, &["192.0.2.11:82"], &[backend, "10.244.1.6:80"]);
    let mut led = Vec::new();
    for port in 82..83 {
        let dialled = SocketAddr::new(ip("192.0.2.11"), port);
        if let (Verdict::Is(Handled::NewFlow), after) = node.arrive(&tcp(client, dialled, SYN, b""))
        {
            led.push(ends(&after[14..]).1);
        }
    }
    assert!(led.iter().all(|to| *to == at("10.244.1.6:80")), "{led:?}");
    // When the first one is closed, its backend is free.
    node.arrive(&tcp(client, at("192.0.2.11:80"), RST, b""));
    let refusal = tcp(at(backend), client, RST | ACK, b"");
    node.sent(&refusal, Handled::ToClient);
    node.now_s += FLOW_CLOSED_S + 1;
    let led = node.led(
        &tcp(client, at("192.0.2.11:81"), SYN, b""),
        Handled::NewFlow,
    );
    assert_eq!(led, at(backend));
    let answer = tcp(at(backend), client, SYN | ACK, b"");
    assert_eq!(node.sent(&answer, Handled::ToClient).0, at("192.0.2.11:81"));
}

#[test]
fn clients_outside_get_what_rows_say_of_them() {
    let mut node = Node::new();
    let inside = node.serve(TCP, &["192.0.2.11:80"], &["10.244.2.5:80"]);
    let outside = node.add(&["10.244.1.5:80"]);
    let nobody = node.add(&[]);
    let (client, addr) = (at("198.51.100.7:40000"), ip("192.0.2.11"));
    let dial = tcp(client, at("192.0.2.11:80"), SYN, b"");
    let row = |scope| (addr, 80, TCP, scope);
    let index = |index: usize| u32::try_from(index).unwrap();
    node.rows
        .insert(row(SCOPE_INTERNAL), (index(inside), FRONTEND_OUTSIDE_APART));
    // The agent writes the other row first: without it nobody is led anywhere.
    node.is_handled(&dial, Handled::DropInconsistent);
    node.rows.insert(row(SCOPE_EXTERNAL), (index(outside), 0));
    assert_eq!(node.led(&dial, Handled::NewFlow), at("10.244.1.5:80"));
    node.rows.insert(row(SCOPE_EXTERNAL), (index(nobody), 0));
    node.is_handled(&dial, Handled::RefuseNoEndpoint);
    node.services[nobody].word = node.services[nobody].word.with_drop();
    node.is_handled(&dial, Handled::DropNoLocalEndpoint);
    // A row for this node alone.
    node.rows.insert(row(SCOPE_INTERNAL), (index(inside), 0));
    assert_eq!(node.arrive(&dial), (Verdict::Pass, frame(&dial)));
}

#[test]
fn a_client_outside_the_ranges_of_a_service_is_dropped() {
    let mut node = Node::new();
    let index = node.serve(TCP, &["203.0.113.9:80"], &["10.244.1.5:80"]);
    let range = Backend4::range([198, 51, 100, 0], [255, 255, 255, 0]);
    let slot = u32::try_from(node.slots.len()).unwrap();
    node.ranges.insert(slot, range);
    node.services[index].word = node.services[index].word.with_ranges(1);
    let dial = |client: &str| tcp(at(client), at("203.0.113.9:80"), SYN, b"");
    node.led(&dial("198.51.100.7:40000"), Handled::NewFlow);
    node.is_handled(&dial("198.51.101.7:40000"), Handled::DropSourceRange);
}

#[test]
fn a_client_with_affinity_is_known_by_its_address_at_every_frontend() {
    for v6 in [false, true] {
        let mut node = Node::new();
        let backends: Vec<String> = (1..=50)
            .map(|host| match v6 {
                false => format!("10.244.1.{host}:80"),
                true => format!("[fd00:244:1::{host}]:80"),
            })
            .collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        let (client, frontends) = match v6 {
            false => (ip("198.51.100.7"), ["192.0.2.11:80", "203.0.113.9:80"]),
            true => (
                ip("2001:db8:9::7"),
                ["[2001:db8::11]:80", "[2001:db8::9]:80"],
            ),
        };
        let index = node.serve(TCP, &frontends, &backends);
        node.services[index].affinity = Affinity::new(600, 77);
        let mut led: Vec<SocketAddr> = (0..20_u16)
            .map(|number| {
                let dialled = at(frontends[usize::from(number % 2)]);
                let client = SocketAddr::new(client, 40000 + number);
                node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow)
            })
            .collect();
        led.dedup();
        assert_eq!(led.len(), 1, "{led:?}");
    }
}

#[test]
fn what_comes_from_outside_for_a_loopback_address_is_dropped() {
    let mut node = Node::new();
    for (from, to) in [
        ("198.51.100.7:1", "127.0.0.1:80"),
        ("[2001:db8::7]:1", "[::1]:80"),
    ] {
        let (from, to) = (at(from), at(to));
        let packets = [
            tcp(from, to, SYN, b""),
            host_to_host(from, to).ping(7),
            host_to_host(from, to).sctp(1, 2),
            host_to_host(to, from).udp(1, 2),
        ];
        let fragments = udp(from, to, &[7; 40]).fragments(9, &[24]);
        for packet in packets.into_iter().chain(fragments) {
            node.is_handled(&packet, Handled::DropLoopback);
        }
    }
}

#[test]
fn an_address_of_the_link_is_no_frontend_outside_whatever_the_table_says() {
    let mut node = Node::new();
    for (from, to, backend) in [
        ("198.51.100.7:1", "169.254.20.10:53", "10.244.1.5:53"),
        ("[2001:db8::7]:1", "[fe80::10]:53", "[fd00:244:1::5]:53"),
    ] {
        node.serve(UDP, &[to], &[backend]);
        let packet = udp(at(from), at(to), b"?");
        assert_eq!(node.arrive(&packet), (Verdict::Pass, frame(&packet)));
    }
}

#[test]
fn unknown_ports_and_unallocated_addresses_of_services_are_refused() {
    let mut node = Node::new();
    node.conf.prefixes[0].v4_len = 1;
    node.conf.prefixes[0].flags = PREFIXES_ARE_SERVICE_CIDRS;
    node.conf.prefixes[0].v4[0] = Prefix4 {
        addr: [10, 96, 0, 0],
        mask: [255, 255, 0, 0],
    };
    node.serve(TCP, &["10.96.0.10:80"], &["10.244.1.5:80"]);
    let dial = |to: &str| tcp(at("198.51.100.7:40000"), at(to), SYN, b"");
    node.led(&dial("10.96.0.10:80"), Handled::NewFlow);
    node.is_handled(&dial("10.96.0.10:81"), Handled::RefuseUnknownPort);
}

#[test]
fn what_is_of_no_flow_and_no_service_goes_on_unchanged() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:53"));
    let between = || host_to_host(client, dialled);
    let fragments = udp(client, at("192.0.2.11:54"), &[7; 40]).fragments(9, &[24]);
    let packets = [
        tcp(client, at("192.0.2.11:22"), SYN, b""),
        tcp(client, at("192.0.2.11:53"), ACK, b""),
        udp(client, at("192.0.2.11:54"), b"?"),
        between().ping(7),
        between().sctp(client.port(), dialled.port()),
    ];
    for packet in packets.into_iter().chain(fragments) {
        assert_eq!(node.arrive(&packet), (Verdict::Pass, frame(&packet)));
        for is_forwarded in [false, true] {
            let left = node.leave(&packet, is_forwarded);
            assert_eq!(left, (Verdict::Pass, frame(&packet)));
        }
    }
    assert!(node.flows4.up.is_empty() && node.flows4.opening.is_empty());
}

#[test]
fn a_port_that_has_a_flow_to_one_backend_gets_another_one_of_the_set_at_another_frontend() {
    for Cast {
        client,
        dialled,
        backend,
        ..
    } in casts()
    {
        let other = SocketAddr::new(dialled.ip(), dialled.port() + 1);
        for seed in 0..200 {
            let mut node = Node::new();
            node.random = Cell::new(seed);
            let backends = [0, 1, 2].map(|more| {
                let port = backend.port() + more;
                SocketAddr::new(backend.ip(), port).to_string()
            });
            let backends = backends.each_ref().map(String::as_str);
            node.serve(UDP, &[&dialled.to_string(), &other.to_string()], &backends);
            let first = node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
            let second = node.led(&udp(client, other, b"?"), Handled::NewFlow);
            assert_ne!(first, second, "seed {seed}");
        }
    }
}

#[test]
fn every_port_of_a_small_range_is_found() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.2.5:53"]);
    for seed in 0..200 {
        node.random = Cell::new(seed);
        node.now_s += FLOW_QUIET_S + 1;
        node.ports = (61000, 8);
        let mut seen: Vec<u16> = (0..8)
            .map(|host| {
                let client = SocketAddr::new(ip(&format!("198.51.100.{host}")), 61003);
                node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
                let asked = udp(client, at("10.244.2.5:53"), b"?");
                node.sent(&asked, Handled::ToBackend).0.port()
            })
            .collect();
        assert_eq!(seen[0], 61003);
        seen.sort_unstable();
        assert!(seen.into_iter().eq(61000..61008), "seed {seed}");
    }
}

#[test]
fn a_flow_that_cannot_be_remembered_is_not_begun() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
    node.flows4.is_full = true;
    let ask = udp(at("198.51.100.7:40000"), at("192.0.2.11:53"), b"?");
    node.is_handled(&ask, Handled::DropInconsistent);
}

#[test]
fn a_client_outside_has_no_key_of_affinity_that_a_network_namespace_has() {
    let (_, client) = [198, 51, 100, 7].client();
    let key = AffinityKey {
        netns: client,
        identity: 1,
    };
    assert!(key.netns > u64::MAX / 2);
}

#[test]
fn a_port_whose_connection_was_closed_by_both_sides_may_dial_any_frontend_of_that_backend() {
    let (client, backend) = (at("198.51.100.7:40000"), at("10.244.1.5:80"));
    let frontends = [at("192.0.2.11:80"), at("192.0.2.11:81")];
    let connect = || {
        let mut node = Node::new();
        node.serve(
            TCP,
            &frontends
                .map(|at| at.to_string())
                .each_ref()
                .map(String::as_str),
            &["10.244.1.5:80"],
        );
        node.led(&tcp(client, frontends[0], SYN, b""), Handled::NewFlow);
        node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
        node.led(&tcp(client, frontends[0], ACK, b""), Handled::ToBackend);
        node
    };
    let other = tcp(client, frontends[1], SYN, b"");
    let by_client = tcp(client, frontends[0], FIN_ACK, b"");
    let by_backend = tcp(backend, client, FIN_ACK, b"");
    let mut node = connect();
    node.is_handled(&other, Handled::DropClash);
    node.led(&by_client, Handled::ToBackend);
    node.is_handled(&other, Handled::DropClash);
    node.sent(&by_backend, Handled::ToClient);
    node.led(&other, Handled::NewFlow);
    let answer = node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
    assert_eq!(answer, (frontends[1], client));
    // The first one is no more: what comes late of it is not mixed up with the second.
    assert_eq!(node.arrive(&by_client).0, Verdict::Pass);
    // A reset is the client's last word, and the backend says nothing to it.
    let mut node = connect();
    node.led(&reset(client, frontends[0]), Handled::ToBackend);
    node.led(&other, Handled::NewFlow);
}

#[test]
fn a_connection_that_nobody_has_answered_is_over_once_it_is_quiet() {
    let (client, backend) = (at("198.51.100.7:40000"), at("10.244.1.5:80"));
    let mut node = Node::new();
    let index = node.serve(TCP, &["192.0.2.11:80"], &["10.244.1.5:80"]);
    node.serve(TCP, &["192.0.2.11:81"], &["10.244.1.5:80"]);
    let first = tcp(client, at("192.0.2.11:80"), SYN, b"");
    let second = tcp(client, at("192.0.2.11:81"), SYN, b"");
    assert_eq!(node.led(&first, Handled::NewFlow), backend);
    node.is_handled(&second, Handled::DropClash);
    // The client sends it again.
    node.now_s += FLOW_QUIET_S;
    node.services[index].word = {
        let both = node.add(&["10.244.1.5:80", "10.244.1.6:80"]);
        node.services[both].word
    };
    assert_eq!(node.led(&first, Handled::NewFlow), backend);
    node.is_handled(&second, Handled::DropClash);
    node.now_s += FLOW_QUIET_S + 1;
    node.led(&second, Handled::NewFlow);
    let led = node.led(&first, Handled::NewFlow);
    assert_eq!(led, at("10.244.1.6:80"));
}

/// Fragments in the order that numbers say, but for the first one.
fn shuffled(mut fragments: Vec<Sent>, order: &[usize]) -> Vec<Sent> {
    let mut shuffled = vec![fragments.remove(0)];
    for at in order {
        if !fragments.is_empty() {
            shuffled.push(fragments.remove(at % fragments.len()));
        }
    }
    shuffled.append(&mut fragments);
    shuffled
}

/// What the fragments of a packet must be.
fn assert_fragments(mut are: Vec<Vec<u8>>, of: &Sent, id: u16, cuts: &[usize]) {
    let mut should_be: Vec<Vec<u8>> = of.fragments(id, cuts).iter().map(frame).collect();
    are.sort();
    should_be.sort();
    assert_eq!(are, should_be);
}

#[test]
fn a_later_fragment_follows_the_first_one_of_its_own_packet_alone() {
    for Cast {
        client,
        dialled,
        backend,
        ..
    } in casts()
    {
        let mut node = Node::new();
        node.serve(UDP, &[&dialled.to_string()], &[&backend.to_string()]);
        let elsewhere = SocketAddr::new(dialled.ip(), 9);
        let ours = udp(client, dialled, &[7; 60]).fragments(9, &[24]);
        let others = udp(client, elsewhere, &[7; 60]).fragments(9, &[24]);
        // Before the first one there is nothing to follow, and nothing is held back.
        assert_eq!(node.arrive(&ours[1]), (Verdict::Pass, frame(&ours[1])));
        node.led(&ours[0], Handled::NewFlow);
        assert_eq!(node.arrive(&ours[1]).0, Verdict::Is(Handled::ToBackend));
        // Of another identification.
        let stranger = &udp(client, dialled, &[7; 60]).fragments(10, &[24])[1];
        assert_eq!(node.arrive(stranger).0, Verdict::Pass);
        // The same one, of what is no Service's.
        assert_eq!(node.arrive(&others[0]).0, Verdict::Pass);
        assert_eq!(node.arrive(&others[1]), (Verdict::Pass, frame(&others[1])));
        // Or much later.
        node.led(&ours[0], Handled::ToBackend);
        node.now_s += FLOW_PART_S + 1;
        assert_eq!(node.arrive(&ours[1]).0, Verdict::Pass);
    }
}

proptest! {
    /// Whatever its sum, size and pieces, whichever way: what was one datagram is one again, as if it had come whole.
    #[test]
    fn fragments_of_a_datagram_in_any_order_that_begins_with_the_first_arrive_as_the_whole_would(
        order in proptest::collection::vec(0..8_usize, 5),
        cuts in 1..6_usize,
        is_here in any::<bool>(),
        id in any::<u16>(),
    ) {
        let data: Vec<u8> = (0..120).collect();
        let cuts: Vec<usize> = (1..=cuts).map(|cut| cut * 16).collect();
        for Cast { client, dialled, backend, .. } in casts() {
            let mut node = Node::new();
            node.serve(UDP, &[&dialled.to_string()], &[&backend.to_string()]);
            let arrive = |node: &mut Node, sent: Sent, as_it_should: Sent, is_answer: bool| {
                let fragments = shuffled(sent.fragments(id, &cuts), &order);
                let what = if is_answer { Handled::ToClient } else { Handled::ToBackend };
                let arrived = fragments.iter().enumerate().map(|(at, fragment)| {
                    let (verdict, after) = node.arrive(fragment);
                    let is_new = at == 0 && !is_answer;
                    assert_eq!(verdict, Verdict::Is(if is_new { Handled::NewFlow } else { what }));
                    after
                });
                assert_fragments(arrived.collect(), &as_it_should, id, &cuts);
            };
            let leave = |node: &mut Node, sent: Sent, as_it_should: Sent| {
                let fragments = shuffled(sent.fragments(id, &cuts), &order);
                let left = fragments.iter().map(|fragment| node.leave(fragment, true).1);
                assert_fragments(left.collect(), &as_it_should, id, &cuts);
            };
            arrive(&mut node, udp(client, dialled, &data), udp(client, backend, &data), false);
            if !is_here {
                let (seen, _) = node.sent(&udp(client, backend, b"?"), Handled::ToBackend);
                leave(&mut node, udp(client, backend, &data), udp(seen, backend, &data));
                arrive(&mut node, udp(backend, seen, &data), udp(backend, client, &data), true);
            }
            leave(&mut node, udp(backend, client, &data), udp(dialled, client, &data));
        }
    }

    /// Whatever is asked, in whatever order: who asked gets the answer, from the address that it dialled, and nobody else does. No two
    /// flows share a tuple, and none is dropped while there is a backend or a port for it.
    #[test]
    fn what_went_out_comes_back_to_who_sent_it(
        steps in proptest::collection::vec((0..4_u8, 0..3_u16, 0..3_usize, any::<bool>()), 1..60),
        seed in any::<u32>(),
        ports in 1..=8_u16,
    ) {
        let mut node = Node::new();
        node.random = Cell::new(seed);
        node.ports = (61000, ports);
        let frontends = ["192.0.2.11:30001", "192.0.2.11:30002", "203.0.113.9:80"];
        // Here, and on another node.
        let backends = ["10.244.1.5:80", "10.244.2.5:80"];
        for frontend in frontends {
            node.serve(UDP, &[frontend], &backends);
        }
        let (mut dialled_by, mut stands_for) = (BTreeMap::new(), BTreeMap::new());
        for (host, port, frontend, is_quiet) in steps {
            if is_quiet {
                node.now_s += FLOW_QUIET_S + 1;
                dialled_by.clear();
                stands_for.clear();
            }
            let client = SocketAddr::new(ip(&format!("198.51.100.{host}")), 61000 + port);
            let dialled = at(frontends[frontend]);
            let (verdict, after) = node.arrive(&udp(client, dialled, b"?"));
            match verdict {
                Verdict::Is(Handled::NewFlow | Handled::ToBackend) => {}
                other => {
                    prop_assert_eq!(other, Verdict::Is(Handled::DropClash));
                    for backend in backends {
                        prop_assert!(dialled_by.contains_key(&(client, at(backend))));
                    }
                    continue;
                }
            }
            let backend = ends(&after[14..]).1;
            prop_assert_eq!(*dialled_by.entry((client, backend)).or_insert(dialled), dialled);
            let is_here = backend == at(backends[0]);
            let mut answered = client;
            if !is_here {
                let (verdict, after) = node.leave(&udp(client, backend, b"?"), true);
                if verdict == Verdict::Is(Handled::DropNoPort) {
                    prop_assert_eq!(stands_for.len(), usize::from(ports));
                    continue;
                }
                prop_assert_eq!(verdict, Verdict::Is(Handled::ToBackend));
                let seen = ends(&after[14..]).0;
                prop_assert_eq!(seen.ip(), ip("192.0.2.11"));
                prop_assert_eq!(*stands_for.entry(seen).or_insert(client), client);
                let (verdict, after) = node.arrive(&udp(backend, seen, b"!"));
                prop_assert_eq!(verdict, Verdict::Is(Handled::ToClient));
                answered = ends(&after[14..]).1;
            }
            prop_assert_eq!(answered, client);
            let (verdict, after) = node.leave(&udp(backend, answered, b"!"), true);
            prop_assert_eq!(verdict, Verdict::Is(Handled::ToClient));
            prop_assert_eq!(ends(&after[14..]), (dialled, client));
            prop_assert!(flaws(&after).is_empty());
        }
    }
}
