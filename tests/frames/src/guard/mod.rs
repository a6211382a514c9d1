//! Frames as a Pod may send them, and what the guard says of them.
//!
//! One table of [`fixtures`] for the decision on the host, the program in the kernel, and a real Pod's interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::protocol::{DESTINATION_OPTIONS, HOP_BY_HOP, IGMP, UDP};
use crate::{Arp, BROADCAST, Ethernet, Extension, Icmp, Ipv4, Ipv6, Mac, Packet, Vlan, eth, ip};

mod dhcp;

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
        let word = u16::from_be_bytes;
        Self {
            mac,
            v4,
            v6,
            link_local: Ipv6Addr::new(
                0xfe80,
                0,
                0,
                0,
                word([a ^ 2, b]),
                word([c, 0xff]),
                word([0xfe, d]),
                word([e, f]),
            ),
        }
    }
}

/// The Pod that sends.
pub const POD: Host = Host::new(
    [0x0a, 0x58, 10, 244, 1, 10],
    Ipv4Addr::new(10, 244, 1, 10),
    Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 10),
);

/// Another host on its link.
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

/// A packet in a frame from this address, padded as on a wire: to the packet's group, or else to [`OTHER`] on the link.
pub fn sent(from: Mac, packet: impl Into<Packet>) -> Vec<u8> {
    let packet = packet.into();
    let to = match packet.addresses() {
        None => BROADCAST,
        Some((_, IpAddr::V4(Ipv4Addr::BROADCAST))) => BROADCAST,
        Some((_, IpAddr::V6(to))) if to.is_multicast() => group_mac(to),
        Some(_) => OTHER.mac,
    };
    eth(from, to).then(packet).padded()
}

/// Where an IPv6 group is on a link (RFC 2464, section 7).
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// A link-layer address option of neighbour discovery: 1 for the source's, 2 for the target's.
pub fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// Everyone on a link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// The multicast address of those whose address may be this one (RFC 4291, 2.7.1).
pub fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    Ipv6Addr::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// A message of neighbour discovery (RFC 4861) in a packet. Its hop limit shows that no router has forwarded it.
pub fn discovery(source: Ipv6Addr, to: Ipv6Addr, message: Packet) -> Packet {
    let header = Ipv6 {
        hop_limit: 255,
        ..Ipv6::new(source, to)
    };
    Packet::from(header).then(message)
}

/// "This address is at this link-layer address", with flags: 0x40 answers a question, 0x20 replaces what was known.
pub fn advertised(flags: u8, target: Ipv6Addr, mac: Mac) -> Packet {
    let message = Icmp {
        rest: [flags, 0, 0, 0],
        ..Icmp::new(136)
    };
    let body = [&target.octets()[..], &option(2, mac)].concat();
    Packet::from(message).data(&body)
}

