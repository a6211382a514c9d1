//! What tenants lose to default/kubernetes and kube-system in a full map.
//!
//! Pure. In: the room that tenants have in the maps, the room that is wanted, and the room that will be free. Out: the
//! smallest loss that makes enough room; none, if all of it would not be enough.
//!
//! **Where rows or indices lack**, whole service ports go, as if they were deleted: first of the namespace that has
//! most of what lacks, and of it the smallest that does alone, or else the largest. **Where slots lack**, they have to
//! lie in one range: a window. Of the ranges that are free or of the namespaces with most slots, as few namespaces as
//! possible, it is the one beside which most is free for the sets that have to move, then the one that has the fewest
//! of them, then the one that costs the fewest slots. Sets that it reaches into are cut down to what is beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::homes::{length_of, level};
use super::image::Capacity;
use super::op::FullMap;
use super::space::Space;
use super::turns::Needs;
use super::unit::Unit;
use crate::model::AddressFamily;
use crate::table::ServiceKey;

/// The maps other than slots, in the order of [`Room::rows`].
const ROWS: [FullMap; 3] = [FullMap::Frontends4, FullMap::Frontends6, FullMap::Services];

/// A service port that may lose something.
pub(super) struct Candidate<'a> {
    pub(super) key: &'a ServiceKey,
    /// Its entries in the maps.
    pub(super) has: Needs,
    pub(super) sets: Vec<Placed>,
}

/// A set, where it lies.
pub(super) struct Placed {
    pub(super) unit: Unit,
    pub(super) index: u32,
    /// The slots of its backends, then of its source ranges.
    pub(super) slots: Range<u32>,
    /// How many of the slots are source ranges.
    pub(super) ranges: u32,
}

impl Placed {
    /// The fewest slots that are of use to it: for one endpoint and all its source ranges.
    pub(super) fn least(&self) -> u32 {
        let set = &self.unit.set;
        let slots = set.ranges().len() + usize::from(!set.backends.is_empty());
        u32::try_from(slots).unwrap_or(u32::MAX)
    }

    fn endpoints(&self) -> u32 {
        length_of(&self.slots).saturating_sub(self.ranges)
    }

    /// The slots for so many endpoints, or as many as it has, and for all source ranges.
    fn enough(&self, endpoints: u32) -> u32 {
        let ranges = u32::try_from(self.unit.set.ranges().len()).unwrap_or(u32::MAX);
        self.least().max(ranges + endpoints.min(self.endpoints()))
    }

    fn is_of(&self, family: usize) -> bool {
        self.unit.family as usize == family && !self.slots.is_empty()
    }
}

/// The room once a plan is written and a grace period has passed.
#[derive(Clone)]
pub(super) struct Room {
    /// By [`ROWS`].
    pub(super) rows: [usize; 3],
    /// By family.
    pub(super) slots: [Space; 2],
}

/// The losses.
#[derive(Default)]
pub(super) struct Victims {
    /// Candidates that are taken out whole.
    pub(super) out: BTreeSet<usize>,
    /// Slots of each family that no tenant may keep.
    windows: [Option<Range<u32>>; 2],
    /// Half of an even share, in endpoints.
    half: [u32; 2],
}

impl Victims {
    /// The fewest slots of a set with which it has about as many endpoints as others.
    pub(super) fn enough(&self, placed: &Placed) -> u32 {
        placed.enough(self.half[placed.unit.family as usize])
    }

    /// Slots of a family that no tenant may keep.
    pub(super) fn window(&self, family: AddressFamily) -> Option<&Range<u32>> {
        self.windows[family as usize].as_ref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.out.is_empty() && self.windows.iter().all(Option::is_none)
    }

    /// The slots of a set that can be served where they lie.
    pub(super) fn kept(&self, placed: &Placed) -> Range<u32> {
        let window = &self.windows[placed.unit.family as usize];
        let window = window.as_ref();
        window.map_or(placed.slots.clone(), |window| kept(placed, window))
    }
}

/// The longer side of a set that a window reaches into. Source ranges follow the last backend, so a set with ranges
/// keeps its end.
fn kept(placed: &Placed, window: &Range<u32>) -> Range<u32> {
    let slots = &placed.slots;
    if window.end <= slots.start || slots.end <= window.start {
        return slots.clone();
    }
    let before = slots.start..window.start.max(slots.start);
    let after = window.end.min(slots.end)..slots.end;
    let is_before = placed.ranges == 0 && before.len() >= after.len();
    match is_before {
        true => before,
        false if after.len() > placed.ranges as usize => after,
        false => slots.end..slots.end,
    }
}

