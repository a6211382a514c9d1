//! The maps of the packet path: flows of clients outside, and the devices that lead there.

use super::address::Words;

/// Version of the maps of the packet path: `yurt_flow4`, `yurt_dgram4`, `yurt_open4` and those of IPv6, `yurt_edge`,
/// `yurt_pk_count`.
///
/// 2: flows of datagrams that are up are in maps of their own.
pub const PACKET_ABI: u32 = 2;

/// Index into `yurt_flows4` and `yurt_flows6` of the connections that are up, and of all that is not UDP: `yurt_flow4`
/// and `yurt_flow6`.
pub const FLOWS_UP: u32 = 0;
/// Index of the flows of datagrams that are up: `yurt_dgram4` and `yurt_dgram6`.
pub const FLOWS_DATAGRAMS: u32 = 1;
/// Index of those that are opening or closed, of any protocol: `yurt_open4` and `yurt_open6`.
pub const FLOWS_OPENING: u32 = 2;
/// How many there are.
pub const FLOW_MAPS: u32 = 3;

/// [`FlowKey::place`]: as the client sends it, to the address that it dialled.
pub const FLOW_DIALLED: u8 = 0;
/// [`FlowKey::place`]: from the client to its backend, whichever way the packet goes.
pub const FLOW_SERVED: u8 = 1;
/// [`FlowKey::place`]: from the backend to this node's address, which stands for the client.
pub const FLOW_MASQUERADED: u8 = 2;
/// [`FlowKey::place`]: fragments of a packet that comes in. The ports are its identification, of IPv4 its first two
/// bytes; `protocol` is 0 for IPv6. [`Flow::to`] is what its destination becomes.
pub const FLOW_PART_ARRIVING: u8 = 3;
/// The same of a packet that leaves. [`Flow::to`] is what its source becomes.
pub const FLOW_PART_LEAVING: u8 = 4;

/// Key of `yurt_flow4`, `yurt_dgram4` and `yurt_open4`, and of those of IPv6: a packet of a flow, at the place where it
/// is looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct FlowKey<A> {
    /// Address that the packet comes from. Under [`FLOW_SERVED`] it is the client's in both directions.
    pub source: A,
    /// Address that it goes to. Under [`FLOW_SERVED`] it is the backend's in both directions.
    pub destination: A,
    /// Port of `source`.
    pub source_port_be: [u8; 2],
    /// Port of `destination`.
    pub destination_port_be: [u8; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// `FLOW_*`.
    pub place: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Key of `yurt_flow4`.
pub type FlowKey4 = FlowKey<[u8; 4]>;
/// Key of `yurt_flow6`.
pub type FlowKey6 = FlowKey<[u8; 16]>;

/// Value of the same: the whole translation at one place, so that a packet costs one lookup and no look into the
/// table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Flow<A> {
    /// What the packet's address becomes. [`FLOW_DIALLED`]: the backend, as destination. [`FLOW_SERVED`]: the address
    /// that the client dialled, as source of answers. [`FLOW_MASQUERADED`]: the client, as destination of answers.
    pub to: A,
    /// [`FLOW_SERVED`]: this node's address, which the backend takes for the client's; zero while there is none.
    pub node: A,
    /// Port of `to`.
    pub to_port_be: [u8; 2],
    /// Port of `node`; zero while there is none.
    pub node_port_be: [u8; 2],
    /// The device that the client's first packet came in by.
    pub ifindex: u32,
    /// Index into `yurt_svc` of the Service that it dialled.
    pub service: u32,
    /// `FLOW_IS_*`.
    pub state: u32,
    /// When a packet was seen last: seconds of `CLOCK_MONOTONIC`.
    pub last_s: u32,
    /// Of TCP: what was acknowledged last by who sends here, which is what the other side sends next. [`FLOW_SERVED`]
    /// of a flow that is opening: what the backend acknowledges to the client's SYN, and once it has, what the client's
    /// first acknowledgement must be.
    pub expected: u32,
}

