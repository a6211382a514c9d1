//! The layers. A field that is `None` follows from what is around the layer and inside of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::protocol;
use crate::sum::{crc32c, internet, pseudo_header};

/// A link-layer address.
pub type Mac = [u8; 6];

/// A header, or bytes that no header is known for.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "each holds the layer of its name")]
pub enum Layer {
    Ethernet(Ethernet),
    Vlan(Vlan),
    Arp(Arp),
    Ipv4(Ipv4),
    Ipv6(Ipv6),
    Extension(Extension),
    Udp(Udp),
    Tcp(Tcp),
    Icmp(Icmp),
    Sctp(Sctp),
    Vxlan(Vxlan),
    Raw(Raw),
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ethernet {
    /// Source.
    pub from: Mac,
    /// Destination.
    pub to: Mac,
    /// EtherType.
    pub kind: Option<u16>,
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Vlan {
    /// The EtherType of the tag: 0x8100, or 0x88a8 for a provider's.
    pub tag: u16,
    /// Priority and number of the VLAN.
    pub id: u16,
    /// EtherType of what follows.
    pub kind: Option<u16>,
}

/// An ARP message (RFC 826).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Arp {
    /// 1 for Ethernet.
    pub hardware: u16,
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// The host that claims this address.
    pub sender: (Mac, Ipv4Addr),
    /// The host that is asked or told.
    pub target: (Mac, Ipv4Addr),
}

/// A header of IPv4 (RFC 791).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ipv4 {
    /// Source.
    pub source: Ipv4Addr,
    /// Destination.
    pub to: Ipv4Addr,
    /// Routers that it may pass.
    pub ttl: u8,
    /// Traffic class.
    pub tos: u8,
    /// Identification, equal in all fragments.
    pub id: u16,
    /// Flags, and the offset in units of 8 bytes.
    pub fragment: u16,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    /// Version, and the header's length in units of 4 bytes.
    pub version_and_length: Option<u8>,
    /// Bytes, with the header.
    pub total_length: Option<u16>,
    /// The protocol number; by default that of the next layer.
    pub protocol: Option<u8>,
    /// The checksum of the header.
    pub checksum: Option<u16>,
}

/// The flag of IPv4 that more fragments follow.
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;

/// A header of IPv6 (RFC 8200).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ipv6 {
    /// Source.
    pub source: Ipv6Addr,
    /// Destination.
    pub to: Ipv6Addr,
    /// Routers that it may pass.
    pub hop_limit: u8,
    /// Version, traffic class and flow label.
    pub version_class_flow: u32,
    /// Bytes behind this header.
    pub payload_length: Option<u16>,
    /// The next header; by default that of the next layer.
    pub next: Option<u8>,
}

/// An extension header of IPv6.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Extension {
    /// The number of this extension header.
    pub kind: u8,
    /// The next header; by default that of the next layer.
    pub next: Option<u8>,
    /// The second byte: units of 8 bytes behind the first 8, but reserved in a fragment's header.
    pub length: Option<u8>,
    /// The bytes after the first two: 6, and a multiple of 8 more.
    pub body: Vec<u8>,
}

/// A header of UDP (RFC 768).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Udp {
    /// Source port.
    pub from: u16,
    /// Destination port.
    pub to: u16,
    /// Bytes, with the header.
    pub length: Option<u16>,
    /// 0 means no checksum.
    pub checksum: Option<u16>,
}

/// A header of TCP (RFC 9293).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tcp {
    /// Source port.
    pub from: u16,
    /// Destination port.
    pub to: u16,
    /// Number of the first byte.
    pub sequence: u32,
    /// Number of the byte that is waited for.
    pub acknowledged: u32,
    /// [`SYN`](crate::SYN) and the like.
    pub flags: u8,
    /// Bytes that there is room for.
    pub window: u16,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    /// The header's length in units of 4 bytes, in the upper half.
    pub offset: Option<u8>,
    /// With the addresses around.
    pub checksum: Option<u16>,
}

/// The first eight bytes of an ICMP message of either family, as its IP header is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The four bytes after the checksum.
    pub rest: [u8; 4],
    /// In IPv6 with the addresses around.
    pub checksum: Option<u16>,
}

