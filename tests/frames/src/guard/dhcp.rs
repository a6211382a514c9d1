//! DHCP and DHCPv6, of Pods that ask in their own name and of those that do not.

use std::net::Ipv4Addr;

use super::{Host, OTHER, POD, sent, with_options};
use crate::protocol::DESTINATION_OPTIONS;
use crate::{Extension, Mac, Packet, ip};

/// A message to a server, in the name of this link-layer address (`chaddr`).
fn asks(chaddr: Mac) -> Vec<u8> {
    let head = [1, 1, 6, 0];
    let options = [99, 130, 83, 99, 255];
    [&head[..], &[0; 24], &chaddr, &[0; 206], &options].concat()
}

/// The first bytes of a message from a server to a client.
const OFFER: [u8; 4] = [2, 1, 6, 0];

fn first_request(host: Host, chaddr: Mac) -> Vec<u8> {
    let all = ip(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    sent(host.mac, all.udp(68, 67).data(&asks(chaddr)))
}

/// A renewal or a release, from the address that the client has by then.
fn later_request(host: Host, from_port: u16, chaddr: Mac) -> Vec<u8> {
    let server = ip(host.v4, OTHER.v4);
    sent(host.mac, server.udp(from_port, 67).data(&asks(chaddr)))
}

/// A message from this port to a client's, of DHCPv6, behind these headers.
fn answer6(from_port: u16, header: Option<Extension>) -> Vec<u8> {
    let packet = ip(POD.link_local, OTHER.link_local);
    let packet = header.into_iter().fold(packet, Packet::then);
    sent(POD.mac, packet.udp(from_port, 546).data(b"hello"))
}

pub(super) fn peaceful() -> Vec<(&'static str, Vec<u8>)> {
    let pod = POD;
    vec![
        (
            "a Pod asks for an address by DHCP",
            first_request(pod, pod.mac),
        ),
        (
            "a Pod gives the address that it has by DHCP back",
            later_request(pod, 68, pod.mac),
        ),
        (
            "a Pod asks a DHCPv6 server",
            sent(
                pod.mac,
                ip(pod.link_local, OTHER.link_local)
                    .udp(546, 547)
                    .data(b"hello"),
            ),
        ),
        (
            "a Pod sends from the port of a DHCP server to another than a client's",
            sent(pod.mac, ip(pod.v4, OTHER.v4).udp(67, 4011)),
        ),
    ]
}

pub(super) fn spoofed() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (pod, other, all) = (POD, OTHER, Ipv4Addr::BROADCAST);
    let answer = |packet: Packet, from_port| sent(pod.mac, packet.udp(from_port, 68).data(&OFFER));
    let in_fragments = Extension {
        // Reserved, and no length.
        length: Some(0xff),
        ..Extension::fragment(0, true, 1)
    };
    let frames = vec![
        (
            "a Pod asks by DHCP in another's name",
            first_request(pod, other.mac),
        ),
        (
            "a Pod gives another's address back by DHCP",
            later_request(pod, 68, other.mac),
        ),
        (
            "a Pod gives another's address back by DHCP from a port of its own choice",
            later_request(pod, 40000, other.mac),
        ),
        (
            "a Pod gives another's address back by DHCP behind IPv4 options",
            sent(
                pod.mac,
                Packet::from(with_options(pod.v4, all))
                    .udp(68, 67)
                    .data(&asks(other.mac)),
            ),
        ),
        (
            "a Pod answers as a DHCP server",
            answer(ip(pod.v4, all), 67),
        ),
        (
            "a Pod answers as a DHCP server that sends from another port",
            answer(ip(pod.v4, all), 1067),
        ),
        (
            "a Pod answers as a DHCP server behind IPv4 options",
            answer(with_options(pod.v4, all).into(), 1067),
        ),
        ("a Pod answers as a DHCPv6 server", answer6(547, None)),
        (
            "a Pod answers as a DHCPv6 server that sends from another port",
            answer6(1547, None),
        ),
        (
            "a Pod answers as a DHCPv6 server behind an extension header",
            answer6(1547, Some(Extension::padding(DESTINATION_OPTIONS))),
        ),
        (
            "a Pod answers as a DHCPv6 server in fragments",
            answer6(1547, Some(in_fragments)),
        ),
    ];
    let frames = frames.into_iter();
    let mut frames: Vec<_> = frames.map(|(name, frame)| (name, "dhcp", frame)).collect();
    frames.push((
        "a Pod asks by DHCP without saying for whom",
        "malformed",
        sent(
            pod.mac,
            ip(pod.v4, other.v4).udp(68, 67).data(&[1, 1, 6, 0]),
        ),
    ));
    frames
}
