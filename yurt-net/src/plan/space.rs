//! Space in an array map: extents that are used, free, or retired and perhaps still read.

use std::collections::BTreeMap;
use std::ops::Range;

/// Allocator of contiguous ranges of `0..capacity`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    /// Base to length; neighbours are merged.
    free: BTreeMap<u32, u32>,
    /// Retired by earlier plans: free after a grace period.
    sealed: Vec<(u32, u32)>,
    /// Retired by the plan that is being made.
    retired: Vec<(u32, u32)>,
    /// Entries in `free` and in `sealed`.
    unused: usize,
}

impl Space {
    /// All of it free.
    pub(super) fn new(capacity: u32) -> Self {
        let free = if capacity == 0 {
            BTreeMap::new()
        } else {
            BTreeMap::from([(0, capacity)])
        };
        Self {
            free,
            sealed: Vec::new(),
            retired: Vec::new(),
            unused: capacity as usize,
        }
    }

    /// The space between the `used` extents, which are sorted and do not overlap. A reader may still hold it.
    pub(super) fn around(capacity: u32, used: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut sealed = Vec::new();
        let mut next = 0;
        for (base, length) in used {
            if base > next {
                sealed.push((next, base - next));
            }
            next = base + length;
        }
        if capacity > next {
            sealed.push((next, capacity - next));
        }
        Self {
            free: BTreeMap::new(),
            unused: entries(&sealed),
            sealed,
            retired: Vec::new(),
        }
    }

    /// Takes the start of the first free extent that is long enough.
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        let base = self.find(length)?;
        self.take_at(base, length);
        Some(base)
    }

    /// Where [`Self::take`] would take it.
    pub(super) fn find(&self, length: u32) -> Option<u32> {
        let mut free = self.free.iter();
        free.find_map(|(&base, &found)| (found >= length).then_some(base))
    }

    /// How many entries right before `base` are free.
    pub(super) fn free_before(&self, base: u32) -> u32 {
        let before = self.free.range(..base).next_back();
        let adjacent = before.filter(|&(&start, &length)| start + length == base);
        adjacent.map_or(0, |(_, length)| *length)
    }

    /// How many entries from `end` on are free.
    pub(super) fn free_from(&self, end: u32) -> u32 {
        self.free.get(&end).copied().unwrap_or_default()
    }

    /// Takes a part of a free extent.
    pub(super) fn take_at(&mut self, base: u32, length: u32) {
        if length == 0 {
            return;
        }
        let Some((&start, &found)) = self.free.range(..=base).next_back() else {
            return;
        };
        debug_assert!(base + length <= start + found, "it is free");
        self.free.remove(&start);
        self.unused -= length as usize;
        if base > start {
            self.free.insert(start, base - start);
        }
        if start + found > base + length {
            self.free
                .insert(base + length, start + found - base - length);
        }
    }

    /// Free extents, in order: start and length.
    pub(super) fn extents(&self) -> impl Iterator<Item = (u32, u32)> {
        self.free.iter().map(|(base, length)| (*base, *length))
    }

    /// The parts of free extents that are outside of a range.
    pub(super) fn beside(&self, range: &Range<u32>) -> impl Iterator<Item = (u32, u32)> {
        let extents = self.extents().flat_map(|(base, length)| {
            let end = base + length;
            [(base, end.min(range.start)), (base.max(range.end), end)]
        });
        let extents = extents.filter(|(base, end)| base < end);
        extents.map(|(base, end)| (base, end - base))
    }

    /// Gives back a range that no reader has seen.
    pub(super) fn free(&mut self, base: u32, length: u32) {
        self.unused += length as usize;
        self.merge(base, length);
    }

    fn merge(&mut self, mut base: u32, mut length: u32) {
        if let Some((&before, &before_length)) = self.free.range(..base).next_back()
            && before + before_length == base
        {
            self.free.remove(&before);
            base = before;
            length += before_length;
        }
        if let Some(after_length) = self.free.remove(&(base + length)) {
            length += after_length;
        }
        self.free.insert(base, length);
    }

    /// Gives back a range that readers may still see.
    pub(super) fn retire(&mut self, base: u32, length: u32) {
        self.retired.push((base, length));
    }

    /// Ends the plan: ranges that it retired are free after the next grace period.
    pub(super) fn seal(&mut self) {
        self.unused += entries(&self.retired);
        self.sealed.append(&mut self.retired);
    }

    /// Entries that are free, or would be after a grace period.
    pub(super) fn unused(&self) -> usize {
        self.unused
    }

    /// Entries of the longest range that can be taken.
    pub(super) fn longest(&self) -> u32 {
        self.free.values().copied().max().unwrap_or_default()
    }

    /// The space once the present plan is written and a grace period has passed.
    pub(super) fn after_the_plan(&self) -> Self {
        let mut after = self.clone();
        after.seal();
        after.end_grace();
        after
    }

    /// Whether a grace period would free anything.
    pub(super) fn has_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// A grace period has passed since the last `seal`.
    pub(super) fn end_grace(&mut self) {
        for (base, length) in std::mem::take(&mut self.sealed) {
            self.merge(base, length);
        }
    }
}

fn entries(ranges: &[(u32, u32)]) -> usize {
    ranges.iter().map(|(_, length)| *length as usize).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retired_space_is_free_only_after_a_grace_period_of_a_later_plan() {
        let mut space = Space::new(4);
        assert_eq!(space.take(4), Some(0));
        space.retire(0, 4);
        space.end_grace();
        assert_eq!(space.take(1), None, "retired by this very plan");
        space.seal();
        assert_eq!(space.take(1), None, "no grace period yet");
        space.end_grace();
        assert_eq!(space.take(4), Some(0));
    }

    #[test]
    fn neighbours_merge_so_that_what_was_taken_in_parts_can_be_taken_whole() {
        let mut space = Space::new(6);
        for base in [0, 2, 4] {
            assert_eq!(space.take(2), Some(base));
        }
        space.free(0, 2);
        space.free(4, 2);
        assert_eq!(space.take(3), None);
        space.free(2, 2);
        assert_eq!(space.take(6), Some(0));
    }

    #[test]
    fn what_is_free_beside_an_extent_can_be_taken_where_it_is() {
        let mut space = Space::new(10);
        assert_eq!(space.take(10), Some(0));
        space.free(0, 3);
        space.free(6, 4);
        assert_eq!((space.free_before(3), space.free_from(6)), (3, 4));
        assert_eq!((space.free_before(6), space.free_from(7)), (0, 0));
        space.take_at(2, 1);
        space.take_at(6, 2);
        assert_eq!((space.free_before(2), space.free_from(8)), (2, 2));
        assert_eq!(space.unused(), 4);
    }

    #[test]
    fn the_gaps_between_adopted_extents_are_sealed() {
        let mut space = Space::around(10, [(1, 2), (3, 1), (6, 2)].into_iter());
        assert_eq!(space.take(1), None);
        space.end_grace();
        assert_eq!(space.take(2), Some(4));
        assert_eq!(space.take(2), Some(8));
        assert_eq!(space.take(1), Some(0));
        assert_eq!(space.take(1), None);
    }
}
