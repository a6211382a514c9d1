//! What the kernel has of a frame, read and changed by its helpers: they know whether a checksum is whole or left to
//! the device, and make what is shared with other packets this one's own.
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets in packets are small"
)]

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};

use yurt_ebpf::frame::{Frame, Wire};
use yurt_ebpf::rewrite::refusal::Resize;
use yurt_ebpf::rewrite::{Follow, Packet};

/// `BPF_F_IPV6`, which the bindings lack: the IPv6 header has no checksum that would balance what changes in it. Older
/// kernels refuse it, and get the sum of a packet wrong that a device has summed up; such a packet does not come out of
/// a bridge or a router.
const BPF_F_IPV6: u64 = 1 << 7;

/// A frame, or a packet, wherever its bytes are.
#[derive(Clone, Copy)]
pub(super) struct Bytes(pub(super) *mut __sk_buff);

impl Frame for Bytes {
    #[inline(always)]
    fn far<T: Wire>(&self, at: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let (to, length) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
        // SAFETY: `value` is valid for writes of its length; the helper checks the offset.
        let result = unsafe { bpf_skb_load_bytes(self.0.cast(), at as u32, to, length) };
        // SAFETY: the helper has written all of it, and any bytes are a `T`.
        (result == 0).then(|| unsafe { value.assume_init() })
    }
}

/// `BPF_ADJ_ROOM_MAC`: between the link-layer header and the packet.
const BEHIND_MAC: u32 = 1;

/// A frame in the kernel.
pub(super) struct Skb {
    pub(super) skb: *mut __sk_buff,
    pub(super) ifindex: u32,
    pub(super) is_v6: bool,
    /// So much of an Ethernet header its device does not have: packets of layer-3 devices begin with the IP header.
    /// Offsets count as if it were there.
    pub(super) missing: u32,
}

impl Skb {
    #[inline(always)]
    fn offset(&self, at: usize) -> u32 {
        (at as u32).wrapping_sub(self.missing)
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn far<T: Wire>(&self, at: usize) -> Option<T> {
        Bytes(self.skb).far(self.offset(at) as usize)
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn has_link_header(&self) -> bool {
        self.missing == 0
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, at: usize, to: [u8; N], is_summed: bool) -> Option<()> {
        let flags = if is_summed {
            0
        } else {
            u64::from(BPF_F_RECOMPUTE_CSUM)
        };
        // SAFETY: `to` is valid for reads of its length; the helper checks the offset.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.skb,
                self.offset(at),
                to.as_ptr().cast(),
                N as u32,
                flags,
            )
        };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn follow_header(&mut self, at: usize, change: u32) -> Option<()> {
        // SAFETY: the context is valid; the helper checks the offset.
        let result =
            unsafe { bpf_l3_csum_replace(self.skb, self.offset(at), 0, u64::from(change), 0) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn follow(&mut self, at: usize, change: u32, how: Follow) -> Option<()> {
        let flags = match how {
            Follow::Addresses => u64::from(BPF_F_PSEUDO_HDR),
            Follow::AddressesOfUdp => u64::from(BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0),
            Follow::Bytes => 0,
            Follow::BytesOfUdp => u64::from(BPF_F_MARK_MANGLED_0),
        };
        // SAFETY: the context is valid; the helper checks the offset.
        let replace = |flags| unsafe {
            bpf_l4_csum_replace(self.skb, self.offset(at), 0, u64::from(change), flags)
        };
        let mut result = -1;
        if self.is_v6 && flags & u64::from(BPF_F_PSEUDO_HDR) != 0 {
            result = replace(flags | BPF_F_IPV6);
        }
        if result != 0 {
            result = replace(flags);
        }
        (result == 0).then_some(())
    }
}

impl Resize for Skb {
    #[inline(always)]
    fn set_length(&mut self, length: usize) -> Option<()> {
        // SAFETY: the context is valid; nobody holds on to where its data was.
        let result = unsafe { bpf_skb_change_tail(self.skb, self.offset(length), 0) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn make_room(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: as above.
        let result = unsafe { bpf_skb_adjust_room(self.skb, bytes as i32, BEHIND_MAC, 0) };
        (result == 0).then_some(())
    }
}

impl Skb {
    /// Sends it out of its own device, or with `BPF_F_INGRESS` has it come in there.
    #[inline(always)]
    pub(super) fn redirect(&self, flags: u64) -> i32 {
        // SAFETY: a call without pointers.
        unsafe { bpf_redirect(self.ifindex, flags) as i32 }
    }
}