/// Value of `yurt_flow4`.
pub type Flow4 = Flow<[u8; 4]>;
/// Value of `yurt_flow6`.
pub type Flow6 = Flow<[u8; 16]>;

/// [`Flow::state`]: the backend has answered.
pub const FLOW_IS_ANSWERED: u32 = 1;
/// [`Flow::state`]: a FIN of TCP was seen here. Who has sent it may still be sent to.
pub const FLOW_IS_CLOSING: u32 = 2;
/// [`Flow::state`]: the client is a Pod of this node. It is seen by its own address wherever the backend is, but by
/// itself.
pub const FLOW_IS_INSIDE: u32 = 4;
/// [`Flow::state`]: both sides have sent theirs, or one has reset the connection. All entries of a flow get it at once,
/// and are among those that are opening from then on, for nobody is hurt if they go.
pub const FLOW_IS_CLOSED: u32 = 8;
/// [`Flow::state`]: its packets are led past the stack, in both directions, while that is allowed. Said of the first
/// packet and for good: what remembers connections in the stack has seen all of a flow, or nothing of it.
pub const FLOW_IS_FAST: u32 = 16;

/// A flow without connections is over when it was quiet for so many seconds, as conntrack has it for streams of UDP; so
/// is a connection that nobody has answered.
pub const FLOW_QUIET_S: u32 = 120;
/// A SYN that nobody has answered for so many seconds gives way to others: senders that are not there leave many
/// behind.
pub const FLOW_OPENING_S: u32 = 3;
/// A connection that one side has closed is over when it was quiet for so many seconds, as kube-proxy has it for
/// conntrack (`tcpCloseWaitTimeout`).
pub const FLOW_HALF_CLOSED_S: u32 = 3600;
/// A connection that is closed is over when it was quiet for so many seconds.
pub const FLOW_CLOSED_S: u32 = 10;
/// Fragments follow the first one for so many seconds, as long as hosts wait for all of a packet
/// (`net.ipv4.ipfrag_time`).
pub const FLOW_PART_S: u32 = 30;

/// Entries of `yurt_edge`: more devices that lead outside, and to Pods, than any node has.
pub const EDGES: u32 = 1024;

/// Value of `yurt_edge`, by the index of a device that leads outside or to a Pod: this node's addresses on it, zero
/// where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct EdgeRow {
    /// What backends behind the device take for the address of masqueraded clients.
    pub addr6: [u8; 16],
    /// See `addr6`.
    pub addr4: [u8; 4],
    /// 1 if the device leads to a Pod of this node, else 0.
    pub is_pods: u32,
}

/// Entries of `yurt_near`, a power of two.
pub const NEARS: u32 = 1024;

/// Value of `yurt_near`: an address of a Pod of this node, to which packets are led past the stack. Its place is what
/// its last bytes say, so of two addresses with the same place one is served by the stack.
///
/// `yurt_near_devs` has the device at the same place. The kernel takes it out when the device goes, whoever sees that
/// or not; the row counts only while both name the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct NearRow {
    /// The Pod's address, IPv4-mapped for IPv4.
    pub addr: [u8; 16],
    /// The host's end of its device; 0: there is nobody.
    pub ifindex: u32,
    /// Bytes of the largest packet that the device takes.
    pub mtu: u32,
    /// The link-layer addresses of a frame to the Pod: its own, and who seems to send it.
    pub macs: [u8; 12],
    /// Zero.
    pub pad: [u8; 4],
}

impl NearRow {
    /// The place of an address, IPv4-mapped for IPv4.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the last bytes are wanted")]
    pub const fn place((_, low): Words) -> u32 {
        u64::from_be(low) as u32 & (NEARS - 1)
    }
}

