//! The maps of the socket path: frontends, endpoint sets, what sockets are shown, and verdicts.
#![expect(
    clippy::cast_possible_truncation,
    reason = "fields are cut out of packed words"
)]

use super::address::{Prefix4, Prefix6, words};

/// Version of the table maps: `yurt_conf`, `yurt_filter`, `yurt_fe4`, `yurt_fe6`, `yurt_svc`, `yurt_slot`, `yurt_be6`.
pub const TABLE_ABI: u32 = 2;
/// Version of the state maps, which outlive tables: `yurt_revsk`, `yurt_peer`, `yurt_aff4`, `yurt_aff6`, `yurt_netns`,
/// `yurt_count`.
pub const STATE_ABI: u32 = 1;

/// Most prefixes of one family in a [`PrefixSet`].
pub const MAX_PREFIXES: usize = 16;
/// Words of `yurt_filter`: 32 KiB, in which 20,000 addresses leave one address in forty to be looked up in vain.
pub const FILTER_WORDS: u32 = 1 << 12;
/// Destinations of one unconnected UDP socket that keep their backend.
pub const UDP_PEERS: usize = 8;

/// Scope of a frontend entry that this node and its Pods may use.
pub const SCOPE_INTERNAL: u8 = 0;
/// Not a frontend: a known ClusterIP, port 0 and protocol 0. Inside the cluster's prefixes its unknown ports are
/// refused.
pub const SCOPE_ADDRESS: u8 = 1;
/// Scope of a frontend entry for everybody else, whose packets come in by a device: only where an entry of
/// [`SCOPE_INTERNAL`] says [`FRONTEND_OUTSIDE_APART`].
pub const SCOPE_EXTERNAL: u8 = 2;

/// Flag of a [`FrontendValue`]: only for sockets in the node's own network namespace (NodePorts on loopback).
pub const FRONTEND_NODE_ONLY: u8 = 1;
/// Flag of a value of [`SCOPE_ADDRESS`]: an interface of this node has the address, and its unknown ports pass instead.
pub const FRONTEND_ON_NODE: u8 = 2;
/// Flag of a value of [`SCOPE_INTERNAL`]: clients outside get the same set. Endpoints see this node's address in place
/// of theirs.
///
/// With neither this flag nor [`FRONTEND_OUTSIDE_APART`] it is no frontend for clients outside. Hooks of sockets look
/// at neither.
pub const FRONTEND_OUTSIDE: u8 = 4;
/// Flag of a value of [`SCOPE_INTERNAL`]: clients outside get the set of the entry of [`SCOPE_EXTERNAL`] with the same
/// address, port and protocol (external traffic policy Local). Endpoints see their own address.
///
/// The entry there is written before this flag, and goes after it. Who does not find it was interrupted in between, or
/// the map is full: a refusal, for the packet is a Service's.
pub const FRONTEND_OUTSIDE_APART: u8 = 8;

/// [`PrefixSet::flags`]: the prefixes are ServiceCIDRs, so an unallocated address inside is refused.
pub const PREFIXES_ARE_SERVICE_CIDRS: u32 = 1;

/// [`Conf::socket_lb`]: sockets of every process on the node are served.
pub const SOCKET_LB_ALL: u32 = 0;
/// [`Conf::socket_lb`]: only sockets in the node's own network namespace are served (for meshes and VM Pods).
pub const SOCKET_LB_HOST: u32 = 1;
/// [`Conf::socket_lb`]: no socket is served.
pub const SOCKET_LB_OFF: u32 = 2;

/// [`NetnsRow::class`]: a Pod whose sockets are left alone.
pub const NETNS_OPT_OUT: u32 = 1;

/// Priority (`SO_PRIORITY`) of the agent's sockets to its sources. In the node's network namespace they are never
/// translated: a table must not come between the agent and those who say what is in it.
///
/// No queueing discipline takes it for a class or for another band than best effort, and no route depends on it, as on
/// a mark. To set one above 6 takes `CAP_NET_ADMIN` or `CAP_NET_RAW`, and a process that does so only loses Services
/// for its own sockets.
pub const OWN_SOCKET_PRIORITY: u32 = 0x7975_7270;

/// Key of `yurt_fe4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct FrontendKey4 {
    /// Address.
    pub addr: [u8; 4],
    /// Port, 0 for [`SCOPE_ADDRESS`].
    pub port_be: [u8; 2],
    /// IANA protocol number; 0 for [`SCOPE_ADDRESS`].
    pub protocol: u8,
    /// `SCOPE_*`.
    pub scope: u8,
}

