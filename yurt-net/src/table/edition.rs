//! Decides which of two states of the sources' word is newer, whatever the clock says. Pure.
//!
//! The kernel's maps and the checkpoint each carry an edition. After a reboot the clock of a node may say 1970, and any
//! time later, so times are not compared. Instead editions are counted, and the count goes on from the newest known
//! one. Decision 22 has the alternatives.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The edition of one state of the sources' word, among those that one node has heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct Edition {
    /// The series that it belongs to; 0: unknown.
    series: u64,
    /// How many editions of the series came before it.
    number: u64,
}

impl Edition {
    /// The first edition of a new series, whose number no other series has.
    pub fn first(series: u64) -> Self {
        Self {
            series: series.max(1),
            number: 0,
        }
    }

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self {
            number: self.number.saturating_add(1),
            ..self
        }
    }

    /// Whether a series is known.
    fn is_known(self) -> bool {
        self.series != 0
    }

    /// Whether this edition is certainly not older than the other one: both are known, and of one series.
    pub fn may_replace(self, other: Self) -> bool {
        self.is_known() && self.series == other.series && self.number >= other.number
    }

    /// The edition to go on from, by the maps in use and the checkpoint; `series` is for a node that has neither.
    pub fn resume(maps: Option<Self>, checkpoint: Option<Self>, series: u64) -> Self {
        let known = |edition: &Self| edition.is_known();
        match (maps.filter(known), checkpoint.filter(known)) {
            (Some(maps), Some(checkpoint)) if checkpoint.may_replace(maps) => checkpoint,
            // The maps are in force, so they count.
            (Some(edition), _) | (None, Some(edition)) => edition,
            (None, None) => Self::first(series),
        }
    }
}

/// The source of a state, as a hash of its name: it is only compared, never shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SaidBy(u64);

impl SaidBy {
    /// An unknown source.
    pub const UNKNOWN: Self = Self(0);

    /// The source of this name.
    pub fn of(name: &str) -> Self {
        // FNV-1a, because every version of the agent must compute the same hash; never 0.
        let add = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, add) | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edition(series: u64, number: u64) -> Edition {
        Edition { series, number }
    }

    #[test]
    fn only_an_edition_of_the_same_series_that_is_not_older_may_replace_another() {
        let maps = edition(7, 5);
        for (checkpoint, may) in [
            (edition(7, 4), false),
            (edition(7, 5), true),
            (edition(7, 6), true),
            (edition(8, 6), false),
            (Edition::default(), false),
        ] {
            assert_eq!(checkpoint.may_replace(maps), may, "{checkpoint:?}");
        }
        assert!(!edition(7, 6).may_replace(Edition::default()));
        assert!(!Edition::default().may_replace(Edition::default()));
    }

    #[test]
    fn a_count_goes_on_where_the_newest_known_edition_left_it() {
        let none = Some(Edition::default());
        for (maps, checkpoint, expected) in [
            (Some(edition(7, 5)), Some(edition(7, 4)), edition(7, 5)),
            (Some(edition(7, 5)), Some(edition(7, 6)), edition(7, 6)),
            (Some(edition(7, 5)), Some(edition(8, 9)), edition(7, 5)),
            (None, Some(edition(8, 9)), edition(8, 9)),
            (none, Some(edition(8, 9)), edition(8, 9)),
            (Some(edition(7, 5)), None, edition(7, 5)),
            (none, none, edition(3, 0)),
            (None, None, edition(3, 0)),
        ] {
            assert_eq!(Edition::resume(maps, checkpoint, 3), expected);
        }
        assert!(Edition::first(0).is_known());
        assert!(edition(7, 5).next().may_replace(edition(7, 5)));
    }
}
