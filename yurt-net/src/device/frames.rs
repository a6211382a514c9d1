//! Frames that announce to neighbours which MAC has an address. Pure.
//!
//! A bridge learns from them at which port a MAC is now. Neighbours replace the MAC that they had for the address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use yurt_ebpf::frame::ip::ICMPV6;

use super::Mac;

const BROADCAST: [u8; 6] = [0xff; 6];
/// The multicast MAC of ff02::1 (RFC 2464, section 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The Ethernet frame that announces an address: an ARP announcement, or an unsolicited neighbour advertisement.
pub fn frame(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(mac, address),
        IpAddr::V6(address) => advertisement(mac, address),
    }
}

fn ethernet(to: [u8; 6], from: Mac, kind: u16) -> Vec<u8> {
    [&to[..], &from.0, &kind.to_be_bytes()].concat()
}

/// A request for the sender's own address (RFC 5227, section 3).
fn arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, 0x0806);
    // Hardware type Ethernet, protocol IPv4, the lengths of both addresses, operation request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// With the Override flag, and the MAC as an option (RFC 4861, sections 4.4 and 7.2.6).
fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac.0);
    // The message has 32 bytes; the checksum's pseudo header has this length, too.
    let length = [0, 32];
    let pseudo = [
        &address.octets()[..],
        &ALL_NODES.octets(),
        &[0, 0],
        &length,
        &[0, 0, 0, ICMPV6],
        &message,
    ];
    let [high, low] = checksum(&pseudo.concat()).to_be_bytes();
    message[2] = high;
    message[3] = low;

    let mut frame = ethernet(ALL_NODES_MAC, mac, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length);
    // The hop limit must be 255: receivers discard a message that a router may have forwarded.
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter();
    let sum = words.fold(0u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(u16::from_be_bytes(*word));
        sum + u16::from(carry)
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arp_announcement_asks_for_the_own_address() {
        let mac = "0a:58:0a:01:00:02".parse().unwrap();
        let frame = frame(mac, "10.1.0.2".parse().unwrap());
        let expected = [
            &[0xff; 6][..],
            &mac.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &mac.0,
            &[10, 1, 0, 2],
            &[0; 6],
            &[10, 1, 0, 2],
        ];
        assert_eq!(frame, expected.concat());
    }

    #[test]
    fn the_checksum_of_an_advertisement_adds_up() {
        let mac = "0a:59:00:00:00:02".parse().unwrap();
        let address: Ipv6Addr = "fd00:1::2".parse().unwrap();
        let frame = frame(mac, address.into());
        let (header, message) = frame[14..].split_at(40);
        assert_eq!((message.len(), header[6], header[7]), (32, ICMPV6, 255));
        let pseudo = [&header[8..40], &[0, 0, 0, 32, 0, 0, 0, ICMPV6], message].concat();
        assert_eq!(checksum(&pseudo), 0);
        assert_eq!(message[4], 0x20, "override, neither router nor solicited");
        assert_eq!(message[8..24], address.octets());
    }
}
