//! Which addresses have rows: a connect asks this filter before it looks into the hash.

use std::net::IpAddr;

use yurt_ebpf::abi::{FILTER_WORDS, FilterPlace};

/// The words of `yurt_filter`. An address that is not in it has no row; one that is in it may have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Box<[u64]>);

impl Default for Filter {
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

/// The words of the map. Words beyond its end are dropped; missing ones are zero.
impl From<Vec<u64>> for Filter {
    fn from(mut words: Vec<u64>) -> Self {
        words.resize(FILTER_WORDS as usize, 0);
        Self(words.into_boxed_slice())
    }
}

impl Filter {
    /// Lets an address through.
    pub(super) fn insert(&mut self, address: IpAddr) {
        let place = place(address);
        self.0[place.word as usize] |= place.bits;
    }

    /// Whether rows of an address are seen.
    #[cfg(test)]
    pub(crate) fn lets_through(&self, address: IpAddr) -> bool {
        let place = place(address);
        place.is_in(self.0[place.word as usize])
    }

    /// The words of `new` that differ from these, with their index.
    pub(super) fn changes(&self, new: &Self) -> Vec<(u32, u64)> {
        if self == new {
            return Vec::new();
        }
        let words = (0u32..).zip(std::iter::zip(&self.0, &new.0));
        let changed = words.filter_map(|(index, (old, new))| (old != new).then_some((index, *new)));
        changed.collect()
    }
}

fn place(address: IpAddr) -> FilterPlace {
    match address {
        IpAddr::V4(address) => FilterPlace::of4(address.to_bits()),
        IpAddr::V6(address) => FilterPlace::of6(&address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_is_let_through_and_changes_say_which_words_differ() {
        let (empty, mut filter) = (Filter::default(), Filter::default());
        let addresses: [IpAddr; 3] =
            ["10.96.0.10", "fd00::10", "127.0.0.1"].map(|text| text.parse().unwrap());
        for address in addresses {
            assert!(!empty.lets_through(address));
            filter.insert(address);
            assert!(filter.lets_through(address));
        }
        let changes = empty.changes(&filter);
        assert_eq!(changes.len(), 3);
        assert!(changes.iter().all(|(_, word)| word.count_ones() <= 2));
        assert_eq!(filter.changes(&filter), []);
    }
}
