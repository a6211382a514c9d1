//! Listens on an underlay to how peers send through vxlan tunnels: a filter of a packet socket that passes nothing on.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::socket_filter;
use aya_ebpf::programs::SkBuffContext;

use yurt_ebpf::frame::{ETH_IPV4, ETH_IPV6};
use yurt_ebpf::vxlan::sender;

use super::say;
use super::skb::Bytes;
use crate::maps::vtep::VTEP;

/// `PACKET_HOST` of `linux/if_packet.h`: the frame is for this node.
const PACKET_HOST: u32 = 0;
/// As the context has them.
const IPV4: u32 = ETH_IPV4 as u32;
const IPV6: u32 = ETH_IPV6 as u32;

/// The packet begins with its network header: the socket is a `SOCK_DGRAM` one. What it returns is how much of the
/// packet the socket gets.
#[socket_filter]
#[inline(always)]
fn yurt_vtep_in(ctx: SkBuffContext) -> i64 {
    listen(&ctx);
    0
}

#[inline(always)]
fn listen(ctx: &SkBuffContext) -> Option<()> {
    let skb: *const __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context is valid while the program runs.
    let (is_host, is_tagged, protocol) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*skb).pkt_type) == PACKET_HOST,
            core::ptr::read_volatile(&raw const (*skb).vlan_present) != 0,
            core::ptr::read_volatile(&raw const (*skb).protocol),
        )
    };
    // What has a tag is for a device on top of this one.
    if !is_host || is_tagged {
        return None;
    }
    let is_v6 = match protocol {
        IPV4 => false,
        IPV6 => true,
        _ => return None,
    };
    let (key, source) = sender(&Bytes(ctx.as_ptr().cast()), is_v6)?;
    say::heard(&key, source);
    let seen = VTEP.get_ptr_mut(key)?;
    // SAFETY: an entry of this CPU; nobody else writes to it but the agent, who begins anew then.
    unsafe { &mut *seen }.note(source);
    None
}
