//! The difference between two tables.

use std::cmp::Ordering;
use std::sync::Arc;

use super::unit::self_test;
use crate::table::{ServiceEntry, ServiceKey};

/// A service port that differs from the last table, or is tried again.
pub(super) struct Change {
    /// Its place in the new table, if it is in both.
    pub(super) at: usize,
    pub(super) old: Option<Arc<ServiceEntry>>,
    pub(super) new: Option<Arc<ServiceEntry>>,
}

impl Change {
    pub(super) fn key(&self) -> Option<&ServiceKey> {
        self.old
            .as_ref()
            .or(self.new.as_ref())
            .map(|entry| &entry.key)
    }

    /// Whether it has not changed, and is only tried again.
    pub(super) fn is_retry(&self) -> bool {
        let both = self.old.as_ref().zip(self.new.as_ref());
        both.is_some_and(|(old, new)| Arc::ptr_eq(old, new))
    }

    pub(super) fn is_replacement(&self) -> bool {
        self.old.is_some() && self.new.is_some()
    }
}

/// The changes from one sorted table to the next.
pub(super) fn changes(before: &[Arc<ServiceEntry>], after: &[Arc<ServiceEntry>]) -> Vec<Change> {
    let mut changes = Vec::new();
    let (mut old, mut at) = (0, 0);
    loop {
        let order = match (before.get(old), after.get(at)) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {
                (old, at) = (old + 1, at + 1);
                continue;
            }
            (Some(a), Some(b)) => a.key.cmp(&b.key),
        };
        let (is_old, is_new) = (order.is_le(), order.is_ge());
        changes.push(Change {
            at,
            old: before.get(old).filter(|_| is_old).cloned(),
            new: after.get(at).filter(|_| is_new).cloned(),
        });
        old += usize::from(is_old);
        at += usize::from(is_new);
    }
}

/// Every service port, and the self-test's, which is in the maps before and after all others.
pub(super) fn all_new(after: &[Arc<ServiceEntry>]) -> Vec<Change> {
    std::iter::once(self_test())
        .chain(after.iter().cloned())
        .map(|entry| Change {
            at: 0,
            old: None,
            new: Some(entry),
        })
        .collect()
}
