//! What was received of each resource, counted where it arrives.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// What was received of one resource since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Bytes of bodies, as they came over the wire.
    pub bytes: u64,
    /// Objects in lists and events.
    pub objects: u64,
    /// Requests for a list.
    pub lists: u64,
    /// Requests for a watch.
    pub watches: u64,
    /// Objects that watches reported as added, modified or deleted.
    pub events: u64,
}

/// What was received of a resource, as its task counts it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes: AtomicU64,
    pub(super) objects: AtomicU64,
    pub(super) lists: AtomicU64,
    pub(super) watches: AtomicU64,
    pub(super) events: AtomicU64,
}

impl Counters {
    /// The counts at present.
    pub(super) fn received(&self) -> Received {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Received {
            bytes: get(&self.bytes),
            objects: get(&self.objects),
            lists: get(&self.lists),
            watches: get(&self.watches),
            events: get(&self.events),
        }
    }
}
