//! DHCP and DHCPv6, of Pods that ask in their own name and of those that do not.

use std::net::Ipv4Addr;

use super::{Host, Mac, OTHER, POD, ipv4, ipv4_with, ipv6, udp, udp6};

/// A message to a server, in the name of this link-layer address (`chaddr`).
fn asks(chaddr: Mac) -> Vec<u8> {
    let head = [1, 1, 6, 0];
    let options = [99, 130, 83, 99, 255];
    [&head[..], &[0; 24], &chaddr, &[0; 206], &options].concat()
}

/// What a server says to a client.
const OFFER: [u8; 4] = [2, 1, 6, 0];

fn first_request(host: Host, chaddr: Mac) -> Vec<u8> {
    let (nowhere, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    ipv4(host.mac, nowhere, all, 17, &udp(68, 67, &asks(chaddr)))
}

/// A renewal or a release, from the address that the client has by now.
fn later_request(host: Host, from_port: u16, chaddr: Mac) -> Vec<u8> {
    let message = udp(from_port, 67, &asks(chaddr));
    ipv4(host.mac, host.v4, OTHER.v4, 17, &message)
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
            udp6(pod.mac, pod.link_local, OTHER.link_local, (546, 547)),
        ),
        (
            "a Pod sends from the port of a DHCP server to another than a client's",
            ipv4(pod.mac, pod.v4, OTHER.v4, 17, &udp(67, 4011, b"")),
        ),
    ]
}

pub(super) fn spoofed() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let (pod, other, all) = (POD, OTHER, Ipv4Addr::BROADCAST);
    let answers = |from_port| ipv4(pod.mac, pod.v4, all, 17, &udp(from_port, 68, &OFFER));
    let answers6 = |from_port| udp6(pod.mac, pod.link_local, other.link_local, (from_port, 546));
    let behind = |next, header: [u8; 8]| {
        let packet = [&header[..], &udp(1547, 546, b"hello")].concat();
        ipv6(pod.mac, pod.link_local, other.link_local, next, &packet)
    };
    let with_options = |message: &[u8]| {
        let (to, options) = ((pod.v4, all), [1; 12]);
        ipv4_with(pod.mac, to, 0, 17, &options, message)
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
            with_options(&udp(68, 67, &asks(other.mac))),
        ),
        ("a Pod answers as a DHCP server", answers(67)),
        (
            "a Pod answers as a DHCP server that sends from another port",
            answers(1067),
        ),
        (
            "a Pod answers as a DHCP server behind IPv4 options",
            with_options(&udp(1067, 68, &OFFER)),
        ),
        ("a Pod answers as a DHCPv6 server", answers6(547)),
        (
            "a Pod answers as a DHCPv6 server that sends from another port",
            answers6(1547),
        ),
        (
            "a Pod answers as a DHCPv6 server behind an extension header",
            behind(60, [17, 0, 1, 4, 0, 0, 0, 0]),
        ),
        (
            "a Pod answers as a DHCPv6 server in fragments",
            behind(44, [17, 0xff, 0, 1, 0, 0, 0, 1]),
        ),
    ];
    let frames = frames.into_iter();
    let mut frames: Vec<_> = frames.map(|(name, frame)| (name, "dhcp", frame)).collect();
    frames.push((
        "a Pod asks by DHCP without saying for whom",
        "malformed",
        ipv4(pod.mac, pod.v4, other.v4, 17, &udp(68, 67, &[1, 1, 6, 0])),
    ));
    frames
}
