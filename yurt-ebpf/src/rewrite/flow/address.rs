//! Addresses of one family: how they are in packets and maps, and what the table says of them. What is decided of
//! packets is written once, for both families.

use crate::abi::{
    Backend4, Backend6, FrontendKey4, FrontendKey6, NetnsRow, PublishWord, SCOPE_INTERNAL, Words,
    bytes, mapped_words, words,
};
use crate::frame::Wire;
use crate::rewrite::tail4;
use crate::select::{
    Dialer, Resolved, Tables, contains4, contains6, outside4, outside6, resolve4, resolve6,
};

/// An address of one family, as it is in maps.
pub trait Address: Copy + PartialEq + Wire {
    /// Which family.
    const IS_V6: bool;
    /// Of a packet.
    fn of(words: Words) -> Self;
    /// As it is in a packet.
    fn words(self) -> Words;
    /// Whether it is this machine itself, wherever that is.
    fn is_loopback(self) -> bool;
    /// Whether it is of the link: no Service is there, whatever an object says.
    fn is_of_the_link(self) -> bool;
    /// Whether it is any address at all.
    fn is_some(self) -> bool;
    /// A client by its address: its sockets are not known here, see [`AffinityKey::netns`](crate::abi::AffinityKey).
    fn client(self) -> (NetnsRow, u64);
    /// What the table says of this frontend for Pods of this node, or for clients outside.
    fn resolve<const IS_INSIDE: bool, T: Tables, D: Dialer>(
        self,
        tables: &T,
        dialer: &D,
        port_be: [u8; 2],
        protocol: u8,
    ) -> Resolved;
    /// A backend of the table.
    type Backend: Copy;
    /// Its address and port.
    fn of_backend(backend: &Self::Backend) -> (Self, [u8; 2]);
    /// The other way round.
    fn backend(self, port_be: [u8; 2]) -> Self::Backend;
    /// Reads one; false where there is none.
    fn read<T: Tables>(tables: &T, slot: u32, backend: &mut Self::Backend) -> bool;
    /// Whether a backend is in a set.
    fn is_in<T: Tables>(tables: &T, word: PublishWord, backend: &Self::Backend) -> bool;
}

impl Address for [u8; 4] {
    const IS_V6: bool = false;
    type Backend = Backend4;

    #[inline(always)]
    fn of(words: Words) -> Self {
        tail4(words)
    }

    #[inline(always)]
    fn words(self) -> Words {
        mapped_words(u32::from_ne_bytes(self))
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self[0] == 127
    }

    #[inline(always)]
    fn is_of_the_link(self) -> bool {
        u32::from_be_bytes(self) >> 16 == 0xa9fe
    }

    #[inline(always)]
    fn is_some(self) -> bool {
        u32::from_ne_bytes(self) != 0
    }

    #[inline(always)]
    fn client(self) -> (NetnsRow, u64) {
        let row = NetnsRow {
            addr4: self,
            ..NetnsRow::default()
        };
        (row, BY_ADDRESS | u64::from(u32::from_ne_bytes(self)))
    }

    #[inline(always)]
    fn resolve<const IS_INSIDE: bool, T: Tables, D: Dialer>(
        self,
        tables: &T,
        dialer: &D,
        port_be: [u8; 2],
        protocol: u8,
    ) -> Resolved {
        let key = FrontendKey4 {
            addr: self,
            port_be,
            protocol,
            scope: SCOPE_INTERNAL,
        };
        match IS_INSIDE {
            true => resolve4(tables, dialer, &key),
            false => outside4(tables, dialer, &key),
        }
    }

    #[inline(always)]
    fn of_backend(backend: &Self::Backend) -> (Self, [u8; 2]) {
        (backend.addr, backend.port_be)
    }

    #[inline(always)]
    fn backend(self, port_be: [u8; 2]) -> Self::Backend {
        Backend4 {
            addr: self,
            port_be,
            pad: [0; 2],
        }
    }

    #[inline(always)]
    fn read<T: Tables>(tables: &T, slot: u32, backend: &mut Self::Backend) -> bool {
        match tables.backend4(slot) {
            Some(found) => {
                *backend = found;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn is_in<T: Tables>(tables: &T, word: PublishWord, backend: &Self::Backend) -> bool {
        contains4(tables, word, backend)
    }
}

impl Address for [u8; 16] {
    const IS_V6: bool = true;
    type Backend = Backend6;

    #[inline(always)]
    fn of(words: Words) -> Self {
        bytes(words)
    }

    #[inline(always)]
    fn words(self) -> Words {
        words(&self)
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        words(&self) == (0, 1_u64.to_be())
    }

    #[inline(always)]
    fn is_of_the_link(self) -> bool {
        let (high, _) = words(&self);
        u64::from_be(high) >> 54 == 0xfe80 >> 6
    }

    #[inline(always)]
    fn is_some(self) -> bool {
        words(&self) != (0, 0)
    }

    #[inline(always)]
    fn client(self) -> (NetnsRow, u64) {
        let row = NetnsRow {
            addr6: self,
            ..NetnsRow::default()
        };
        let (high, low) = words(&self);
        let hash =
            (high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low).wrapping_mul(0xff51_afd7_ed55_8ccd);
        (row, BY_ADDRESS | hash >> 1)
    }

    #[inline(always)]
    fn resolve<const IS_INSIDE: bool, T: Tables, D: Dialer>(
        self,
        tables: &T,
        dialer: &D,
        port_be: [u8; 2],
        protocol: u8,
    ) -> Resolved {
        let key = FrontendKey6 {
            addr: self,
            port_be,
            protocol,
            scope: SCOPE_INTERNAL,
            pad: [0; 4],
        };
        match IS_INSIDE {
            true => resolve6(tables, dialer, &key),
            false => outside6(tables, dialer, &key),
        }
    }

    #[inline(always)]
    fn of_backend(backend: &Self::Backend) -> (Self, [u8; 2]) {
        (backend.addr, backend.port_be)
    }

    #[inline(always)]
    fn backend(self, port_be: [u8; 2]) -> Self::Backend {
        Backend6 {
            addr: self,
            port_be,
            pad: [0; 6],
        }
    }

    #[inline(always)]
    fn read<T: Tables>(tables: &T, slot: u32, backend: &mut Self::Backend) -> bool {
        match tables.backend6(slot) {
            Some(found) => {
                *backend = found;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn is_in<T: Tables>(tables: &T, word: PublishWord, backend: &Self::Backend) -> bool {
        contains6(tables, word, backend)
    }
}

/// Clients known by their address among those of affinity: no cookie of a network namespace has this bit.
const BY_ADDRESS: u64 = 1 << 63;
