//! Layers one in the other, and the bytes that they are.

use std::net::{IpAddr, SocketAddr};

use crate::layers::{
    Ethernet, Extension, Icmp, Ipv4, Ipv6, Layer, MORE_FRAGMENTS, Mac, Raw, Sctp, Tcp, Udp, Vlan,
    Vxlan,
};

/// A frame, a packet, or a part of one: layers from the outside in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Packet {
    layers: Vec<Layer>,
}

impl<T: Into<Layer>> From<T> for Packet {
    fn from(layer: T) -> Self {
        Self {
            layers: vec![layer.into()],
        }
    }
}

/// A frame from one host to another.
pub fn eth(from: Mac, to: Mac) -> Packet {
    Ethernet::new(from, to).into()
}

/// An IP packet, which is in no frame, of the family of its addresses.
pub fn ip(source: impl Into<IpAddr>, to: impl Into<IpAddr>) -> Packet {
    Packet::default().ip(source, to)
}

/// A TCP segment as an IP packet.
pub fn tcp(
    from: impl Into<SocketAddr>,
    to: impl Into<SocketAddr>,
    flags: u8,
    data: &[u8],
) -> Packet {
    let (from, to) = (from.into(), to.into());
    let packet = ip(from.ip(), to.ip());
    packet.tcp(from.port(), to.port(), flags).data(data)
}

/// A UDP datagram as an IP packet.
pub fn udp(from: impl Into<SocketAddr>, to: impl Into<SocketAddr>, data: &[u8]) -> Packet {
    let (from, to) = (from.into(), to.into());
    let packet = ip(from.ip(), to.ip());
    packet.udp(from.port(), to.port()).data(data)
}

impl Packet {
    /// With a layer, or with all layers of another packet, inside.
    #[must_use]
    pub fn then(mut self, inner: impl Into<Self>) -> Self {
        self.layers.extend(inner.into().layers);
        self
    }