/// Key of `yurt_fe6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct FrontendKey6 {
    /// Address.
    pub addr: [u8; 16],
    /// Port, 0 for [`SCOPE_ADDRESS`].
    pub port_be: [u8; 2],
    /// IANA protocol number; 0 for [`SCOPE_ADDRESS`].
    pub protocol: u8,
    /// `SCOPE_*`.
    pub scope: u8,
    /// Zero.
    pub pad: [u8; 4],
}

/// Value of `yurt_fe4` and `yurt_fe6`: service index (bits 0-31), key fingerprint (32-55), flags (56-63).
///
/// The kernel may hand a hash element to another key while a reader looks at it. The fingerprint tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct FrontendValue(pub u64);

impl FrontendValue {
    /// Packs the parts; `fingerprint` has 24 bits.
    pub const fn new(service: u32, fingerprint: u32, flags: u8) -> Self {
        Self(service as u64 | (fingerprint as u64 & 0xff_ffff) << 32 | (flags as u64) << 56)
    }

    /// Index into `yurt_svc`.
    #[inline(always)]
    pub const fn service(self) -> u32 {
        self.0 as u32
    }

    /// See [`FrontendKey4::fingerprint`].
    #[inline(always)]
    pub const fn fingerprint(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }

    /// `FRONTEND_*`.
    #[inline(always)]
    pub const fn flags(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

/// The publish word of a service: one atomic store switches every new connection from one endpoint set to the next, and
/// from one set of admitted clients to the next.
///
/// First slot (bits 0-23), number of backends (24-39), generation (40-55), number of source ranges (56-62), whether a
/// set without backends drops (63). The ranges follow the backends in the slots. The generation grows with every
/// publish of the index, so that an equal word of the same index means an equal set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct PublishWord(pub u64);

impl PublishWord {
    /// Most source ranges that fit.
    pub const MAX_RANGES: u8 = (1 << 7) - 1;

    /// Packs the parts; `base` has 24 bits.
    pub const fn new(base: u32, count: u16, generation: u16) -> Self {
        Self(base as u64 & 0xff_ffff | (count as u64) << 24 | (generation as u64) << 40)
    }

    /// With source ranges after the backends, at most [`Self::MAX_RANGES`]: only clients inside one of them are
    /// admitted.
    #[must_use]
    pub const fn with_ranges(self, ranges: u8) -> Self {
        Self(self.0 | (ranges as u64 & 0x7f) << 56)
    }

    /// Marks a set whose endpoints are all on other nodes: connections to it are dropped, not refused.
    #[must_use]
    pub const fn with_drop(self) -> Self {
        Self(self.0 | 1 << 63)
    }

    /// Number of source ranges; 0 admits everybody.
    #[inline(always)]
    pub const fn ranges(self) -> u8 {
        (self.0 >> 56) as u8 & 0x7f
    }

    /// See [`Self::with_drop`].
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        self.0 >> 63 != 0
    }

    /// First slot.
    #[inline(always)]
    pub const fn base(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }

    /// Number of backends; 0 refuses, or drops.
    #[inline(always)]
    pub const fn count(self) -> u16 {
        (self.0 >> 24) as u16
    }

    /// Counts publishes of this index, wrapping.
    #[inline(always)]
    pub const fn generation(self) -> u16 {
        (self.0 >> 40) as u16
    }
}

/// Value of `yurt_svc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct ServiceRow {
    /// [`PublishWord`].
    pub word: u64,
    /// [`Affinity`](super::Affinity).
    pub affinity: u64,
}

/// Value of `yurt_slot`: an IPv4 backend, or a source range after the backends of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Backend4 {
    /// Address.
    pub addr: [u8; 4],
    /// Port.
    pub port_be: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of `yurt_be6`: an IPv6 backend, or a source range after the backends of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Backend6 {
    /// Address.
    pub addr: [u8; 16],
    /// Port.
    pub port_be: [u8; 2],
    /// Zero.
    pub pad: [u8; 6],
}

impl Backend4 {
    /// A source range: its network address, and its mask in the place of port and padding.
    pub const fn range(addr: [u8; 4], mask: [u8; 4]) -> Self {
        let [a, b, c, d] = mask;
        Self {
            addr,
            port_be: [a, b],
            pad: [c, d],
        }
    }

    /// The mask of a source range.
    #[inline(always)]
    pub const fn mask(&self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.port_be, self.pad);
        [a, b, c, d]
    }

    /// Whether this source range has the client in it.
    #[inline(always)]
    pub const fn admits(&self, client: [u8; 4]) -> bool {
        u32::from_ne_bytes(client) & u32::from_ne_bytes(self.mask())
            == u32::from_ne_bytes(self.addr)
    }
}

impl Backend6 {
    /// A source range: its network address, and the length of its prefix in the place of the port.
    pub const fn range(addr: [u8; 16], prefix_length: u8) -> Self {
        Self {
            addr,
            port_be: [0, prefix_length],
            pad: [0; 6],
        }
    }

