//! Who sends a packet through a vxlan tunnel (RFC 7348), and from which link-layer address inside of it.
//!
//! Pure and `no_std`, for the program that listens on an underlay.

use crate::abi::{VtepKey, bytes, mapped_words};
use crate::frame::ip::{Ipv4Header, Ipv6Addresses, Ipv6Header, Part, UDP};
use crate::frame::{Frame, Wire};

/// The headers of UDP and vxlan, and both link-layer addresses of the inner frame.
#[derive(Clone, Copy)]
#[repr(C)]
struct Tunnel {
    from_port: [u8; 2],
    to_port: [u8; 2],
    length_and_sum: [u8; 4],
    flags: u8,
    reserved: [u8; 3],
    vni: [u8; 3],
    also_reserved: u8,
    inner_destination: [u8; 6],
    inner_source: [u8; 6],
}

// SAFETY: bytes, in fields that need no alignment.
unsafe impl Wire for Tunnel {}

/// The header has a network identifier.
const HAS_VNI: u8 = 0x08;

/// The key under which the sender is known, and the source of the inner frame. Of a packet from its IP header on;
/// `None` of what is no whole UDP packet with a network identifier.
#[inline(always)]
pub fn sender<F: Frame + ?Sized>(packet: &F, is_v6: bool) -> Option<(VtepKey, [u8; 6])> {
    let (source, udp) = if is_v6 {
        let header: Ipv6Header = packet.far(0)?;
        // The kernel puts no extension headers before vxlan.
        if !header.is_valid() || header.next != UDP {
            return None;
        }
        let addresses: Ipv6Addresses = packet.far(Ipv6Header::ADDRESSES)?;
        (addresses.source(), Ipv6Header::LENGTH)
    } else {
        let header: Ipv4Header = packet.far(0)?;
        if !header.is_valid() || header.part() != Part::Whole || header.protocol != UDP {
            return None;
        }
        (mapped_words(header.source), header.length())
    };
    let tunnel: Tunnel = packet.far(udp)?;
    if tunnel.flags & HAS_VNI == 0 {
        return None;
    }
    let [a, b, c] = tunnel.vni;
    let key = VtepKey {
        underlay: bytes(source),
        vni: u32::from_be_bytes([0, a, b, c]),
        port_be: tunnel.to_port,
        pad: [0; 2],
    };
    Some((key, tunnel.inner_source))
}

#[cfg(test)]
mod tests {
    use yurt_frames::protocol::{FRAGMENT, TCP};
    use yurt_frames::{Ipv4, Ipv6, Packet, Udp, Vxlan, eth};

    use super::*;
    use crate::abi::{Mac, VtepSeen, mapped};

    const INNER: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];

    /// What comes behind a header of IP: vxlan with these flags, and the frame inside.
    fn tunnel(flags: u8) -> Packet {
        let vxlan = Vxlan {
            flags,
            reserved: 0xff,
            ..Vxlan::new(0x01_02_03)
        };
        let outer = Packet::from(Udp::new(50000, 8472));
        outer.then(vxlan).then(eth(INNER, [0xff; 6]))
    }

    fn ipv4() -> Ipv4 {
        Ipv4 {
            // Not to be cut.
            fragment: 0x4000,
            ..Ipv4::new([192, 0, 2, 7], [192, 0, 2, 1])
        }
    }

    fn ipv6() -> Ipv6 {
        Ipv6::new([7; 16], [8; 16])
    }

    fn of(header: impl Into<Packet>, tunnel: Packet) -> Option<(VtepKey, [u8; 6])> {
        let packet = header.into().then(tunnel);
        let is_v6 = packet
            .addresses()
            .is_some_and(|(source, _)| source.is_ipv6());
        sender(packet.bytes().as_slice(), is_v6)
    }

    #[test]
    fn sender_tunnel_and_inner_source_are_read() {
        let from = |underlay| VtepKey {
            underlay,
            vni: 0x01_02_03,
            port_be: 8472u16.to_be_bytes(),
            pad: [0; 2],
        };
        let expected = (from(mapped([192, 0, 2, 7])), INNER);
        assert_eq!(of(ipv4(), tunnel(HAS_VNI)), Some(expected));
        assert_eq!(of(ipv6(), tunnel(HAS_VNI)), Some((from([7; 16]), INNER)));
    }

    #[test]
    fn options_of_ipv4_are_skipped() {
        let with_options = Ipv4 {
            options: vec![1; 40],
            ..ipv4()
        };
        let plain = of(ipv4(), tunnel(HAS_VNI));
        assert_eq!(of(with_options, tunnel(HAS_VNI)), plain);
        assert!(plain.is_some());
    }

    #[test]
    fn what_is_no_whole_udp_packet_of_a_tunnel_is_passed_over() {
        for header in [
            Ipv4 {
                version_and_length: Some(0x65),
                ..ipv4()
            },
            Ipv4 {
                version_and_length: Some(0x44),
                ..ipv4()
            },
            // The first of several fragments, and a later one.
            Ipv4 {
                fragment: 0x2000,
                ..ipv4()
            },
            Ipv4 {
                fragment: 0x0001,
                ..ipv4()
            },
            Ipv4 {
                protocol: Some(TCP),
                ..ipv4()
            },
        ] {
            assert_eq!(of(header.clone(), tunnel(HAS_VNI)), None, "{header:?}");
        }
        for header in [
            Ipv6 {
                version_class_flow: 0x45 << 24,
                ..ipv6()
            },
            Ipv6 {
                next: Some(FRAGMENT),
                ..ipv6()
            },
        ] {
            assert_eq!(of(header.clone(), tunnel(HAS_VNI)), None, "{header:?}");
        }
        assert_eq!(of(ipv4(), tunnel(0)), None);
        // The last byte of what is read, the inner source's, is missing.
        let whole = Packet::from(ipv4()).then(tunnel(HAS_VNI)).bytes();
        let needed = 20 + size_of::<Tunnel>();
        assert!(sender(&whole[..needed], false).is_some());
        assert_eq!(sender(&whole[..needed - 1], false), None);
    }

    #[test]
    fn frames_are_counted_by_whether_their_source_is_known() {
        let mac = |last| [0x0a, 0, 0, 0, 0, last];
        let mut seen = VtepSeen::default();
        seen.known.addr = mac(1);
        for last in [1, 2, 2, 1, 3, 2] {
            seen.note(mac(last));
        }
        let expected = VtepSeen {
            known: seen.known,
            other: Mac {
                addr: mac(2),
                pad: [0; 2],
            },
            known_frames: 2,
            other_frames: 4,
            others: 3,
        };
        assert_eq!(seen, expected);
    }
}
