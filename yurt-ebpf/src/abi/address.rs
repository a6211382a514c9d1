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

/// An IPv6 address as two words of memory, for comparisons that need no `memcmp`.
pub(crate) type Words = (u64, u64);

/// Those of an address.
#[inline(always)]
pub const fn words(addr: &[u8; 16]) -> Words {
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

/// The same of one that is read from a packet, in words.
#[inline(always)]
pub(crate) const fn mapped_words(addr: u32) -> Words {
    let [a, b, c, d] = addr.to_ne_bytes();
    let low = (0xffff_u64 << 32).to_be() | u64::from_ne_bytes([0, 0, 0, 0, a, b, c, d]);
    (0, low)
}

/// The address of two words.
#[inline(always)]
pub(crate) const fn bytes((high, low): Words) -> [u8; 16] {
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) =
        (high.to_ne_bytes(), low.to_ne_bytes());
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}
