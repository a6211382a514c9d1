//! The programs, and where each belongs.

use yurt_ebpf::abi;

use crate::dataplane::sys::Hook;

/// Programs and attach types (`enum bpf_attach_type`), in the order of attaching: first those for answers, then those
/// for questions.
pub(in crate::dataplane) const ON_CGROUP: [(&str, u32); 8] = [
    ("yurt_recvmsg4", 19),
    ("yurt_recvmsg6", 20),
    ("yurt_getpeer4", 29),
    ("yurt_getpeer6", 30),
    ("yurt_connect4", 10),
    ("yurt_connect6", 11),
    ("yurt_sendmsg4", 14),
    ("yurt_sendmsg6", 15),
];

/// A program on devices: its name, its hook, and a map that it cannot work without.
pub(in crate::dataplane) type DeviceProgram = (&'static str, Hook, &'static str);

pub(in crate::dataplane) const GUARD: DeviceProgram =
    ("yurt_guard_in", Hook::Ingress, "yurt_guard");
pub(in crate::dataplane) const TRANSLATE: [DeviceProgram; 2] = [
    ("yurt_xlate_out", Hook::Egress, "yurt_xlate"),
    ("yurt_xlate_in", Hook::Ingress, "yurt_xlate"),
];
/// The packet path: what comes in by a device that leads outside, and what leaves by it; what a Pod sends, and what
/// goes to it.
pub(in crate::dataplane) const PACKET: [DeviceProgram; 4] = [
    ("yurt_edge_in", Hook::Ingress, "yurt_flows4"),
    ("yurt_edge_out", Hook::Egress, "yurt_flows4"),
    ("yurt_pod_in", Hook::Ingress, "yurt_flows4"),
    ("yurt_pod_out", Hook::Egress, "yurt_flows4"),
];
/// The packet path's programs that others tail-call, and their places in `yurt_edge_more`.
pub(in crate::dataplane) const PACKET_STAGES: [(&str, u32); 9] = [
    ("yurt_edge_new4", abi::STAGE_OPENS4),
    ("yurt_edge_new6", abi::STAGE_OPENS6),
    ("yurt_edge_err_in", abi::STAGE_ERROR_IN),
    ("yurt_edge_err_out", abi::STAGE_ERROR_OUT),
    ("yurt_edge_refuse", abi::STAGE_REFUSES),
    ("yurt_pod_new4", abi::STAGE_POD_OPENS4),
    ("yurt_pod_new6", abi::STAGE_POD_OPENS6),
    ("yurt_edge_fast", abi::STAGE_FAST_IN),
    ("yurt_pod_fast", abi::STAGE_FAST_OUT),
];
/// Those of them that layer-3 devices need: as stages come first, what comes in and what leaves are the last two.
pub(in crate::dataplane) const PACKET_L3: [&str; 7] = [
    PACKET_STAGES[0].0,
    PACKET_STAGES[1].0,
    PACKET_STAGES[2].0,
    PACKET_STAGES[3].0,
    PACKET_STAGES[4].0,
    PACKET[0].0,
    PACKET[1].0,
];
/// All programs on devices.
pub(in crate::dataplane) const ON_DEVICES: [DeviceProgram; 7] = [
    GUARD,
    TRANSLATE[0],
    TRANSLATE[1],
    PACKET[0],
    PACKET[1],
    PACKET[2],
    PACKET[3],
];
