//! The objects that were replaced from one snapshot to the next.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::remembered::Few;
use crate::model::{EndpointSlice, NamespacedName, PoolService, Service};

/// An object that is no longer there, or that is new; one that was replaced is both, in this order.
pub(super) enum Step<'a, T> {
    Gone(&'a Arc<T>),
    Came(&'a Arc<T>),
}

impl<T> Step<'_, T> {
    pub(super) fn object(&self) -> &Arc<T> {
        match self {
            Self::Gone(object) | Self::Came(object) => object,
        }
    }

    pub(super) fn came(&self) -> Option<&Arc<T>> {
        match self {
            Self::Gone(_) => None,
            Self::Came(object) => Some(object),
        }
    }
}

/// The objects that are gone, by their address in memory: nobody else gets it, for each is in the list of its Service
/// until all of them are taken out of it together. A Service may have ten thousand slices that change at once.
#[derive(Default)]
pub(super) struct Gone(BTreeSet<usize>);

impl Gone {
    /// Whether no object is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn address<T>(object: &Arc<T>) -> usize {
        Arc::as_ptr(object).addr()
    }

    /// Adds what came to the list of its Service, and notes what is gone.
    pub(super) fn follow<T>(&mut self, step: &Step<'_, T>, list: &mut Few<T>) {
        match step {
            Step::Gone(object) => {
                self.0.insert(Self::address(object));
            }
            Step::Came(object) => list.push(Arc::clone(object)),
        }
    }

    pub(super) fn take_out_of<T>(&self, list: &mut Few<T>) {
        list.retain(|object| !self.0.contains(&Self::address(object)));
    }
}

pub(super) trait Named {
    fn name(&self) -> &NamespacedName;
}

impl Named for Service {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

impl Named for EndpointSlice {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

impl Named for PoolService {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

/// Brings `known`, which is sorted by name, in step with `now`, and reports each step.
///
/// Identity, not equality: sources keep the `Arc` of what did not change.
pub(super) fn step_all<T: Named>(
    known: &mut Vec<Arc<T>>,
    now: &BTreeMap<NamespacedName, Arc<T>>,
    mut tell: impl FnMut(Step<'_, T>),
) {
    let (mut at, mut has_moved) = (0, false);
    for (key, new) in now {
        while let Some(old) = known.get(at)
            && !Arc::ptr_eq(old, new)
            && old.name() < key
        {
            tell(Step::Gone(old));
            (at, has_moved) = (at + 1, true);
        }
        match known.get_mut(at) {
            Some(old) if Arc::ptr_eq(old, new) => at += 1,
            Some(old) if old.name() == key => {
                tell(Step::Gone(old));
                tell(Step::Came(new));
                old.clone_from(new);
                at += 1;
            }
            _ => {
                tell(Step::Came(new));
                has_moved = true;
            }
        }
    }
    for old in known.iter().skip(at) {
        tell(Step::Gone(old));
        has_moved = true;
    }
    if has_moved {
        known.clear();
        known.extend(now.values().cloned());
    }
}

/// The same where only these names may have changed.
pub(super) fn step_named<T: Named>(
    known: &mut Vec<Arc<T>>,
    now: &BTreeMap<NamespacedName, Arc<T>>,
    names: &BTreeSet<NamespacedName>,
    mut tell: impl FnMut(Step<'_, T>),
) {
    for name in names {
        let place = known.binary_search_by(|object| object.name().cmp(name));
        match (place, now.get(name)) {
            (Ok(at), Some(new)) if Arc::ptr_eq(&known[at], new) => {}
            (Ok(at), Some(new)) => {
                tell(Step::Gone(&known[at]));
                tell(Step::Came(new));
                known[at] = Arc::clone(new);
            }
            (Ok(at), None) => tell(Step::Gone(&known.remove(at))),
            (Err(at), Some(new)) => {
                tell(Step::Came(new));
                known.insert(at, Arc::clone(new));
            }
            (Err(_), None) => {}
        }
    }
}
