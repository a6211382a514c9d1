//! The layout of every map: the contract between the programs, the agent, and pins of earlier agents.
//!
//! Pure. Rules: fixed-size integers and byte arrays only; padding is explicit and zero (hash keys compare it);
//! addresses are byte arrays in network order; fields in network byte order end in `_be`, all others are native;
//! object names have at most 15 bytes (`BPF_OBJ_NAME_LEN` is 16 with the NUL). A change of layout of a table map
//! bumps [`TABLE_ABI`], of a state map [`STATE_ABI`], of the guard's [`GUARD_ABI`], of translation's [`TRANSLATE_ABI`],
//! of the packet path's [`PACKET_ABI`]: the numbers are part of the pin paths.

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;

mod address;
mod affinity;
mod event;
mod flow;
mod guard;
mod refusal;
mod service;
mod translate;
mod vtep;

pub use self::address::{Mac, Prefix4, Prefix6, mapped, words};
pub(crate) use self::address::{Words, bytes, mapped_words};
pub use self::affinity::{Affinity, Affinity4, Affinity6, AffinityKey, LastBackend};
pub use self::event::{
    EVENT_FORM, EVENT_OF_PACKET, EVENT_OF_SOCKET, EVENT_RING_BYTES, EVENT_SHARES, Event, EventShare,
};
pub use self::flow::{
    EDGES, EdgeRow, FLOW_CLOSED_S, FLOW_DIALLED, FLOW_HALF_CLOSED_S, FLOW_IS_ANSWERED,
    FLOW_IS_CLOSED, FLOW_IS_CLOSING, FLOW_IS_FAST, FLOW_IS_INSIDE, FLOW_MAPS, FLOW_MASQUERADED,
    FLOW_OPENING_S, FLOW_PART_ARRIVING, FLOW_PART_LEAVING, FLOW_PART_S, FLOW_QUIET_S, FLOW_SERVED,
    FLOWS_DATAGRAMS, FLOWS_OPENING, FLOWS_UP, Flow, Flow4, Flow6, FlowKey, FlowKey4, FlowKey6,
    HANDLED, HANDLED_NAMES, Handled, NEARS, NearRow, PACKET_ABI, STAGE_ERROR_IN, STAGE_ERROR_OUT,
    STAGE_FAST_IN, STAGE_FAST_OUT, STAGE_OPENS4, STAGE_OPENS6, STAGE_POD_OPENS4, STAGE_POD_OPENS6,
    STAGE_REFUSES, STAGES,
};
pub use self::guard::{
    GUARD_ABI, GUARD_AUDIT, GUARD_ENFORCE, GUARD_MACS, GUARD_PLAIN, GUARD_PREFIXES, GuardRow,
    OwnerRow, PlainRow, REASON_NAMES, REASON_PLACES, Reason, SpoofCounts,
};
pub use self::refusal::{REFUSED_HOSTS, Refused};
pub use self::service::{
    Backend4, Backend6, COUNTER_NAMES, COUNTERS, Conf, Counter, FILTER_WORDS, FRONTEND_NODE_ONLY,
    FRONTEND_ON_NODE, FRONTEND_OUTSIDE, FRONTEND_OUTSIDE_APART, FilterPlace, FrontendKey4,
    FrontendKey6, FrontendValue, MAX_PREFIXES, NETNS_OPT_OUT, NetnsRow, OWN_SOCKET_PRIORITY,
    PREFIXES_ARE_SERVICE_CIDRS, PrefixSet, PublishWord, SCOPE_ADDRESS, SCOPE_EXTERNAL,
    SCOPE_INTERNAL, SOCKET_LB_ALL, SOCKET_LB_HOST, SOCKET_LB_OFF, STATE_ABI, ServiceRow, TABLE_ABI,
    TcpPeer, UDP_PEERS, UdpPeer, UdpPeers,
};
pub use self::translate::{
    LIVE_FLOW, LIVE_FLOWS, LIVE_FRAGMENTS, LIVE_QUIET_NS, LIVE_STEP_NS, LiveFlow, LiveKey,
    TRANSLATE_ABI, TRANSLATION_NAMES, TRANSLATIONS, TranslateRow, Translation,
};
pub use self::vtep::{VTEP_PEERS, VtepKey, VtepSeen};

