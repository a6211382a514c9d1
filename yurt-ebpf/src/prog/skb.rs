//! What the kernel has of a frame, read by its helper.
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets in packets are small"
)]

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;

use yurt_ebpf::frame::{Frame, Wire};

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
