mod answers;
mod closing;
mod direct;
mod fast;
mod fragments;
mod inside;
mod masquerade;
mod opening;

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
    turn: Cell<u32>,
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

    fn turn(&self) -> u32 {
        self.0.turn.set(self.0.turn.get().wrapping_add(1));
        self.0.turn.get()
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
            turn: Cell::new(0),
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

/// A RST whose number is the one that its receiver expects.
fn reset(from: SocketAddr, to: SocketAddr) -> Sent {
    host_to_host(from, to).then(Tcp {
        sequence: 9,
        ..Tcp::new(from.port(), to.port(), RST)
    })
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
