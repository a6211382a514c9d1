//! What the programs say of their decisions, in the object of `cargo xtask build-ebpf --log`. The one that ships has
//! nothing of it.
//!
//! Functions, because a line takes more of a stack than the programs have to spare. A port is read only where it is
//! said.

use yurt_ebpf::abi::{Backend4, Backend6, Counter, Reason, Translation, VtepKey};

/// Says it, or nothing. Values are named in either case, and only computed where they are said.
macro_rules! say {
    ($text:literal $(, $value:expr)*) => {{
        #[cfg(feature = "log")]
        aya_log_ebpf::info!((), $text $(, $value)*);
        #[cfg(not(feature = "log"))]
        let _ = || {
            $(let _ = $value;)*
        };
    }};
}

/// Says a reason, after other values. Each is written out: of a table the verifier would not know where its texts are.
macro_rules! say_why {
    ($which:expr, $text:literal, $values:tt, { $($case:pat => $why:literal),* $(,)? }) => {
        match $which {
            $($case => say_why!($text, $values, $why),)*
        }
    };
    ($text:literal, [$($value:expr),*], $why:literal) => {
        say!($text $(, $value)*, $why)
    };
}

/// Says why a socket is refused, in either family.
macro_rules! say_refused {
    ($text:literal, $values:tt, $reason:expr) => {
        say_why!($reason, $text, $values, {
            Counter::RefuseNoEndpoint => "no endpoint",
            Counter::RefuseUnknownPort => "unknown port",
            Counter::RefuseUnallocated => "unallocated",
            Counter::RefuseInconsistent => "inconsistent",
            Counter::DropNoLocalEndpoint => "no local endpoint",
            Counter::DropSourceRange => "source range",
            Counter::RefuseUnknownClient => "unknown client",
            Counter::Forward => "forward",
            Counter::UdpKept => "udp kept",
            Counter::AffinityKept => "affinity kept",
        })
    };
}

/// A socket that dialled a Service goes to this backend.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(super) fn forward4(addr: [u8; 4], port_be: impl FnOnce() -> [u8; 2], backend: &Backend4) {
    say!(
        "{:i}:{} goes to {:i}:{}",
        addr,
        u16::from_be_bytes(port_be()),
        backend.addr,
        u16::from_be_bytes(backend.port_be)
    );
}

/// See [`forward4`].
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(super) fn forward6(addr: &[u8; 16], port_be: impl FnOnce() -> [u8; 2], backend: &Backend6) {
    say!(
        "[{:i}]:{} goes to [{:i}]:{}",
        *addr,
        u16::from_be_bytes(port_be()),
        backend.addr,
        u16::from_be_bytes(backend.port_be)
    );
}

/// A socket may not reach what it dialled.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(super) fn refused4(addr: [u8; 4], port_be: impl FnOnce() -> [u8; 2], reason: Counter) {
    say_refused!(
        "{:i}:{} is refused: {}",
        [addr, u16::from_be_bytes(port_be())],
        reason
    );
}

/// See [`refused4`].
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(super) fn refused6(addr: &[u8; 16], port_be: impl FnOnce() -> [u8; 2], reason: Counter) {
    say_refused!(
        "[{:i}]:{} is refused: {}",
        [*addr, u16::from_be_bytes(port_be())],
        reason
    );
}

/// A frame claims what is not its sender's.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(super) fn spoofed(ifindex: u32, reason: Reason, is_dropped: bool) {
    say_why!(
        reason, "device {}: wrong frame (dropped: {}): {}", [ifindex, u8::from(is_dropped)], {
        Reason::Mac => "mac",
        Reason::Ipv4 => "ipv4",
        Reason::Ipv6 => "ipv6",
        Reason::LinkLocal => "link_local",
        Reason::Arp => "arp",
        Reason::Nd => "nd",
        Reason::Dhcp => "dhcp",
        Reason::Vlan => "vlan",
        Reason::Malformed => "malformed",
    });
}

/// A packet of a Pod of which something is translated.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(super) fn translated(ifindex: u32, what: Translation) {
    say_why!(
        what, "device {}: translation: {}", [ifindex], {
        Translation::ToPod => "to_pod",
        Translation::FromPod => "from_pod",
        Translation::KeptLive => "kept_live",
        Translation::ToItself => "to_itself",
        Translation::Answered => "answered",
        Translation::Unreadable => "unreadable",
    });
}

/// A peer sends through a tunnel.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(super) fn heard(key: &VtepKey, source: [u8; 6]) {
    say!(
        "peer {:i}, tunnel {}: frame from {:mac}",
        key.underlay,
        key.vni,
        source
    );
}