/// The common header of SCTP (RFC 9260).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sctp {
    /// Source port.
    pub from: u16,
    /// Destination port.
    pub to: u16,
    /// Verification tag.
    pub tag: u32,
    /// CRC-32C, without the addresses around.
    pub checksum: Option<[u8; 4]>,
}

/// A header of vxlan (RFC 7348); an Ethernet header follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Vxlan {
    /// 0x08: there is a network identifier.
    pub flags: u8,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// The last byte, which is reserved.
    pub reserved: u8,
}

/// Bytes as they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Raw {
    /// The number by which the layer before names this one: an EtherType or a protocol.
    pub number: Option<u16>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Ethernet {
    /// A frame to one host.
    pub const fn new(from: Mac, to: Mac) -> Self {
        Self {
            from,
            to,
            kind: None,
        }
    }
}

impl Vlan {
    /// A tag of the ordinary kind.
    pub const fn new(id: u16) -> Self {
        Self {
            tag: 0x8100,
            id,
            kind: None,
        }
    }
}

impl Arp {
    /// "Who has this address?"
    pub const fn request(sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Self {
        Self {
            hardware: 1,
            operation: 1,
            sender,
            target: ([0; 6], target),
        }
    }

    /// "I have it."
    pub const fn answer(sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Self {
        Self {
            hardware: 1,
            operation: 2,
            sender,
            target,
        }
    }
}

impl Ipv4 {
    /// A whole packet without options.
    pub fn new(source: impl Into<Ipv4Addr>, to: impl Into<Ipv4Addr>) -> Self {
        Self {
            source: source.into(),
            to: to.into(),
            ttl: 64,
            tos: 0,
            id: 1,
            fragment: 0,
            options: Vec::new(),
            version_and_length: None,
            total_length: None,
            protocol: None,
            checksum: None,
        }
    }
}

impl Ipv6 {
    /// A packet.
    pub fn new(source: impl Into<Ipv6Addr>, to: impl Into<Ipv6Addr>) -> Self {
        Self {
            source: source.into(),
            to: to.into(),
            hop_limit: 64,
            version_class_flow: 6 << 28,
            payload_length: None,
            next: None,
        }
    }
}

impl Extension {
    /// A header with one option in it, which pads.
    pub fn padding(kind: u8) -> Self {
        Self {
            kind,
            next: None,
            length: None,
            body: vec![1, 4, 0, 0, 0, 0],
        }
    }

    /// The header of a fragment: where it begins in the whole, in bytes, and whether more follow.
    pub fn fragment(offset: u16, is_more: bool, id: u32) -> Self {
        let offset = (offset & !7) | u16::from(is_more);
        Self {
            kind: protocol::FRAGMENT,
            next: None,
            length: Some(0),
            body: [&offset.to_be_bytes()[..], &id.to_be_bytes()].concat(),
        }
    }
}

impl Udp {
    /// A datagram.
    pub const fn new(from: u16, to: u16) -> Self {
        Self {
            from,
            to,
            length: None,
            checksum: None,
        }
    }
}

impl Tcp {
    /// A segment without options.
    pub const fn new(from: u16, to: u16, flags: u8) -> Self {
        Self {
            from,
            to,
            sequence: 7,
            acknowledged: 9,
            flags,
            window: 0x2000,
            options: Vec::new(),
            offset: None,
            checksum: None,
        }
    }
}

impl Icmp {
    /// A message of this type, with code 0 and four bytes of zeros.
    pub const fn new(kind: u8) -> Self {
        Self {
            kind,
            code: 0,
            rest: [0; 4],
            checksum: None,
        }
    }
}

impl Sctp {
    /// A packet without chunks.
    pub const fn new(from: u16, to: u16) -> Self {
        Self {
            from,
            to,
            tag: 0x0102_0304,
            checksum: None,
        }
    }
}

impl Vxlan {
    /// Through the network of this identifier.
    pub const fn new(vni: u32) -> Self {
        Self {
            flags: 0x08,
            vni,
            reserved: 0,
        }
    }
}

macro_rules! layers {
    ($($layer:ident)*) => {
        $(impl From<$layer> for Layer {
            fn from(layer: $layer) -> Self {
                Self::$layer(layer)
            }
        })*
    };
}

layers!(Ethernet Vlan Arp Ipv4 Ipv6 Extension Udp Tcp Icmp Sctp Vxlan Raw);

/// For experiments on a link (IEEE 802): what bytes are announced as that no layer names.
const LOCAL_EXPERIMENT: u16 = 0x88b5;

impl Layer {
    /// The addresses that checksums inside depend on.
    pub(crate) fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match self {
            Self::Ipv4(header) => Some((header.source.into(), header.to.into())),
            Self::Ipv6(header) => Some((header.source.into(), header.to.into())),
            _ => None,
        }
    }

    /// The EtherType of the layer.
    fn ether_type(&self) -> u16 {
        match self {
            Self::Vlan(tag) => tag.tag,
            Self::Arp(_) => 0x0806,
            Self::Ipv4(_) => 0x0800,
            Self::Ipv6(_) => 0x86dd,
            Self::Raw(raw) => raw.number.unwrap_or(LOCAL_EXPERIMENT),
            _ => LOCAL_EXPERIMENT,
        }
    }

    /// The protocol number of the layer.
    pub(crate) fn protocol(&self, is_v6: bool) -> u8 {
        match self {
            Self::Ipv4(_) => 4,
            Self::Ipv6(_) => 41,
            Self::Extension(header) => header.kind,
            Self::Udp(_) => protocol::UDP,
            Self::Tcp(_) => protocol::TCP,
            Self::Icmp(_) if is_v6 => protocol::ICMPV6,
            Self::Icmp(_) => protocol::ICMP,
            Self::Sctp(_) => protocol::SCTP,
            Self::Raw(raw) => {
                let number = raw.number.and_then(|number| u8::try_from(number).ok());
                number.unwrap_or(protocol::EXPERIMENT)
            }
            Self::Ethernet(_) | Self::Vlan(_) | Self::Arp(_) | Self::Vxlan(_) => {
                protocol::EXPERIMENT
            }
        }
    }

    /// The layer around what is inside of it, which begins with the next layer.
    pub(crate) fn wrap(
        &self,
        around: Option<(IpAddr, IpAddr)>,
        next: Option<&Self>,
        inside: &[u8],
    ) -> Vec<u8> {
        let is_v6 = around.is_some_and(|(source, _)| source.is_ipv6());
        let ether_type = next.map_or(LOCAL_EXPERIMENT, Self::ether_type);
        let protocol = |is_v6| next.map_or(protocol::EXPERIMENT, |next| next.protocol(is_v6));
        let header = match self {
            Self::Ethernet(header) => {
                let kind = header.kind.unwrap_or(ether_type).to_be_bytes();
                [&header.to[..], &header.from, &kind].concat()
            }
            Self::Vlan(tag) => [tag.id, tag.kind.unwrap_or(ether_type)]
                .map(u16::to_be_bytes)
                .concat(),
            Self::Arp(message) => message.bytes(),
            Self::Ipv4(header) => header.bytes(protocol(false), inside.len()),
            Self::Ipv6(header) => header.bytes(protocol(true), inside.len()),
            Self::Extension(header) => {
                let units = header
                    .length
                    .unwrap_or(byte((header.body.len() + 2) / 8 - 1));
                [
                    &[header.next.unwrap_or(protocol(true)), units][..],
                    &header.body,
                ]
                .concat()
            }
            Self::Udp(header) => header.bytes(around, inside),
            Self::Tcp(header) => header.bytes(around, inside),
            Self::Icmp(message) => message.bytes(around.filter(|_| is_v6), inside),
            Self::Sctp(header) => header.bytes(inside),
            Self::Vxlan(header) => {
                let vni = (header.vni << 8) | u32::from(header.reserved);
                [&[header.flags, 0, 0, 0][..], &vni.to_be_bytes()].concat()
            }
            Self::Raw(raw) => raw.bytes.clone(),
        };
        [&header, inside].concat()
    }
}

impl Arp {
    fn bytes(&self) -> Vec<u8> {
        let [hardware, operation] = [self.hardware, self.operation].map(u16::to_be_bytes);
        [
            &hardware[..],
            &[8, 0, 6, 4],
            &operation,
            &self.sender.0,
            &self.sender.1.octets(),
            &self.target.0,
            &self.target.1.octets(),
        ]
        .concat()
    }
}

impl Ipv4 {
    fn bytes(&self, protocol: u8, inside: usize) -> Vec<u8> {
        let length = 20 + self.options.len();
        let first = self.version_and_length.unwrap_or(0x40 | byte(length / 4));
        let total = self
            .total_length
            .unwrap_or(word(length + inside))
            .to_be_bytes();
        let mut header = [
            &[first, self.tos][..],
            &total,
            &self.id.to_be_bytes(),
            &self.fragment.to_be_bytes(),
            &[self.ttl, self.protocol.unwrap_or(protocol), 0, 0],
            &self.source.octets(),
            &self.to.octets(),
            &self.options,
        ]
        .concat();
        let checksum = self.checksum.unwrap_or(internet(&[&header]));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }
}

impl Ipv6 {
    fn bytes(&self, next: u8, inside: usize) -> Vec<u8> {
        [
            &self.version_class_flow.to_be_bytes()[..],
            &self.payload_length.unwrap_or(word(inside)).to_be_bytes(),
            &[self.next.unwrap_or(next), self.hop_limit],
            &self.source.octets(),
            &self.to.octets(),
        ]
        .concat()
    }
}

/// The sum over a header whose own is zero, over what is inside, and over the addresses around.
fn transport_sum(
    around: Option<(IpAddr, IpAddr)>,
    protocol: u8,
    header: &[u8],
    inside: &[u8],
) -> u16 {
    let length = header.len() + inside.len();
    let pseudo = around.map(|addresses| pseudo_header(addresses, protocol, length));
    internet(&[&pseudo.unwrap_or_default(), header, inside])
}

impl Udp {
    fn bytes(&self, around: Option<(IpAddr, IpAddr)>, inside: &[u8]) -> Vec<u8> {
        let length = self.length.unwrap_or(word(8 + inside.len()));
        let mut header = [self.from, self.to, length, 0]
            .map(u16::to_be_bytes)
            .concat();
        let sum = match transport_sum(around, protocol::UDP, &header, inside) {
            // Zero is for none.
            0 => u16::MAX,
            sum => sum,
        };
        header[6..8].copy_from_slice(&self.checksum.unwrap_or(sum).to_be_bytes());
        header
    }
}

impl Tcp {
    fn bytes(&self, around: Option<(IpAddr, IpAddr)>, inside: &[u8]) -> Vec<u8> {
        let words = byte(5 + self.options.len() / 4);
        let mut header = [
            &self.from.to_be_bytes()[..],
            &self.to.to_be_bytes(),
            &self.sequence.to_be_bytes(),
            &self.acknowledged.to_be_bytes(),
            &[self.offset.unwrap_or(words << 4), self.flags],
            &self.window.to_be_bytes(),
            &[0; 4],
            &self.options,
        ]
        .concat();
        let sum = transport_sum(around, protocol::TCP, &header, inside);
        header[16..18].copy_from_slice(&self.checksum.unwrap_or(sum).to_be_bytes());
        header
    }
}

impl Icmp {
    /// Only in IPv6 there are addresses around.
    fn bytes(&self, around: Option<(IpAddr, IpAddr)>, inside: &[u8]) -> Vec<u8> {
        let mut header = [&[self.kind, self.code, 0, 0][..], &self.rest].concat();
        let sum = transport_sum(around, protocol::ICMPV6, &header, inside);
        header[2..4].copy_from_slice(&self.checksum.unwrap_or(sum).to_be_bytes());
        header
    }
}

impl Sctp {
    fn bytes(&self, inside: &[u8]) -> Vec<u8> {
        let ports = [self.from, self.to].map(u16::to_be_bytes).concat();
        let mut header = [&ports[..], &self.tag.to_be_bytes(), &[0; 4]].concat();
        let sum = crc32c(&[&header, inside].concat());
        header[8..].copy_from_slice(&self.checksum.unwrap_or(sum));
        header
    }
}

/// A length in a header; the largest where it does not fit.
fn word(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn byte(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}