    /// With a VLAN tag.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.then(Vlan::new(id))
    }

    /// With an IP header of the family of both addresses.
    ///
    /// # Panics
    /// When the families differ.
    #[must_use]
    pub fn ip(self, source: impl Into<IpAddr>, to: impl Into<IpAddr>) -> Self {
        match (source.into(), to.into()) {
            (IpAddr::V4(source), IpAddr::V4(to)) => self.then(Ipv4::new(source, to)),
            (IpAddr::V6(source), IpAddr::V6(to)) => self.then(Ipv6::new(source, to)),
            (source, to) => panic!("{source} and {to} are of different families"),
        }
    }

    /// With a header of UDP.
    #[must_use]
    pub fn udp(self, from: u16, to: u16) -> Self {
        self.then(Udp::new(from, to))
    }

    /// With a header of TCP.
    #[must_use]
    pub fn tcp(self, from: u16, to: u16, flags: u8) -> Self {
        self.then(Tcp::new(from, to, flags))
    }

    /// With a header of SCTP.
    #[must_use]
    pub fn sctp(self, from: u16, to: u16) -> Self {
        self.then(Sctp::new(from, to))
    }

    /// With a header of vxlan; the frame inside follows.
    #[must_use]
    pub fn vxlan(self, vni: u32) -> Self {
        self.then(Vxlan::new(vni))
    }

    /// A ping.
    #[must_use]
    pub fn ping(self, id: u16) -> Self {
        let kind = if self.is_v6() { 128 } else { 8 };
        self.echo(kind, id)
    }

    /// The answer to a ping.
    #[must_use]
    pub fn pong(self, id: u16) -> Self {
        let kind = if self.is_v6() { 129 } else { 0 };
        self.echo(kind, id)
    }

    fn echo(self, kind: u8, id: u16) -> Self {
        let [high, low] = id.to_be_bytes();
        self.then(Icmp {
            rest: [high, low, 0, 1],
            ..Icmp::new(kind)
        })
        .data(b"ping")
    }

    /// An ICMP error: no socket is bound to the port that this packet, or its beginning, was sent to.
    #[must_use]
    pub fn port_unreachable(self, about: &[u8]) -> Self {
        let (kind, code) = if self.is_v6() { (1, 4) } else { (3, 3) };
        self.then(Icmp {
            code,
            ..Icmp::new(kind)
        })
        .data(about)
    }

    /// An ICMP error: this packet is larger than the next link takes, which is so many bytes.
    #[must_use]
    pub fn too_big(self, mtu: u16, about: &[u8]) -> Self {
        let (kind, code) = if self.is_v6() { (2, 0) } else { (3, 4) };
        let [high, low] = mtu.to_be_bytes();
        self.then(Icmp {
            code,
            rest: [0, 0, high, low],
            ..Icmp::new(kind)
        })
        .data(about)
    }

    /// An ICMP error: this packet has passed as many routers as it may.
    #[must_use]
    pub fn time_exceeded(self, about: &[u8]) -> Self {
        let kind = if self.is_v6() { 3 } else { 11 };
        self.then(Icmp::new(kind)).data(about)
    }

    /// With bytes at the end.
    #[must_use]
    pub fn data(self, bytes: &[u8]) -> Self {
        self.then(Raw {
            number: None,
            bytes: bytes.into(),
        })
    }

    /// With bytes that the header before announces by this number.
    #[must_use]
    pub fn raw(self, number: impl Into<u16>, bytes: &[u8]) -> Self {
        self.then(Raw {
            number: Some(number.into()),
            bytes: bytes.into(),
        })
    }

    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_from(0)
    }

    /// The bytes of a frame, and zeros up to the 60 that a wire has at the least.
    pub fn padded(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes.resize(bytes.len().max(60), 0);
        bytes
    }

    /// Without the layers before this one, whose checksums depend on them.
    fn bytes_from(&self, first: usize) -> Vec<u8> {
        let mut inside = Vec::new();
        // A header has lengths and checksums of what is inside, so that is made first.
        for (at, layer) in self.layers.iter().enumerate().skip(first).rev() {
            let around = self.layers[..at].iter().rev().find_map(Layer::addresses);
            inside = layer.wrap(around, self.layers.get(at + 1), &inside);
        }
        inside
    }

    /// Fragments of the outermost IP packet, which is cut at these offsets in its payload, multiples of 8. What is
    /// around it is around each.
    ///
    /// # Panics
    /// Without an IP header, or with an offset beyond the end.
    #[must_use]
    pub fn fragments(&self, id: u16, cuts: &[usize]) -> Vec<Self> {
        let header = self
            .layers
            .iter()
            .position(|layer| layer.addresses().is_some());
        let Some(header) = header else {
            panic!("fragments of what has no IP header: {self:?}")
        };
        let payload = self.bytes_from(header + 1);
        let is_v6 = matches!(self.layers[header], Layer::Ipv6(_));
        let next = self.layers.get(header + 1);
        let number = next.map(|next| next.protocol(is_v6).into());
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([payload.len()]);
        let fragment = |(start, end): (usize, usize)| {
            let is_more = end < payload.len();
            let bytes = payload[start..end].to_vec();
            let offset = u16::try_from(start).unwrap_or(u16::MAX);
            let mut layers = self.layers[..=header].to_vec();
            match &mut layers[header] {
                Layer::Ipv4(header) => {
                    header.id = id;
                    header.fragment = (offset / 8) | if is_more { MORE_FRAGMENTS } else { 0 };
                }
                _ => layers.push(Extension::fragment(offset, is_more, id.into()).into()),
            }
            Self { layers }.then(Raw { number, bytes })
        };
        starts.zip(ends).map(fragment).collect()
    }

    /// Source and destination of the innermost IP header.
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        self.layers.iter().rev().find_map(Layer::addresses)
    }

    fn is_v6(&self) -> bool {
        self.addresses().is_some_and(|(source, _)| source.is_ipv6())
    }
}
