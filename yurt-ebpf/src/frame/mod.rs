//! The bytes of a frame: how they are read, and what the numbers in them mean.
//!
//! Pure and `no_std`. One trait for all that look into frames, one parser of IP headers, and the checksums.

pub mod ip;
pub(crate) mod sum;

/// A frame from its Ethernet header on, or a packet from its IP header on.
///
/// Numbers are as they are in memory: compare with constants in network order.
pub trait Frame {
    /// What begins at an offset; `None` where the frame ends before all of it.
    fn far<T: Wire>(&self, at: usize) -> Option<T>;

    /// The same for an offset that is a constant. In the kernel it is next to nothing, and `None` beyond the part of
    /// the frame that a program reaches without a call.
    #[inline(always)]
    fn near<T: Wire>(&self, at: usize) -> Option<T> {
        self.far(at)
    }
}

/// What can be read from a frame.
///
/// # Safety
///
/// Any bytes are a value, and all of its bytes are fields'.
pub unsafe trait Wire: Copy {}

// SAFETY: an integer without padding.
unsafe impl Wire for u8 {}
// SAFETY: as above.
unsafe impl Wire for u16 {}
// SAFETY: as above.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl Wire for u64 {}
// SAFETY: bytes.
unsafe impl<const N: usize> Wire for [u8; N] {}

impl Frame for [u8] {
    fn far<T: Wire>(&self, at: usize) -> Option<T> {
        let bytes = self.get(at..)?.get(..size_of::<T>())?;
        // SAFETY: as many bytes as a `T` has, all of which may be anything; they need no alignment.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

/// Offset of the source link-layer address.
pub(crate) const ETH_SOURCE: usize = 6;
/// Offset of what is inside.
pub(crate) const ETH_TYPE: usize = 12;
/// Length of an Ethernet header without tags.
pub const ETH: usize = 14;

/// `ETH_P_IP`, in network byte order.
pub const ETH_IPV4: u16 = 0x0800_u16.to_be();
/// `ETH_P_IPV6`, in network byte order.
pub const ETH_IPV6: u16 = 0x86dd_u16.to_be();
pub(crate) const ETH_ARP: u16 = 0x0806_u16.to_be();
/// IEEE 802.1Q: a tag, and what is in it.
pub const ETH_VLAN: u16 = 0x8100_u16.to_be();
/// IEEE 802.1ad: the outer one of two.
pub const ETH_SERVICE_VLAN: u16 = 0x88a8_u16.to_be();
