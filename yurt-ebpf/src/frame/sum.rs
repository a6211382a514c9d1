//! Sums of the Internet's checksum (RFC 1071), of words as they are in memory: the order of bytes does not matter to
//! them.

#![expect(
    clippy::cast_possible_truncation,
    reason = "folded into what it is cut to"
)]

use crate::abi::Words;

/// The change of a sum when some words replace others, for [`adjust`].
#[inline(always)]
pub(crate) fn change((from_high, from_low): Words, (to_high, to_low): Words) -> u32 {
    let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
    // The words that go are added as their complement.
    let sum = halves(!from_high) + halves(!from_low) + halves(to_high) + halves(to_low);
    let sum = halves(sum);
    halves(sum) as u32
}

/// The change of a sum when a checksum inside changes.
#[inline(always)]
pub(crate) fn change_of_sum(from: [u8; 2], to: [u8; 2]) -> u32 {
    u32::from(!u16::from_ne_bytes(from)) + u32::from(u16::from_ne_bytes(to))
}

/// Adds two changes up.
#[inline(always)]
pub(crate) fn both(a: u32, b: u32) -> u32 {
    let sum = u64::from(a) + u64::from(b);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

/// A checksum after a change (RFC 1624).
#[inline(always)]
pub(crate) fn adjust(sum: [u8; 2], change: u32) -> [u8; 2] {
    let without = u64::from(!u16::from_ne_bytes(sum));
    (!fold(without + u64::from(change))).to_ne_bytes()
}

/// A sum in 16 bits.
#[inline(always)]
pub(crate) fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of an even number of bytes.
#[inline(always)]
pub(crate) fn sum_of<const N: usize>(bytes: &[u8; N]) -> u64 {
    let mut sum = 0;
    let mut at = 0;
    while at + 1 < N {
        sum += u64::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        at += 2;
    }
    sum
}