/// An unsolicited neighbour advertisement: "I have this address".
pub fn advertisement(source: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Packet {
    discovery(source, ALL_NODES, advertised(0x20, target, mac))
}

/// A neighbour solicitation: "who has this address?"; from `::` the sender wants it.
pub fn solicitation(source: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Packet {
    let body = [&target.octets()[..], options].concat();
    let message = Packet::from(Icmp::new(135)).data(&body);
    discovery(source, solicited_node(target), message)
}

/// An MLD report that takes part in one group, behind the hop-by-hop option that it has (RFC 3810).
fn mld_report(source: Ipv6Addr, group: Ipv6Addr) -> Packet {
    let router_alert = Extension {
        body: vec![5, 2, 0, 0, 1, 0],
        ..Extension::padding(HOP_BY_HOP)
    };
    let header = Ipv6 {
        hop_limit: 1,
        ..Ipv6::new(source, MLD_ROUTERS)
    };
    let one_record = Icmp {
        rest: [0, 0, 0, 1],
        ..Icmp::new(143)
    };
    let body = [&[4, 0, 0, 0][..], &group.octets()].concat();
    let report = Packet::from(header).then(router_alert);
    report.then(one_record).data(&body)
}

/// A header with options, which do nothing.
fn with_options(source: Ipv4Addr, to: Ipv4Addr) -> Ipv4 {
    Ipv4 {
        options: vec![1; 12],
        ..Ipv4::new(source, to)
    }
}

/// Frames that [`POD`] may send.
fn peaceful() -> Vec<(&'static str, Vec<u8>)> {
    let (pod, any4, any6) = (POD, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let web = |packet: Packet| packet.udp(40000, 80).data(b"hello");
    vec![
        (
            "a Pod sends from its IPv4 address",
            sent(pod.mac, web(ip(pod.v4, OTHER.v4))),
        ),
        (
            "a Pod sends the second fragment of a packet",
            sent(
                pod.mac,
                Packet::from(Ipv4 {
                    fragment: 0x20b9,
                    ..Ipv4::new(pod.v4, OTHER.v4)
                })
                // A DHCP server's ports, if they were ports.
                .raw(UDP, &[0, 67, 0, 68, 1]),
            ),
        ),
        (
            "a Pod sends the first fragment of an IPv6 packet",
            sent(
                pod.mac,
                web(ip(pod.v6, OTHER.v6).then(Extension::fragment(0, true, 1))),
            ),
        ),
        (
            "a Pod sends the second fragment of an IPv6 packet",
            sent(
                pod.mac,
                ip(pod.v6, OTHER.v6)
                    .then(Extension::fragment(8, false, 1))
                    .raw(UDP, &[2, 35, 2, 34, 0, 8, 0, 0]),
            ),
        ),
        (
            "a Pod sends from its IPv6 address",
            sent(pod.mac, web(ip(pod.v6, OTHER.v6))),
        ),
        (
            "a Pod sends from its link-local address",
            sent(pod.mac, web(ip(pod.link_local, OTHER.link_local))),
        ),
        (
            "a Pod asks by ARP who has an address",
            sent(pod.mac, Arp::request((pod.mac, pod.v4), OTHER.v4)),
        ),
        (
            "a Pod tells by ARP of its address, unasked",
            sent(pod.mac, Arp::answer((pod.mac, pod.v4), ([0; 6], pod.v4))),
        ),
        (
            "a Pod probes by ARP whether its address is in use",
            sent(pod.mac, Arp::request((pod.mac, any4), pod.v4)),
        ),
        (
            "a Pod without an address takes part in an IPv4 group",
            sent(
                pod.mac,
                Packet::from(Ipv4 {
                    options: vec![0x94, 4, 0, 0],
                    ..Ipv4::new(any4, [224, 0, 0, 22])
                })
                .raw(
                    IGMP,
                    &[0x22, 0, 0xf9, 2, 0, 0, 0, 1, 4, 0, 0, 0, 0xe0, 0, 0, 0xfb],
                ),
            ),
        ),
        (
            "a Pod checks that its IPv6 address is free",
            sent(pod.mac, solicitation(any6, pod.v6, &[])),
        ),
        (
            "a Pod checks that its link-local address is free",
            sent(pod.mac, solicitation(any6, pod.link_local, &[])),
        ),
        (
            "a Pod asks who has an IPv6 address",
            sent(pod.mac, solicitation(pod.v6, OTHER.v6, &option(1, pod.mac))),
        ),
        (
            "a Pod says that it has its IPv6 address",
            sent(pod.mac, advertisement(pod.v6, pod.v6, pod.mac)),
        ),
        (
            "a Pod looks for a router",
            sent(
                pod.mac,
                discovery(
                    pod.link_local,
                    ALL_ROUTERS,
                    Packet::from(Icmp::new(133)).data(&option(1, pod.mac)),
                ),
            ),
        ),
        (
            "a Pod takes part in an IPv6 group",
            sent(pod.mac, mld_report(pod.link_local, solicited_node(pod.v6))),
        ),
        (
            "a Pod without an address takes part in an IPv6 group",
            sent(pod.mac, mld_report(any6, solicited_node(pod.v6))),
        ),
        (
            "a Pod speaks something that has no IP addresses",
            sent(pod.mac, Packet::default().raw(0x88cc_u16, &[2, 7, 4])),
        ),
    ]
}

/// Frames that it may not send, each with the reason.
fn spoofed() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (pod, other, any4, any6) = (POD, OTHER, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    let web = |packet: Packet| packet.udp(40000, 80).data(b"hello");
    let tagged = |vlan| {
        let frame = Packet::from(Ethernet::new(pod.mac, other.mac)).then(vlan);
        web(frame.ip(pod.v4, other.v4)).padded()
    };
    // An advertisement of another's address, behind these headers.
    let hidden = |headers: Vec<Extension>| {
        let packet = headers
            .into_iter()
            .fold(ip(pod.v6, ALL_NODES), Packet::then);
        sent(pod.mac, packet.then(advertised(0x20, other.v6, pod.mac)))
    };
    let options = Extension::padding(DESTINATION_OPTIONS);
    let stolen = sent(pod.mac, advertisement(pod.v6, other.v6, pod.mac));
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    vec![
        (
            "a Pod sends from another's link-layer address",
            "mac",
            sent(other.mac, web(ip(pod.v4, other.v4))),
        ),
        (
            "a Pod sends from another's IPv4 address",
            "ipv4",
            sent(pod.mac, web(ip(other.v4, pod.v4))),
        ),
        (
            "a Pod sends a late fragment from another's IPv4 address",
            "ipv4",
            sent(
                pod.mac,
                web(Ipv4 {
                    fragment: 0x00b9,
                    ..Ipv4::new(other.v4, pod.v4)
                }
                .into()),
            ),
        ),
        (
            "a Pod sends from no IPv4 address what is no DHCP request",
            "ipv4",
            sent(pod.mac, web(ip(any4, other.v4))),
        ),
        (
            "a Pod sends from another's IPv6 address",
            "ipv6",
            sent(pod.mac, web(ip(other.v6, pod.v6))),
        ),
        (
            "a Pod sends from no IPv6 address to one host",
            "ipv6",
            sent(pod.mac, web(ip(any6, other.v6))),
        ),
        (
            "a Pod sends from another's link-local address",
            "link_local",
            sent(pod.mac, web(ip(other.link_local, pod.link_local))),
        ),
        (
            "a Pod asks by ARP in another's name",
            "arp",
            sent(pod.mac, Arp::request((pod.mac, other.v4), pod.v4)),
        ),
        (
            "a Pod answers by ARP that it has another's address",
            "arp",
            sent(
                pod.mac,
                Arp::answer((pod.mac, other.v4), ([0; 6], other.v4)),
            ),
        ),
        (
            "a Pod answers by ARP that another has its address",
            "arp",
            sent(
                pod.mac,
                Arp::answer((other.mac, pod.v4), ([0; 6], other.v4)),
            ),
        ),
        (
            "a Pod probes by ARP for another's address",
            "arp",
            sent(pod.mac, Arp::request((pod.mac, any4), other.v4)),
        ),
        (
            "a Pod advertises another's IPv6 address",
            "nd",
            stolen.clone(),
        ),
        (
            "a Pod advertises its address at another's link-layer address",
            "nd",
            sent(pod.mac, advertisement(pod.v6, pod.v6, other.mac)),
        ),
        (
            "a Pod claims another's IPv6 address by duplicate address detection",
            "nd",
            sent(pod.mac, solicitation(any6, other.v6, &[])),
        ),
        (
            "a Pod asks for a neighbour with another's link-layer address",
            "nd",
            sent(
                pod.mac,
                solicitation(pod.v6, other.v6, &option(1, other.mac)),
            ),
        ),
        (
            "a Pod hides another's link-layer address behind other options",
            "nd",
            sent(
                pod.mac,
                solicitation(
                    pod.v6,
                    other.v6,
                    &[&nonce[..], &option(1, pod.mac), &option(1, other.mac)].concat(),
                ),
            ),
        ),
        (
            "a Pod hides another's link-layer address behind more options than anyone sends",
            "malformed",
            sent(
                pod.mac,
                solicitation(
                    pod.v6,
                    other.v6,
                    &[nonce.repeat(4), option(1, other.mac)].concat(),
                ),
            ),
        ),
        (
            "a Pod says that it is a router",
            "nd",
            sent(
                pod.mac,
                discovery(
                    pod.link_local,
                    ALL_NODES,
                    Packet::from(Icmp {
                        rest: [64, 0, 7, 8],
                        ..Icmp::new(134)
                    })
                    .data(&[0; 8]),
                ),
            ),
        ),
        (
            "a Pod redirects a neighbour",
            "nd",
            sent(
                pod.mac,
                discovery(
                    pod.link_local,
                    other.link_local,
                    Packet::from(Icmp::new(137)).data(&[0; 32]),
                ),
            ),
        ),
        (
            "a Pod hides an advertisement of another's address behind an extension header",
            "nd",
            hidden(vec![options.clone()]),
        ),
        (
            "a Pod hides something behind more extension headers than anyone sends",
            "malformed",
            hidden(vec![options; 5]),
        ),
        (
            "a Pod advertises another's IPv6 address in fragments",
            "nd",
            hidden(vec![Extension::fragment(0, true, 1)]),
        ),
        ("a Pod sends into a VLAN", "vlan", tagged(Vlan::new(100))),
        (
            "a Pod sends into a VLAN of a provider",
            "vlan",
            tagged(Vlan {
                tag: 0x88a8,
                ..Vlan::new(100)
            }),
        ),
        (
            "a Pod sends an ARP message of another hardware",
            "malformed",
            sent(
                pod.mac,
                Arp {
                    hardware: 6,
                    ..Arp::request((pod.mac, pod.v4), other.v4)
                },
            ),
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
