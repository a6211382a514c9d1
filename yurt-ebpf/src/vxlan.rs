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

/// The key under which the sender is known, and the source of the inner frame. Of a packet from its IP header on; `None` of what is
/// no whole UDP packet with a network identifier.
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
    use super::*;
    use crate::abi::{Mac, VtepSeen, mapped};

    const INNER: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];

    fn ipv4() -> Vec<u8> {
        let mut header = vec![0; 20];
        header[0] = 0x45;
        header[6] = 0x40;
        header[9] = UDP;
        header[12..16].copy_from_slice(&[192, 0, 2, 7]);
        header
    }

    fn ipv6() -> Vec<u8> {
        let mut header = vec![0; 40];
        header[0] = 0x60;
        header[6] = UDP;
        header[8..24].copy_from_slice(&[7; 16]);
        header
    }

    fn tunnel() -> Vec<u8> {
        let mut bytes = vec![0xff; 28];
        bytes[2..4].copy_from_slice(&8472u16.to_be_bytes());
        bytes[8] = HAS_VNI;
        bytes[12..16].copy_from_slice(&[0x01, 0x02, 0x03, 0xff]);
        bytes[22..].copy_from_slice(&INNER);
        bytes
    }

    fn of(header: &[u8], tunnel: &[u8]) -> Option<(VtepKey, [u8; 6])> {
        let is_v6 = header.len() == 40;
        sender([header, tunnel].concat().as_slice(), is_v6)
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
        assert_eq!(of(&ipv4(), &tunnel()), Some(expected));
        assert_eq!(of(&ipv6(), &tunnel()), Some((from([7; 16]), INNER)));
    }

    #[test]
    fn options_of_ipv4_are_skipped() {
        let mut header = [ipv4(), vec![1; 40]].concat();
        header[0] = 0x4f;
        assert_eq!(
            sender([header, tunnel()].concat().as_slice(), false),
            of(&ipv4(), &tunnel())
        );
    }

    #[test]
    fn what_is_no_whole_udp_packet_of_a_tunnel_is_passed_over() {
        for (at, value) in [(0, 0x65), (0, 0x44), (6, 0x20), (7, 0x01), (9, 6)] {
            let mut header = ipv4();
            header[at] = value;
            assert_eq!(of(&header, &tunnel()), None, "{at}: {value:#x}");
        }
        for (at, value) in [(0, 0x45), (6, 44)] {
            let mut header = ipv6();
            header[at] = value;
            assert_eq!(of(&header, &tunnel()), None, "{at}: {value:#x}");
        }
        let mut without_vni = tunnel();
        without_vni[8] = 0;
        assert_eq!(of(&ipv4(), &without_vni), None);
        assert_eq!(of(&ipv4(), &tunnel()[..27]), None);
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
