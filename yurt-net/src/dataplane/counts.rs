//! Counters that programs increment, one set for each CPU, under the names that the ABI gives them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};

use super::DataplaneError;
use super::error::on_map;
use super::sys::{self, possible_cpus};

/// A map of counters.
#[derive(Debug)]
pub struct Counts {
    map: OwnedFd,
    map_name: &'static str,
    /// The names of its entries, in order.
    names: &'static [&'static str],
    /// The number of values that an entry has.
    cpus: usize,
}

impl Counts {
    pub(super) fn new(
        map: OwnedFd,
        map_name: &'static str,
        names: &'static [&'static str],
    ) -> Result<Self, DataplaneError> {
        Ok(Self {
            map,
            map_name,
            names,
            cpus: possible_cpus()?,
        })
    }

    /// The same counters, to be read elsewhere: without blocking the thread, or while their owner works.
    pub fn try_clone(&self) -> Result<Self, DataplaneError> {
        let map = self.map.try_clone();
        Ok(Self {
            map: map.map_err(on_map("open", self.map_name))?,
            ..*self
        })
    }

    /// The counts so far, summed over the CPUs.
    pub fn read(&self) -> Result<BTreeMap<&'static str, u64>, DataplaneError> {
        let mut per_cpu = vec![0u64; self.cpus];
        let mut counts = BTreeMap::new();
        for (index, name) in (0u32..).zip(self.names) {
            sys::map_lookup(self.map.as_fd(), &index, &mut per_cpu)
                .map_err(on_map("read", self.map_name))?;
            counts.insert(*name, per_cpu.iter().sum());
        }
        Ok(counts)
    }
}