macro_rules! pods {
    ($($(#[$doc:meta])* $type:ident: $size:literal { $($field:ident),* })*) => {
        $(const _: () = assert!(size_of::<$type>() == $size);)*
        $(
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: `repr(C)`, integers and byte arrays only, and the fields fill the size: no implicit padding.
            unsafe impl aya::Pod for $type {}
        )*

        /// Every type that is in a map, field by field, as text: what a change of the ABI changes.
        #[cfg(not(target_arch = "bpf"))]
        pub fn layout() -> alloc::string::String {
            use core::fmt::Write as _;
            let mut text = alloc::format!("table ABI {TABLE_ABI}, state ABI {STATE_ABI}, guard ABI {GUARD_ABI}, translate ABI {TRANSLATE_ABI}, packet ABI {PACKET_ABI}\n");
            $(
                let _ = writeln!(text, "\n{}: {} bytes", stringify!($type), size_of::<$type>());
                $(
                    let size = size_of_field(|value: &$type| &value.$field);
                    let offset = core::mem::offset_of!($type, $field);
                    let _ = writeln!(text, "  {offset:4} {size:4} {}", stringify!($field));
                )*
            )*
            text
        }

        #[cfg(test)]
        mod layout_tests {
            #[test]
            fn fields_fill_every_type_so_that_no_padding_is_left_to_chance() {
                $(
                    let fields = 0 $(+ super::size_of_field(|value: &super::$type| &value.$field))*;
                    assert_eq!(fields, size_of::<super::$type>(), stringify!($type));
                )*
            }
        }
    };
}

#[cfg(not(target_arch = "bpf"))]
const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

pods! {
    FrontendKey4: 8 { addr, port_be, protocol, scope }
    FrontendKey6: 24 { addr, port_be, protocol, scope, pad }
    ServiceRow: 16 { word, affinity }
    Backend4: 8 { addr, port_be, pad }
    Backend6: 24 { addr, port_be, pad }
    AffinityKey: 16 { netns, identity }
    Affinity4: 16 { backend, last_ns }
    Affinity6: 32 { backend, last_ns }
    Conf: 1336 { node_netns, socket_lb, netns_rows, active_prefixes, pad, prefixes }
    PrefixSet: 656 { v4_len, v6_len, flags, pad, v4, v6 }
    Prefix4: 8 { addr, mask }
    Prefix6: 32 { addr, mask }
    UdpPeers: 392 { clock, next, peers }
    UdpPeer: 48 { vip, backend, word, vip_port_be, backend_port_be, used }
    TcpPeer: 32 { vip, tag, vip_port_be, pad }
    NetnsRow: 24 { class, addr4, addr6 }
    Event: 80 { at_ns, netns, client, dialled, comm, pid, ifindex, client_port_be, dialled_port_be, form, path, reason, protocol }
    EventShare: 16 { window, count, lost }
    GuardRow: 376 { mode, macs_len, v4_own, v4_len, v6_own, v6_len, macs, v4, v6 }
    PlainRow: 32 { ifindex, v4, mac, v6 }
    Mac: 8 { addr, pad }
    OwnerRow: 8 { ifindex, mode }
    SpoofCounts: 256 { audited, dropped }
    TranslateRow: 48 { live4, promised4, live6, promised6, mac }
    LiveKey: 40 { live, remote, remote_port_be, local_port_be, protocol, kind, pad }
    LiveFlow: 8 { last_ns }
    FlowKey4: 16 { source, destination, source_port_be, destination_port_be, protocol, place, pad }
    FlowKey6: 40 { source, destination, source_port_be, destination_port_be, protocol, place, pad }
    Flow4: 32 { to, node, to_port_be, node_port_be, ifindex, service, state, last_s, expected }
    Flow6: 56 { to, node, to_port_be, node_port_be, ifindex, service, state, last_s, expected }
    Refused: 8 { second, count }
    EdgeRow: 24 { addr6, addr4, is_pods }
    NearRow: 40 { addr, ifindex, mtu, macs, pad }
    VtepKey: 24 { underlay, vni, port_be, pad }
    VtepSeen: 40 { known, other, known_frames, other_frames, others }
}
