//! Frames by layers: right by default, and wrong where a test says so.
//!
//! Layers are named from the outside in. Lengths, checksums, and the numbers that announce the next layer follow from
//! what is inside; each can be set to anything instead, by naming the field of its layer:
//!
//! ```
//! use yurt_frames::{ACK, Ipv4, eth, ip};
//!
//! let (node, pod) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
//! let (client, server) = ([192, 0, 2, 7], [10, 244, 1, 10]);
//! let whole = eth(node, pod).ip(client, server).tcp(40000, 80, ACK).data(b"hello");
//! let expiring = Ipv4 { ttl: 1, checksum: Some(0xdead), ..Ipv4::new(client, server) };
//! let wrong = eth(node, pod).then(expiring).tcp(40000, 80, ACK);
//! // A router's error holds the beginning of the packet that it is about.
//! let sent = ip(client, server).udp(40000, 53).data(b"question");
//! let error = eth(node, pod).ip([198, 51, 100, 1], client).too_big(1280, &sent.bytes()[..28]);
//! let fragments = ip(client, server).udp(40000, 53).data(&[7; 4000]).fragments(1, &[1480, 2960]);
//! # assert!(yurt_frames::flaws(&whole.bytes()).is_empty());
//! # assert_eq!(yurt_frames::flaws(&wrong.bytes()), ["the header of the packet"]);
//! # assert!(yurt_frames::flaws(&error.bytes()).is_empty());
//! # assert_eq!(fragments.len(), 3);
//! ```
//!
//! A part of a frame is a slice of its [`Packet::bytes`]. [`flaws`] reads a frame without the code that makes them.

pub mod guard;
mod layers;
mod packet;
mod read;
mod sum;
#[cfg(test)]
mod tests;

pub use layers::{
    Arp, Ethernet, Extension, Icmp, Ipv4, Ipv6, Layer, Mac, Raw, Sctp, Tcp, Udp, Vlan, Vxlan,
};
pub use packet::{Packet, eth, ip, tcp, udp};
pub use read::{addresses, flaws};

/// Everyone on a link.
pub const BROADCAST: Mac = [0xff; 6];

/// Flag of TCP.
pub const SYN: u8 = 0x02;
/// Flag of TCP.
pub const ACK: u8 = 0x10;

/// Protocol numbers of IP (IANA), as they stand in headers.
pub mod protocol {
    /// Header of IPv6: options that each router looks at.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP of IPv4.
    pub const ICMP: u8 = 1;
    /// Membership of IPv4 groups.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// Header of IPv6: a list of routers to pass.
    pub const ROUTING: u8 = 43;
    /// Header of IPv6: a fragment.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// A header that signs the packet with its addresses.
    pub const AH: u8 = 51;
    /// ICMP of IPv6.
    pub const ICMPV6: u8 = 58;
    /// Header of IPv6: options for the destination.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// VRRP.
    pub const VRRP: u8 = 112;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// For experiments (RFC 3692): what bytes are announced as that no layer names.
    pub const EXPERIMENT: u8 = 253;
}