/// The losses; `None` if all that tenants have would not be enough.
pub(super) fn victims(
    candidates: &[Candidate<'_>],
    wanted: &Needs,
    mut room: Room,
    capacity: &Capacity,
) -> Option<Victims> {
    let out = out_for_rows(candidates, wanted, room.rows, capacity)?;
    let left_out = out.iter().flat_map(|at| &candidates[*at].sets);
    for placed in left_out.filter(|placed| !placed.slots.is_empty()) {
        let slots = &placed.slots;
        let space = &mut room.slots[placed.unit.family as usize];
        space.free(slots.start, length_of(slots));
    }
    let (mut windows, mut half) = ([None, None], [0; 2]);
    for (family, map) in [FullMap::Slots4, FullMap::Slots6].into_iter().enumerate() {
        let (space, wanted) = (&room.slots[family], wanted.0[map as usize]);
        if (space.longest() as usize) < wanted {
            let others = candidates.iter().enumerate();
            let others = others.filter(|(at, _)| !out.contains(at));
            let others: Vec<_> = others.map(|(_, candidate)| candidate).collect();
            let wanted = u32::try_from(wanted).ok()?;
            half[family] = even_share(&others, family, space, wanted) / 2;
            windows[family] = Some(window(&others, family, space, half[family], wanted)?);
        }
    }
    Some(Victims { out, windows, half })
}

/// Endpoints that each set may have, so that all sets have as many as fit beside `taken` slots.
fn even_share(candidates: &[&Candidate<'_>], family: usize, space: &Space, taken: u32) -> u32 {
    let sets = candidates.iter().flat_map(|one| &one.sets);
    let sets = sets.filter(|placed| placed.is_of(family));
    let endpoints: Vec<u32> = sets.map(Placed::endpoints).collect();
    let free: u32 = space.extents().map(|(_, length)| length).sum();
    let all = endpoints.iter().sum::<u32>() + free;
    level(endpoints, all.saturating_sub(taken))
}

/// Service ports that have to go for rows and indices.
fn out_for_rows(
    candidates: &[Candidate<'_>],
    wanted: &Needs,
    mut room: [usize; 3],
    capacity: &Capacity,
) -> Option<BTreeSet<usize>> {
    let lacking = |room: &[usize; 3]| {
        let maps = ROWS.into_iter().zip(*room);
        let lacking = maps.filter(|(map, room)| *room < wanted.0[*map as usize]);
        lacking.map(|(map, _)| map).collect::<Vec<_>>()
    };
    let first = lacking(&room);
    let part = |has: &Needs| {
        let parts = first
            .iter()
            .map(|map| has.0[*map as usize] * 1_000_000 / capacity.by_map()[*map as usize].max(1));
        parts.max().unwrap_or_default()
    };
    let has_some = |has: &Needs, maps: &[FullMap]| maps.iter().any(|map| has.0[*map as usize] > 0);
    // The candidates of each namespace, the smallest first.
    let mut held: BTreeMap<&str, (Needs, Vec<usize>)> = BTreeMap::new();
    for (at, one) in candidates.iter().enumerate() {
        if has_some(&one.has, &first) {
            let (sum, own) = held.entry(&one.key.namespace).or_default();
            sum.add(one.has);
            own.push(at);
        }
    }
    for (_, own) in held.values_mut() {
        own.sort_by_key(|at| part(&candidates[*at].has));
    }
    let of_namespaces = held.iter();
    let mut order: BTreeSet<_> = of_namespaces
        .map(|(name, (sum, _))| (part(sum), *name))
        .collect();
    let give = |room: &mut [usize; 3], at: usize| {
        for (room, map) in room.iter_mut().zip(ROWS) {
            *room += candidates[at].has.0[map as usize];
        }
    };
    let mut out = Vec::new();
    loop {
        let now = lacking(&room);
        if now.is_empty() {
            break;
        }
        let (_, namespace) = order.pop_last()?;
        let (sum, own) = held.get_mut(namespace)?;
        own.retain(|at| has_some(&candidates[*at].has, &now));
        let is_enough = |at: &usize| {
            let mut with = room;
            give(&mut with, *at);
            lacking(&with).is_empty()
        };
        let Some(largest) = own.len().checked_sub(1) else {
            continue;
        };
        let at = own.remove(own.iter().position(is_enough).unwrap_or(largest));
        sum.remove(candidates[at].has);
        order.insert((part(sum), namespace));
        give(&mut room, at);
        out.push(at);
    }
    // A later choice may make an earlier one needless.
    out.retain(|at| {
        let mut without = room;
        for (room, map) in without.iter_mut().zip(ROWS) {
            *room -= candidates[*at].has.0[map as usize];
        }
        let is_needed = !lacking(&without).is_empty();
        if !is_needed {
            room = without;
        }
        is_needed
    });
    Some(out.into_iter().collect())
}

/// Slots side by side, free or of one set.
struct Block<'a> {
    slots: Range<u32>,
    /// The candidate, and the rank of its namespace among those with the most slots.
    held: Option<(&'a Placed, usize)>,
}

/// The cost of a window.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    /// How many slots outside the window are missing for the sets that have to move.
    lacking: u32,
    /// Sets that have to move, because they do not keep enough.
    movers: u32,
    /// Slots in use.
    slots: u32,
}

/// What some blocks are, in all.
#[derive(Clone, Copy, Default)]
struct Sum {
    /// Sets, and the slots that are enough for them.
    sets: u32,
    enough: u32,
    /// Slots in use.
    slots: u32,
    free: u32,
}

/// The range of `length` slots that has to go; see the module.
fn window(
    candidates: &[&Candidate<'_>],
    family: usize,
    space: &Space,
    half: u32,
    length: u32,
) -> Option<Range<u32>> {
    let is_ours = |placed: &&Placed| placed.is_of(family);
    let mut held: BTreeMap<&str, u32> = BTreeMap::new();
    for one in candidates {
        let slots = one
            .sets
            .iter()
            .filter(is_ours)
            .map(|placed| length_of(&placed.slots));
        *held.entry(&one.key.namespace).or_default() += slots.sum::<u32>();
    }
    let mut order: Vec<_> = held.into_iter().collect();
    order.sort_by_key(|(name, slots)| (std::cmp::Reverse(*slots), *name));
    let places: BTreeMap<&str, usize> = order.iter().map(|(name, _)| *name).zip(0..).collect();
    let free = space.extents().map(|(base, length)| Block {
        slots: base..base + length,
        held: None,
    });
    let sets = candidates.iter().flat_map(|one| {
        let sets = one.sets.iter().filter(is_ours);
        sets.map(|placed| Block {
            slots: placed.slots.clone(),
            held: Some((placed, places[&*one.key.namespace])),
        })
    });
    let mut blocks: Vec<Block<'_>> = free.chain(sets).collect();
    blocks.sort_by_key(|block| block.slots.start);
    // With more namespaces there is no less to choose from.
    let (mut few, mut many) = (0, order.len() + 1);
    while few < many {
        let middle = usize::midpoint(few, many);
        match cheapest(&blocks, middle, half, length) {
            Some(_) => many = middle,
            None => few = middle + 1,
        }
    }
    cheapest(&blocks, few, half, length)
}

/// The cheapest range of `length` slots that are free or of the first `namespaces`.
fn cheapest(blocks: &[Block<'_>], namespaces: usize, half: u32, length: u32) -> Option<Range<u32>> {
    let may_go = |block: &Block<'_>| block.held.is_none_or(|(_, place)| place < namespaces);
    let is_joined =
        |a: &Block<'_>, b: &Block<'_>| may_go(a) && may_go(b) && a.slots.end == b.slots.start;
    let free = blocks.iter().filter(|block| block.held.is_none());
    let free = free.map(|block| length_of(&block.slots)).sum();
    let mut best: Option<(Cost, u32)> = None;
    for run in blocks.chunk_by(is_joined).filter(|run| may_go(&run[0])) {
        let (start, end) = (run[0].slots.start, run[run.len() - 1].slots.end);
        if end - start < length {
            continue;
        }
        let mut sums = vec![Sum::default()];
        for block in run {
            let mut sum = sums[sums.len() - 1];
            let length = length_of(&block.slots);
            match block.held {
                Some((placed, _)) => {
                    sum.sets += 1;
                    sum.enough += placed.enough(half);
                    sum.slots += length;
                }
                None => sum.free += length,
            }
            sums.push(sum);
        }
        // The cost changes its slope only where the window begins or ends with a block.
        let begins = run.iter().map(|block| block.slots.start);
        let ends = run.iter().map(|block| block.slots.end);
        let starts = begins.chain(ends.filter_map(|end| end.checked_sub(length)));
        for at in starts.filter(|at| (start..=end - length).contains(at)) {
            let cost = cost(run, &sums, half, free, at..at + length);
            if best.is_none_or(|best| (cost, at) < best) {
                best = Some((cost, at));
            }
        }
    }
    best.map(|(_, at)| at..at + length)
}

/// `sums`: of all blocks of the run before each; `free`: slots that are free, in the run or not.
fn cost(run: &[Block<'_>], sums: &[Sum], half: u32, free: u32, window: Range<u32>) -> Cost {
    let first = run.partition_point(|block| block.slots.end <= window.start);
    let end = run.partition_point(|block| block.slots.start < window.end);
    let mut movers = sums[end].sets - sums[first].sets;
    let mut enough = sums[end].enough - sums[first].enough;
    let mut slots = sums[end].slots - sums[first].slots;
    let mut beside = free - (sums[end].free - sums[first].free);
    // Only these can be in it in part.
    let ends = [first, end - 1];
    for at in &ends[..if first + 1 == end { 1 } else { 2 }] {
        let block = &run[*at];
        let Some((placed, _)) = block.held else {
            beside += window.start.saturating_sub(block.slots.start);
            beside += block.slots.end.saturating_sub(window.end);
            continue;
        };
        let left = length_of(&kept(placed, &window));
        slots -= left;
        if left >= placed.enough(half) {
            movers -= 1;
            enough -= placed.enough(half);
        }
    }
    Cost {
        lacking: enough.saturating_sub(beside),
        movers,
        slots,
    }
}
