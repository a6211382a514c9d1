//! Answers to whoever asks where a promised address is.

use crate::frame::ip::{ICMPV6, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};
use crate::frame::sum::{fold, sum_of};
use crate::frame::{ETH_ARP, ETH_IPV6};

/// Length of an ARP message in its frame.
pub(super) const ARP_FRAME: usize = 42;
/// Length of a solicitation in its frame, as far as it is looked at.
pub(super) const SOLICITATION_FRAME: usize = 78;
/// Length of an advertisement with its one option in its frame.
pub const ADVERTISEMENT_FRAME: usize = 86;

const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// The one who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Any other host. One that wants the address for itself is told as well that it is taken.
    Anybody,
    /// The Pod itself, which may well make the address its own.
    Itself,
}

/// The answer to an ARP request for an address; `None` where the frame is no such request.
#[inline(always)]
pub fn arp(
    request: &[u8; ARP_FRAME],
    address: [u8; 4],
    mac: [u8; 6],
    asker: Asker,
) -> Option<[u8; ARP_FRAME]> {
    let head: [u8; 6] = slice(request, 14);
    let operation: [u8; 2] = slice(request, 20);
    let (their_mac, their_address): ([u8; 6], [u8; 4]) = (slice(request, 22), slice(request, 28));
    let target: [u8; 4] = slice(request, 38);
    if head != ARP_ETHERNET_IPV4 || operation != ARP_REQUEST || target != address {
        return None;
    }
    if asker == Asker::Itself && their_address == [0; 4] {
        return None;
    }
    let mut answer = *request;
    put(&mut answer, 0, their_mac);
    put(&mut answer, 6, mac);
    put(&mut answer, 12, ETH_ARP.to_ne_bytes());
    put(&mut answer, 20, [0, 2]);
    put(&mut answer, 22, mac);
    put(&mut answer, 28, address);
    put(&mut answer, 32, their_mac);
    put(&mut answer, 38, their_address);
    Some(answer)
}

/// The answer to a neighbour solicitation for an address; `None` where the frame is no such solicitation.
#[inline(always)]
pub fn neighbour(
    request: &[u8; SOLICITATION_FRAME],
    address: &[u8; 16],
    mac: [u8; 6],
    asker: Asker,
) -> Option<[u8; ADVERTISEMENT_FRAME]> {
    let address = *address;
    let (hop_limit, next) = (request[21], request[20]);
    let (kind, code): (u8, u8) = (request[54], request[55]);
    let (their_mac, their_address): ([u8; 6], [u8; 16]) = (slice(request, 6), slice(request, 22));
    let target: [u8; 16] = slice(request, 62);
    // From beyond the link nobody may ask (RFC 4861, 7.1.1).
    let is_asked =
        next == ICMPV6 && hop_limit == 255 && kind == NEIGHBOUR_SOLICITATION && code == 0;
    if !is_asked || target != address {
        return None;
    }
    // From no address, it means: this is to be mine. Everybody is told.
    let is_wanted = their_address == [0; 16];
    if asker == Asker::Itself && is_wanted {
        return None;
    }
    let (to_mac, to, flags) = if is_wanted {
        (ALL_NODES_MAC, ALL_NODES, 0x20)
    } else {
        (their_mac, their_address, 0x60)
    };
    let mut answer = [0; ADVERTISEMENT_FRAME];
    put(&mut answer, 0, to_mac);
    put(&mut answer, 6, mac);
    put(&mut answer, 12, ETH_IPV6.to_ne_bytes());
    put(&mut answer, 14, [0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    put(&mut answer, 22, address);
    put(&mut answer, 38, to);
    put(
        &mut answer,
        54,
        [NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0],
    );
    put(&mut answer, 62, address);
    // The target's link-layer address.
    put(&mut answer, 78, [2, 1]);
    put(&mut answer, 80, mac);
    // Addresses, length, protocol, message.
    let pseudo = [0, 32, 0, ICMPV6];
    let message: [u8; 32] = slice(&answer, 54);
    let sum = sum_of(&address) + sum_of(&to) + sum_of(&pseudo) + sum_of(&message);
    put(&mut answer, 56, (!fold(sum)).to_ne_bytes());
    Some(answer)
}

/// Both lengths are constants, and so is the offset: the compiler sees that it never fails.
#[inline(always)]
fn slice<const N: usize, const M: usize>(from: &[u8; N], at: usize) -> [u8; M] {
    let mut to = [0; M];
    to.copy_from_slice(&from[at..at + M]);
    to
}

#[inline(always)]
fn put<const N: usize, const M: usize>(into: &mut [u8; N], at: usize, bytes: [u8; M]) {
    into[at..at + M].copy_from_slice(&bytes);
}
