//! Many of a kind: how many there are, and that not all are named.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How many objects or Service ports a list of the status names. There may be tens of thousands, and the status is
/// asked for every second.
pub(super) const KEPT: usize = 100;
/// How many of them the table for people names.
pub(super) const SHOWN: usize = 10;

/// How many there are of each.
pub(super) fn counts<K: Into<String> + Ord>(
    all: impl Iterator<Item = K>,
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::<K, usize>::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    let counts = counts.into_iter();
    counts.map(|(one, count)| (one.into(), count)).collect()
}

/// A heading with how many there are of each kind; returns how many there are in all.
pub(super) fn write_counts(
    out: &mut String,
    head: &str,
    counts: &BTreeMap<String, usize>,
) -> Result<usize, std::fmt::Error> {
    let parts = counts.iter().map(|(what, count)| match what.is_empty() {
        true => format!("{count} documents"),
        false => format!("{count} {what}"),
    });
    let parts: Vec<String> = parts.collect();
    writeln!(out, "\n{head} ({})", parts.join(", "))?;
    Ok(counts.values().sum())
}

/// A line that says how many more there are, and which verb shows them.
pub(super) fn write_more(
    out: &mut String,
    all: usize,
    shown: usize,
    where_from: &str,
) -> std::fmt::Result {
    match all.saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(out, "and {more} more: `yurt-net {where_from}"),
    }
}