    /// Length of the prefix of a source range.
    #[inline(always)]
    pub const fn prefix_length(&self) -> u8 {
        let [_, length] = self.port_be;
        length
    }

    /// Whether this source range has the client in it.
    #[inline(always)]
    pub const fn admits(&self, client: &[u8; 16]) -> bool {
        // In words, and in two shifts: by 64 at once is none.
        const fn mask(length: u64) -> u64 {
            !(u64::MAX >> (length / 2) >> (length - length / 2))
        }
        let length = self.prefix_length() as u64;
        let high = if length < 64 { length } else { 64 };
        let low = if length < 128 { length - high } else { 64 };
        let (client_high, client_low) = words(client);
        let (addr_high, addr_low) = words(&self.addr);
        client_high & mask(high).to_be() == addr_high && client_low & mask(low).to_be() == addr_low
    }
}

/// The one value of `yurt_conf`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Conf {
    /// Cookie of the node's own network namespace.
    pub node_netns: u64,
    /// `SOCKET_LB_*`.
    pub socket_lb: u32,
    /// Number of entries in `yurt_netns` of the class [`NETNS_OPT_OUT`]; 0 spares the lookup.
    pub netns_rows: u32,
    /// Which of `prefixes` is in force; the other one is written before it is switched.
    pub active_prefixes: u32,
    /// Zero.
    pub pad: u32,
    /// Double buffer.
    pub prefixes: [PrefixSet; 2],
}

/// The prefixes that ClusterIPs come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct PrefixSet {
    /// Valid entries of `v4`.
    pub v4_len: u32,
    /// Valid entries of `v6`.
    pub v6_len: u32,
    /// `PREFIXES_*`.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
    /// IPv4 prefixes.
    pub v4: [Prefix4; MAX_PREFIXES],
    /// IPv6 prefixes.
    pub v6: [Prefix6; MAX_PREFIXES],
}

/// Value of `yurt_revsk`, one for each UDP socket that has dialled a Service: what `recvmsg` and `getpeername` show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct UdpPeers {
    /// Counts sends; orders `used`.
    pub clock: u32,
    /// Counts destinations; the low bits say which entry was filled last.
    pub next: u32,
    /// Destinations.
    pub peers: [UdpPeer; UDP_PEERS],
}

/// One Service address that a UDP socket has sent to. IPv4 addresses are IPv4-mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct UdpPeer {
    /// The address that the client dialled.
    pub vip: [u8; 16],
    /// The backend that it got.
    pub backend: [u8; 16],
    /// The `stamp` of the set in which the backend was last seen.
    pub word: u64,
    /// Port of `vip`.
    pub vip_port_be: [u8; 2],
    /// Port of `backend`.
    pub backend_port_be: [u8; 2],
    /// `clock` of the last send; 0 = not shown any more: the socket has since dialled the backend itself.
    pub used: u32,
}

/// Value of `yurt_peer`, indexed by socket cookie: what `getpeername` shows for a TCP socket. Lossy on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct TcpPeer {
    /// The address that the client dialled; IPv4 addresses are IPv4-mapped.
    pub vip: [u8; 16],
    /// Binds `vip` to the socket's cookie and its real peer, so that torn and foreign entries are told apart.
    pub tag: u64,
    /// Port of `vip`.
    pub vip_port_be: [u8; 2],
    /// Zero.
    pub pad: [u8; 6],
}

/// Where an address is in `yurt_filter`: an address that lacks one of these bits has no row in `yurt_fe4` or
/// `yurt_fe6`.
///
/// Both bits are in one word, so that a reader loads once and a writer stores at once. Which bits they are is part of
/// the layout: programs of an earlier agent go on reading what this one writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterPlace {
    /// Index of the word, below [`FILTER_WORDS`].
    pub word: u32,
    /// Two bits of it, or one.
    pub bits: u64,
}

impl FilterPlace {
    /// Of an IPv4 address, as a number.
    #[inline(always)]
    pub const fn of4(addr: u32) -> Self {
        Self::of(addr as u64)
    }

    /// Of an IPv6 address.
    #[inline(always)]
    pub const fn of6(addr: &[u8; 16]) -> Self {
        let (high, low) = words(addr);
        Self::of(u64::from_be(low) ^ u64::from_be(high).rotate_left(32))
    }

    /// Whether all of it is set in `word`.
    #[inline(always)]
    pub const fn is_in(self, word: u64) -> bool {
        word & self.bits == self.bits
    }

    #[inline(always)]
    const fn of(addr: u64) -> Self {
        // Fibonacci hashing: neighbours, which ClusterIPs are, fall far apart; the best bits are the highest.
        let hash = addr.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            word: (hash >> 52) as u32,
            bits: 1 << (hash >> 46 & 63) | 1 << (hash >> 40 & 63),
        }
    }
}

