//! The checksums of the Internet and of SCTP.

use std::net::IpAddr;

/// The checksum of the Internet (RFC 1071) over pieces, each of an even length but the last.
pub(crate) fn internet(pieces: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for pair in pieces.concat().chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The pseudo header: the part of the IP header that checksums cover (RFC 768, RFC 8200 section 8.1).
pub(crate) fn pseudo_header(addresses: (IpAddr, IpAddr), protocol: u8, length: usize) -> Vec<u8> {
    let (source, to) = (octets(addresses.0), octets(addresses.1));
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [&source[..], &to, &length, &[0, protocol]].concat()
}

/// CRC-32C, as SCTP sends it (RFC 9260, appendix A).
pub(crate) fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).to_le_bytes()
}

pub(crate) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().into(),
        IpAddr::V6(addr) => addr.octets().into(),
    }
}
