//! Frames as a Pod may send them, byte by byte, and what the guard says of them.
//!
//! One table of [`fixtures`] for the decision on the host, the program in the kernel, and a real Pod's interface.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

// Named, for the tests of the decision take this file in from elsewhere.
#[path = "frames/dhcp.rs"]
mod dhcp;

/// A link-layer address.
pub type Mac = [u8; 6];

/// Everyone on the link.
pub const BROADCAST: Mac = [0xff; 6];

/// A host on a link: what it may use.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Link-layer address.
    pub mac: Mac,
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
    /// IPv6 address of the link.
    pub link_local: Ipv6Addr,
}

impl Host {
    /// With the link-local address that comes from its link-layer address (RFC 4291, appendix A).
    pub const fn new(mac: Mac, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        let [a, b, c, d, e, f] = mac;
        let link_local = [
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 2,
            b,
            c,
            0xff,
            0xfe,
            d,
            e,
            f,
        ];
        Self {
            mac,
            v4,
            v6,
            link_local: Ipv6Addr::from_octets(link_local),
        }
    }
}

/// The Pod that sends.
pub const POD: Host = Host::new(
    [0x0a, 0x58, 10, 244, 1, 10],
    Ipv4Addr::new(10, 244, 1, 10),
    Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 10),
);

/// Somebody else on its link.
pub const OTHER: Host = Host::new(
    [0x0a, 0x58, 10, 244, 1, 11],
    Ipv4Addr::new(10, 244, 1, 11),
    Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 11),
);

/// A frame, what is done with it, and why it is found fault with, by the name of the reason.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// What the Pod does, as a sentence.
    pub name: &'static str,
    /// The frame.
    pub frame: Vec<u8>,
    /// `None` when it goes on in peace.
    pub reason: Option<&'static str>,
}

/// An Ethernet frame, padded to 60 bytes as on a wire.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
    if frame.len() < 60 {
        frame.resize(60, 0);
    }
    frame
}

/// The same frame with a VLAN tag.
pub fn tagged(frame: &[u8], kind: u16, vlan: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &kind.to_be_bytes(), &vlan.to_be_bytes(), rest].concat()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