/// Entries of `yurt_edge_more`, the programs that others of the packet path go on with: more than there are.
pub const STAGES: u32 = 16;
/// Index into `yurt_edge_more`: decides on a packet of IPv4 that came in by a device that leads outside, and may open a
/// flow.
///
/// Between a load and the swap on the devices, programs of an earlier agent call those of a later one. So what an index
/// means is part of the ABI: the packet is as it came in, and the program relies on nothing that the caller has found
/// out of it.
pub const STAGE_OPENS4: u32 = 0;
/// The same for IPv6.
pub const STAGE_OPENS6: u32 = 1;
/// Translates an ICMP error that came in by a device that leads outside.
pub const STAGE_ERROR_IN: u32 = 2;
/// Translates an ICMP error that leaves by such a device.
pub const STAGE_ERROR_OUT: u32 = 3;
/// Answers a packet that is refused, and is counted already, where it came from.
pub const STAGE_REFUSES: u32 = 4;
/// Leads a packet of a flow, which has its backend's address by now, to a Pod of this node past the stack. It relies on
/// what its caller has looked up; an earlier agent's programs do not call it.
pub const STAGE_FAST_IN: u32 = 5;
/// Leads what a Pod of this node answers out of the node past the stack, before it is changed.
pub const STAGE_FAST_OUT: u32 = 6;
/// [`STAGE_OPENS4`] for a packet that came in from a Pod of this node.
pub const STAGE_POD_OPENS4: u32 = 8;
/// The same for IPv6.
pub const STAGE_POD_OPENS6: u32 = 9;

/// Index into `yurt_pk_count`: what was done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Handled {
    /// The first one of a flow, and led to a backend.
    NewFlow = 0,
    /// A further one, and led to its backend.
    ToBackend = 1,
    /// An answer, and led to appear with the address that the client dialled.
    ToClient = 2,
    /// Refused: the Service has no endpoint that may take it.
    RefuseNoEndpoint = 3,
    /// Refused: a port that this ClusterIP does not have.
    RefuseUnknownPort = 4,
    /// Refused: an address inside a ServiceCIDR that no Service has.
    RefuseUnallocated = 5,
    /// Dropped: the table changed twice under the reader, or holds what it must not.
    DropInconsistent = 6,
    /// Dropped: the policy is Local, and the endpoints that may take it are on other nodes.
    DropNoLocalEndpoint = 7,
    /// Dropped: the client is in none of the source ranges.
    DropSourceRange = 8,
    /// Dropped: a packet from outside to a loopback address (CVE-2020-8558).
    DropLoopback = 9,
    /// Dropped: the client has another flow to each of the backends that were tried, from the same port.
    DropClash = 10,
    /// Dropped: no port was free to masquerade with, or no address.
    DropNoPort = 11,
    /// Dropped: the packet could not be changed.
    DropUnchanged = 12,
    /// Dropped: the program that decides on first packets is not there. The agent that is started next puts it in its
    /// place.
    DropNoProgram = 13,
    /// Dropped: a VLAN tag behind none, or behind a priority alone: the kernel would deliver what is in it, past all
    /// programs.
    DropTag = 14,
    /// Of those that are led to their backend: past the stack.
    FastToBackend = 15,
    /// Of those that are led to appear with the address that the client dialled: past the stack.
    FastToClient = 16,
}

impl Handled {
    /// Whether whoever sent the packet is told.
    #[inline(always)]
    pub const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::RefuseNoEndpoint | Self::RefuseUnknownPort | Self::RefuseUnallocated
        )
    }
}

/// Entries of `yurt_pk_count`: a power of two, so that a number is masked into it.
pub const HANDLED: u32 = 32;
/// A name for each, as `status` prints it.
pub const HANDLED_NAMES: [&str; 17] = [
    "new_flow",
    "to_backend",
    "to_client",
    "refuse_no_endpoint",
    "refuse_unknown_port",
    "refuse_unallocated",
    "drop_inconsistent",
    "drop_no_local_endpoint",
    "drop_source_range",
    "drop_loopback",
    "drop_clash",
    "drop_no_port",
    "drop_unchanged",
    "drop_no_program",
    "drop_tag",
    "fast_to_backend",
    "fast_to_client",
];
