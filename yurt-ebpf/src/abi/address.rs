//! Addresses as they are in the maps, and as numbers that compare in few instructions.

/// A link-layer address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Mac {
    /// Address.
    pub addr: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

/// An IPv4 prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Prefix4 {
    /// Network address.
    pub addr: [u8; 4],
    /// Network mask.
    pub mask: [u8; 4],
}

/// An IPv6 prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Prefix6 {
    /// Network address.
    pub addr: [u8; 16],
    /// Network mask.
    pub mask: [u8; 16],
}

/// The two halves of an address, for comparisons that need no `memcmp`.
#[inline(always)]
pub(crate) const fn words(addr: &[u8; 16]) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
    (
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    )
}

/// `::ffff:a.b.c.d`, the form in which state maps keep IPv4 addresses.
#[inline(always)]
pub const fn mapped(addr: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = addr;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
