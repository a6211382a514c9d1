//! Who sends a packet through a vxlan tunnel (RFC 7348), and from which link-layer address inside of it.
//!
//! Pure and `no_std`, for the program that listens on an underlay.

use crate::abi::{VtepKey, mapped};

/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Bytes of the headers of UDP and vxlan, and of both link-layer addresses of the inner frame.
pub const TUNNEL_LEN: usize = 28;

const UDP: u8 = 17;
/// More fragments follow, or this is not the first one.
const FRAGMENT: u16 = 0x3fff;
/// The header has a network identifier.
const HAS_VNI: u8 = 0x08;

/// A UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Where it comes from; IPv4 addresses are IPv4-mapped.
    pub source: [u8; 16],
    /// Where the header of UDP begins, bytes from that of IP.
    pub udp: usize,
}

impl Outer {
    /// Reads an IPv4 header; `None` if what follows is no whole UDP packet.
    #[inline(always)]
    pub fn ipv4(header: &[u8; IPV4_LEN]) -> Option<Self> {
        let udp = (header[0] & 0x0f) as usize * 4;
        let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT;
        if header[0] >> 4 != 4 || udp < IPV4_LEN || fragment != 0 || header[9] != UDP {
            return None;
        }
        let source = mapped([header[12], header[13], header[14], header[15]]);
        Some(Self { source, udp })
    }

    /// Reads an IPv6 header likewise. The kernel puts no extension headers before vxlan.
    #[inline(always)]
    pub fn ipv6(header: &[u8; IPV6_LEN]) -> Option<Self> {
        if header[0] >> 4 != 6 || header[6] != UDP {
            return None;
        }
        let mut source = [0; 16];
        source.copy_from_slice(&header[8..24]);
        Some(Self {
            source,
            udp: IPV6_LEN,
        })
    }

    /// Reads on: the key under which the peer is known, and the source of the inner frame. `None` if it has no network identifier.
    #[inline(always)]
    pub fn inner(&self, bytes: &[u8; TUNNEL_LEN]) -> Option<(VtepKey, [u8; 6])> {
        if bytes[8] & HAS_VNI == 0 {
            return None;
        }
        let key = VtepKey {
            underlay: self.source,
            vni: u32::from_be_bytes([0, bytes[12], bytes[13], bytes[14]]),
            port_be: [bytes[2], bytes[3]],
            pad: [0; 2],
        };
        let source = [
            bytes[22], bytes[23], bytes[24], bytes[25], bytes[26], bytes[27],
        ];
        Some((key, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Mac, VtepSeen};

    const SOURCE: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];

    fn ipv4() -> [u8; IPV4_LEN] {
        let mut header = [0; IPV4_LEN];
        header[0] = 0x45;
        header[6] = 0x40;
        header[9] = UDP;
        header[12..16].copy_from_slice(&[192, 0, 2, 7]);
        header
    }

    fn tunnel() -> [u8; TUNNEL_LEN] {
        let mut bytes = [0xff; TUNNEL_LEN];
        bytes[2..4].copy_from_slice(&8472u16.to_be_bytes());
        bytes[8] = HAS_VNI;
        bytes[12..16].copy_from_slice(&[0x01, 0x02, 0x03, 0xff]);
        bytes[22..].copy_from_slice(&SOURCE);
        bytes
    }

    #[test]
    fn sender_tunnel_and_inner_source_are_read() {
        let outer = Outer::ipv4(&ipv4()).unwrap();
        assert_eq!(outer.udp, 20);
        let (key, source) = outer.inner(&tunnel()).unwrap();
        let expected = VtepKey {
            underlay: mapped([192, 0, 2, 7]),
            vni: 0x01_02_03,
            port_be: 8472u16.to_be_bytes(),
            pad: [0; 2],
        };
        assert_eq!((key, source), (expected, SOURCE));

        let mut header = [0; IPV6_LEN];
        header[0] = 0x60;
        header[6] = UDP;
        header[8..24].copy_from_slice(&[7; 16]);
        let outer = Outer::ipv6(&header).unwrap();
        assert_eq!((outer.source, outer.udp), ([7; 16], 40));
    }

    #[test]
    fn options_of_ipv4_are_skipped() {
        let mut header = ipv4();
        header[0] = 0x4f;
        assert_eq!(Outer::ipv4(&header).unwrap().udp, 60);
    }

    #[test]
    fn what_is_no_whole_udp_packet_of_a_tunnel_is_passed_over() {
        for (at, value) in [(0, 0x65), (0, 0x44), (6, 0x20), (7, 0x01), (9, 6)] {
            let mut header = ipv4();
            header[at] = value;
            assert_eq!(Outer::ipv4(&header), None, "{at}: {value:#x}");
        }
        for (at, value) in [(0, 0x45), (6, 44)] {
            let mut header = [0; IPV6_LEN];
            (header[0], header[6]) = (0x60, UDP);
            header[at] = value;
            assert_eq!(Outer::ipv6(&header), None, "{at}: {value:#x}");
        }
        let mut bytes = tunnel();
        bytes[8] = 0;
        assert_eq!(Outer::ipv4(&ipv4()).unwrap().inner(&bytes), None);
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