/// The checksum of the Internet (RFC 1071).
fn checksum(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    [high, low]
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// An IPv4 packet in a frame.
pub fn ipv4(from: Mac, source: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(from, (source, to), 0, protocol, &[], payload)
}

/// An IPv4 packet with options, as a fragment: its offset in units of 8 bytes, with flags.
pub fn ipv4_with(
    from: Mac,
    (source, to): (Ipv4Addr, Ipv4Addr),
    fragment: u16,
    protocol: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap_or(u8::MAX);
    let total = length(20 + options.len() + payload.len());
    let [f, g] = fragment.to_be_bytes();
    let head = [
        0x40 | words,
        0,
        total[0],
        total[1],
        0,
        1,
        f,
        g,
        64,
        protocol,
        0,
        0,
    ];
    let mut header = [&head[..], &source.octets(), &to.octets(), options].concat();
    let sum = checksum(sum(&header));
    header[10..12].copy_from_slice(&sum);
    let link = if to == Ipv4Addr::BROADCAST {
        BROADCAST
    } else {
        OTHER.mac
    };
    ethernet(link, from, 0x0800, &[header, payload.to_vec()].concat())
}

/// A UDP datagram. Its checksum is zero, for none: IPv6 has [`udp6`].
pub fn udp(from_port: u16, to_port: u16, payload: &[u8]) -> Vec<u8> {
    let (from_port, to_port) = (from_port.to_be_bytes(), to_port.to_be_bytes());
    let length = length(8 + payload.len());
    [&from_port[..], &to_port, &length, &[0, 0], payload].concat()
}

/// An IPv6 packet in a frame.
pub fn ipv6(from: Mac, source: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = length(payload.len());
    let head = [0x60, 0, 0, 0, high, low, next, 255];
    let packet = [&head[..], &source.octets(), &to.octets(), payload].concat();
    let link = match to.octets() {
        [0xff, .., a, b, c, d] => [0x33, 0x33, a, b, c, d],
        _ => OTHER.mac,
    };
    ethernet(link, from, 0x86dd, &packet)
}

fn pseudo_sum(source: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> [u8; 2] {
    let length = u64::try_from(payload.len()).unwrap_or(u64::MAX);
    checksum(sum(&source.octets()) + sum(&to.octets()) + length + u64::from(next) + sum(payload))
}

/// A UDP datagram over IPv6, in a frame.
pub fn udp6(from: Mac, source: Ipv6Addr, to: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    let mut datagram = udp(ports.0, ports.1, b"hello");
    let sum = pseudo_sum(source, to, 17, &datagram);
    datagram[6..8].copy_from_slice(&sum);
    ipv6(from, source, to, 17, &datagram)
}

/// An ICMPv6 message with its checksum: type, and what comes after the checksum.
pub fn icmpv6(source: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0][..], body].concat();
    let sum = pseudo_sum(source, to, 58, &message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// An ICMPv6 message in a frame.
pub fn icmpv6_frame(from: Mac, source: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    ipv6(from, source, to, 58, &icmpv6(source, to, kind, body))
}

/// A link-layer address option of neighbour discovery: 1 for the source's, 2 for the target's.
pub fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// The multicast address of those whose address may be this one (RFC 4291, 2.7.1).
pub fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    Ipv6Addr::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// An unsolicited neighbour advertisement: "I have this address".
pub fn advertisement(from: Mac, source: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let body = [&[0x20, 0, 0, 0][..], &target.octets(), &option(2, mac)].concat();
    icmpv6_frame(from, source, ALL_NODES, 136, &body)
}

/// A neighbour solicitation: "who has this address?"; from `::` the sender wants it.
pub fn solicitation(from: Mac, source: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let body = [&[0; 4][..], &target.octets(), options].concat();
    icmpv6_frame(from, source, solicited_node(target), 135, &body)
}

/// An ARP message: 1 asks, 2 answers.
pub fn arp(from: Mac, operation: u8, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let (mac, ip) = sender;
    let body = [&head[..], &mac, &ip.octets(), &[0; 6], &target.octets()];
    ethernet(BROADCAST, from, 0x0806, &body.concat())
}

/// An MLD report that takes part in one group, behind the hop-by-hop option that it has (RFC 3810).
pub fn mld_report(from: Mac, source: Ipv6Addr, group: Ipv6Addr) -> Vec<u8> {
    let body = [&[0, 0, 0, 1, 4, 0, 0, 0][..], &group.octets()].concat();
    let report = icmpv6(source, MLD_ROUTERS, 143, &body);
    let hop_by_hop = [58, 0, 5, 2, 0, 0, 1, 0];
    let packet = [&hop_by_hop[..], &report].concat();
    ipv6(from, source, MLD_ROUTERS, 0, &packet)
}

/// What [`POD`] may do.
fn peaceful() -> Vec<(&'static str, Vec<u8>)> {
    let (pod, any4, any6) = (POD, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let web = udp(40000, 80, b"hello");
    vec![
        (
            "a Pod sends from its IPv4 address",
            ipv4(pod.mac, pod.v4, OTHER.v4, 17, &web),
        ),
        (
            "a Pod sends the second fragment of a packet",
            ipv4_with(
                pod.mac,
                (pod.v4, OTHER.v4),
                0x20b9,
                17,
                &[],
                &[0, 67, 0, 68, 1],
            ),
        ),
        (
            "a Pod sends the first fragment of an IPv6 packet",
            ipv6(
                pod.mac,
                pod.v6,
                OTHER.v6,
                44,
                &[&[17, 0, 0, 1, 0, 0, 0, 1][..], &web].concat(),
            ),
        ),
        (
            "a Pod sends the second fragment of an IPv6 packet",
            ipv6(
                pod.mac,
                pod.v6,
                OTHER.v6,
                44,
                &[17, 0, 0, 8, 0, 0, 0, 1, 2, 35, 2, 34, 0, 8, 0, 0],
            ),
        ),
        (
            "a Pod sends from its IPv6 address",
            udp6(pod.mac, pod.v6, OTHER.v6, (40000, 80)),
        ),
        (
            "a Pod sends from its link-local address",
            udp6(pod.mac, pod.link_local, OTHER.link_local, (40000, 80)),
        ),
        (
            "a Pod asks by ARP who has an address",
            arp(pod.mac, 1, (pod.mac, pod.v4), OTHER.v4),
        ),
        (
            "a Pod tells by ARP of its address, unasked",
            arp(pod.mac, 2, (pod.mac, pod.v4), pod.v4),
        ),
        (
            "a Pod probes by ARP whether its address is in use",
            arp(pod.mac, 1, (pod.mac, any4), pod.v4),
        ),
        (
            "a Pod without an address takes part in an IPv4 group",
            ipv4_with(
                pod.mac,
                (any4, Ipv4Addr::new(224, 0, 0, 22)),
                0,
                2,
                &[0x94, 4, 0, 0],
                &[0x22, 0, 0xf9, 2, 0, 0, 0, 1, 4, 0, 0, 0, 0xe0, 0, 0, 0xfb],
            ),
        ),
        (
            "a Pod checks that its IPv6 address is free",
            solicitation(pod.mac, any6, pod.v6, &[]),
        ),
        (
            "a Pod checks that its link-local address is free",
            solicitation(pod.mac, any6, pod.link_local, &[]),
        ),
        (
            "a Pod asks who has an IPv6 address",
            solicitation(pod.mac, pod.v6, OTHER.v6, &option(1, pod.mac)),
        ),
        (
            "a Pod says that it has its IPv6 address",
            advertisement(pod.mac, pod.v6, pod.v6, pod.mac),
        ),
        (
            "a Pod looks for a router",
            icmpv6_frame(
                pod.mac,
                pod.link_local,
                ALL_ROUTERS,
                133,
                &[&[0; 4][..], &option(1, pod.mac)].concat(),
            ),
        ),
        (
            "a Pod takes part in an IPv6 group",
            mld_report(pod.mac, pod.link_local, solicited_node(pod.v6)),
        ),
        (
            "a Pod without an address takes part in an IPv6 group",
            mld_report(pod.mac, any6, solicited_node(pod.v6)),
        ),
        (
            "a Pod speaks something that has no IP addresses",
            ethernet(BROADCAST, pod.mac, 0x88cc, &[2, 7, 4]),
        ),
    ]
}

/// What it may not, and the reason.
fn spoofed() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (pod, other, any4, any6) = (POD, OTHER, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let web = udp(40000, 80, b"hello");
    let plain = ipv4(pod.mac, pod.v4, other.v4, 17, &web);
    let stolen = advertisement(pod.mac, pod.v6, other.v6, pod.mac);
    let hidden = icmpv6(
        pod.v6,
        ALL_NODES,
        136,
        &[
            &[0x20, 0, 0, 0][..],
            &other.v6.octets(),
            &option(2, pod.mac),
        ]
        .concat(),
    );
    let destination_options = [58, 0, 1, 4, 0, 0, 0, 0];
    vec![
        (
            "a Pod sends from another's link-layer address",
            "mac",
            ipv4(other.mac, pod.v4, other.v4, 17, &web),
        ),
        (
            "a Pod sends from another's IPv4 address",
            "ipv4",
            ipv4(pod.mac, other.v4, pod.v4, 17, &web),
        ),
        (
            "a Pod sends a late fragment from another's IPv4 address",
            "ipv4",
            ipv4_with(pod.mac, (other.v4, pod.v4), 0x00b9, 17, &[], &web),
        ),
        (
            "a Pod sends from no IPv4 address what is no DHCP request",
            "ipv4",
            ipv4(pod.mac, any4, other.v4, 17, &web),
        ),
        (
            "a Pod sends from another's IPv6 address",
            "ipv6",
            udp6(pod.mac, other.v6, pod.v6, (40000, 80)),
        ),
        (
            "a Pod sends from no IPv6 address to one host",
            "ipv6",
            udp6(pod.mac, any6, other.v6, (40000, 80)),
        ),
        (
            "a Pod sends from another's link-local address",
            "link_local",
            udp6(pod.mac, other.link_local, pod.link_local, (40000, 80)),
        ),
        (
            "a Pod asks by ARP in another's name",
            "arp",
            arp(pod.mac, 1, (pod.mac, other.v4), pod.v4),
        ),
        (
            "a Pod answers by ARP that it has another's address",
            "arp",
            arp(pod.mac, 2, (pod.mac, other.v4), other.v4),
        ),
        (
            "a Pod answers by ARP that another has its address",
            "arp",
            arp(pod.mac, 2, (other.mac, pod.v4), other.v4),
        ),
        (
            "a Pod probes by ARP for another's address",
            "arp",
            arp(pod.mac, 1, (pod.mac, any4), other.v4),
        ),
        (
            "a Pod advertises another's IPv6 address",
            "nd",
            stolen.clone(),
        ),
        (
            "a Pod advertises its address at another's link-layer address",
            "nd",
            advertisement(pod.mac, pod.v6, pod.v6, other.mac),
        ),
        (
            "a Pod claims another's IPv6 address by duplicate address detection",
            "nd",
            solicitation(pod.mac, any6, other.v6, &[]),
        ),
        (
            "a Pod asks for a neighbour with another's link-layer address",
            "nd",
            solicitation(pod.mac, pod.v6, other.v6, &option(1, other.mac)),
        ),
        (
            "a Pod hides another's link-layer address behind other options",
            "nd",
            solicitation(
                pod.mac,
                pod.v6,
                other.v6,
                &[
                    &[14, 1, 1, 2, 3, 4, 5, 6][..],
                    &option(1, pod.mac),
                    &option(1, other.mac),
                ]
                .concat(),
            ),
        ),
        (
            "a Pod hides another's link-layer address behind more options than anyone sends",
            "malformed",
            solicitation(
                pod.mac,
                pod.v6,
                other.v6,
                &[[14, 1, 1, 2, 3, 4, 5, 6].repeat(4), option(1, other.mac)].concat(),
            ),
        ),
        (
            "a Pod says that it is a router",
            "nd",
            icmpv6_frame(
                pod.mac,
                pod.link_local,
                ALL_NODES,
                134,
                &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
        ),
        (
            "a Pod redirects a neighbour",
            "nd",
            icmpv6_frame(pod.mac, pod.link_local, other.link_local, 137, &[0; 36]),
        ),
        (
            "a Pod hides an advertisement of another's address behind an extension header",
            "nd",
            ipv6(
                pod.mac,
                pod.v6,
                ALL_NODES,
                60,
                &[&destination_options[..], &hidden].concat(),
            ),
        ),
        (
            "a Pod hides something behind more extension headers than anyone sends",
            "malformed",
            ipv6(
                pod.mac,
                pod.v6,
                ALL_NODES,
                60,
                &[
                    [60, 0, 1, 4, 0, 0, 0, 0].repeat(4),
                    destination_options.to_vec(),
                    hidden.clone(),
                ]
                .concat(),
            ),
        ),
        (
            "a Pod advertises another's IPv6 address in fragments",
            "nd",
            ipv6(
                pod.mac,
                pod.v6,
                ALL_NODES,
                44,
                &[&[58, 0, 0, 1, 0, 0, 0, 1][..], &hidden].concat(),
            ),
        ),
        (
            "a Pod sends into a VLAN",
            "vlan",
            tagged(&plain, 0x8100, 100),
        ),
        (
            "a Pod sends into a VLAN of a provider",
            "vlan",
            tagged(&plain, 0x88a8, 100),
        ),
        (
            "a Pod sends an ARP message of another hardware",
            "malformed",
            ethernet(BROADCAST, pod.mac, 0x0806, &[0, 6, 8, 0, 6, 4, 0, 1]),
        ),
        (
            "a Pod sends an advertisement without its end",
            "malformed",
            stolen[..60].to_vec(),
        ),
    ]
}

/// Everything that [`POD`] does here, and what is said of it.
pub fn fixtures() -> Vec<Fixture> {
    let peaceful = peaceful().into_iter().chain(dhcp::peaceful());
    let peaceful = peaceful.map(|(name, frame)| Fixture {
        name,
        frame,
        reason: None,
    });
    let spoofed = spoofed().into_iter().chain(dhcp::spoofed());
    let spoofed = spoofed.map(|(name, reason, frame)| Fixture {
        name,
        frame,
        reason: Some(reason),
    });
    peaceful.chain(spoofed).collect()
}