/// Value of `yurt_netns`, by network namespace cookie: what the hooks must know of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct NetnsRow {
    /// `NETNS_*`.
    pub class: u32,
    /// The Pod's IPv4 address; zero when it has none.
    pub addr4: [u8; 4],
    /// The Pod's IPv6 address; zero when it has none.
    pub addr6: [u8; 16],
}

/// Index into `yurt_count`: a verdict and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// A new flow went to any backend.
    Forward = 0,
    /// Refused: the Service has no endpoint that may take it.
    RefuseNoEndpoint = 1,
    /// Refused: a port that this ClusterIP does not have.
    RefuseUnknownPort = 2,
    /// Refused: an address inside a ServiceCIDR that no Service has.
    RefuseUnallocated = 3,
    /// Refused: the table changed twice under the reader, or holds what it must not.
    RefuseInconsistent = 4,
    /// A datagram kept the backend of an earlier one.
    UdpKept = 5,
    /// Dropped: the policy is Local, and the endpoints that may take it are on other nodes.
    DropNoLocalEndpoint = 6,
    /// Dropped: the client is in none of the source ranges.
    DropSourceRange = 7,
    /// Refused: there are source ranges, and the client's address is not known (yet).
    RefuseUnknownClient = 8,
    /// A new flow went to the backend that its client had.
    AffinityKept = 9,
}

impl Counter {
    /// Whether the client is told that no host is there (`EHOSTUNREACH`), instead of that it is refused.
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        matches!(self, Self::DropNoLocalEndpoint | Self::DropSourceRange)
    }
}

/// Number of counters.
pub const COUNTERS: u32 = COUNTER_NAMES.len() as u32;
/// A name for each counter, as `status` prints it.
pub const COUNTER_NAMES: [&str; 10] = [
    "forward",
    "refuse_no_endpoint",
    "refuse_unknown_port",
    "refuse_unallocated",
    "refuse_inconsistent",
    "udp_kept",
    "drop_no_local_endpoint",
    "drop_source_range",
    "refuse_unknown_client",
    "affinity_kept",
];

const fn mix(value: u64) -> u64 {
    // The finaliser of MurmurHash3, without its last xor-shift.
    let value = (value ^ value >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (value ^ value >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}

impl FrontendKey4 {
    /// 24 bits that bind a value to this key.
    #[inline(always)]
    pub const fn fingerprint(&self) -> u32 {
        let Self {
            addr,
            port_be,
            protocol,
            scope,
        } = *self;
        let rest =
            (u16::from_ne_bytes(port_be) as u64) << 16 | (protocol as u64) << 8 | scope as u64;
        (mix((u32::from_ne_bytes(addr) as u64) << 32 | rest) >> 40) as u32
    }
}

impl FrontendKey6 {
    /// 24 bits that bind a value to this key.
    #[inline(always)]
    pub const fn fingerprint(&self) -> u32 {
        let Self {
            addr,
            port_be,
            protocol,
            scope,
            pad: _,
        } = *self;
        let (high, low) = words(&addr);
        let rest =
            (u16::from_ne_bytes(port_be) as u64) << 16 | (protocol as u64) << 8 | scope as u64;
        (mix(mix(high) ^ mix(low).rotate_left(23) ^ rest) >> 40) as u32
    }
}

impl TcpPeer {
    /// An entry for the socket `cookie`, which dialled `vip` and is connected to `peer`.
    #[inline(always)]
    pub const fn new(cookie: u64, vip: [u8; 16], vip_port_be: [u8; 2], peer: [u8; 16]) -> Self {
        let tag = Self::tag(cookie, &vip, vip_port_be, &peer);
        Self {
            vip,
            tag,
            vip_port_be,
            pad: [0; 6],
        }
    }

    /// Whether this entry was written for `cookie` and `peer`, and whole.
    #[inline(always)]
    pub const fn is_of(&self, cookie: u64, peer: &[u8; 16]) -> bool {
        self.tag == Self::tag(cookie, &self.vip, self.vip_port_be, peer)
    }

    #[inline(always)]
    const fn tag(cookie: u64, vip: &[u8; 16], port_be: [u8; 2], peer: &[u8; 16]) -> u64 {
        let (vip_high, vip_low) = words(vip);
        let (peer_high, peer_low) = words(peer);
        let port = u16::from_ne_bytes(port_be) as u64;
        let vip = mix(vip_low ^ port << 24) ^ vip_high.rotate_left(17);
        // Never 0, which is what an empty entry holds.
        (cookie ^ vip ^ mix(peer_low ^ peer_high.rotate_left(29))) | 1 << 63
    }
}
