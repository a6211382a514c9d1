//! Waits until every program that runs now has ended, and with it every reader of slots that are about to be used
//! again.
//!
//! An update of a map of maps makes the kernel wait (`synchronize_rcu`) until no program has the old map any more:
//! `maybe_wait_bpf_programs` in kernel/bpf/syscall.c, since Linux 4.20. It also waits if the new map is the old one.
//! `membarrier(MEMBARRIER_CMD_GLOBAL)` is not enough: with one processor online it returns at once, even if a program
//! was preempted in the middle, and with `nohz_full` it is refused (kernel/sched/membarrier.c).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use crate::dataplane::sys::{self, MapInfo};

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;

/// A map that no program uses. An update of it waits for the programs that run.
#[derive(Debug)]
pub struct GracePeriod {
    map: OwnedFd,
    inner: OwnedFd,
}

impl GracePeriod {
    /// Makes the map.
    pub fn new() -> io::Result<Self> {
        let inner_info = MapInfo {
            map_type: ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            ..MapInfo::default()
        };
        let inner = sys::map_create("yurt_grace_in", &inner_info)?;
        let map = sys::array_of_maps_create("yurt_grace", inner.as_fd())?;
        Ok(Self { map, inner })
    }

    /// Returns once every program that runs now has ended: 10 to 50 ms.
    pub fn wait(&self) -> io::Result<()> {
        sys::map_update(self.map.as_fd(), &0u32, &self.inner.as_raw_fd())
    }
}
