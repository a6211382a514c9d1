//! The table maps: hashes by system call, arrays in our memory.
//!
//! The large arrays are mapped only while they are read or written, and for writes only in part. At any other time a
//! fault in this process cannot change the table that clients are served from, and the arrays do not count as the
//! agent's memory.
#![expect(
    unsafe_code,
    reason = "entries that the programs read while they are written"
)]

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use yurt_ebpf::abi::{
    Backend4, Backend6, Conf, FILTER_WORDS, FrontendKey4, FrontendKey6, PrefixSet, ServiceRow,
};

use super::decode::{RawTable, Rows, is_written};
use super::encode::{MapWriter, RawKey, raw_value};
use super::grace::GracePeriod;
use crate::dataplane::DataplaneError;
use crate::dataplane::attach::bpffs::{map_array, map_open, open_map};
use crate::dataplane::error::{on_map, out_of_bounds};
use crate::dataplane::sys::{self, MappedArray, WindowedArray};
use crate::plan::{Capacity, Filter, Op};

/// The operation of a write to an array, for its error.
const MAP: &str = "map into memory";

/// The table maps in use.
pub(super) struct Table {
    pub(super) capacity: Capacity,
    pub(super) fe4: OwnedFd,
    pub(super) fe6: OwnedFd,
    svc: OwnedFd,
    slot: OwnedFd,
    be6: OwnedFd,
    pub(super) conf: MappedArray<Conf>,
    pub(super) filter: MappedArray<u64>,
    grace: GracePeriod,
    /// The generation that a set in these maps has first.
    pub(super) first_generation: u16,
}

/// The table maps with all arrays in our memory, for reading.
pub(super) struct Mapped<'a> {
    table: &'a Table,
    svc: MappedArray<ServiceRow>,
    slot: MappedArray<Backend4>,
    be6: MappedArray<Backend6>,
}

/// The table maps while a plan is written.
pub(super) struct Writer<'a> {
    table: &'a Table,
    svc: WindowedArray<'a, ServiceRow>,
    slot: WindowedArray<'a, Backend4>,
    be6: WindowedArray<'a, Backend6>,
}

/// The first generation for a map, far from those of maps that were made shortly before: the kernel numbers maps, and
/// this factor (2^16 over the golden ratio) keeps the first generations of the next two hundred maps apart.
fn first_generation(map_id: u32) -> u16 {
    let [a, b, ..] = map_id.wrapping_mul(40_503).to_le_bytes();
    u16::from_le_bytes([a, b])
}

impl Table {
    pub(super) fn open(capacity: Capacity, dir: &Path) -> Result<Self, DataplaneError> {
        let svc = open_map(dir, "yurt_svc")?;
        let info = sys::map_info(svc.as_fd()).map_err(on_map("inspect", "yurt_svc"))?;
        let table = Self {
            capacity,
            fe4: open_map(dir, "yurt_fe4")?,
            fe6: open_map(dir, "yurt_fe6")?,
            svc,
            slot: open_map(dir, "yurt_slot")?,
            be6: open_map(dir, "yurt_be6")?,
            conf: map_array(dir, "yurt_conf", 1)?,
            filter: map_array(dir, "yurt_filter", FILTER_WORDS)?,
            grace: GracePeriod::new().map_err(DataplaneError::Grace)?,
            first_generation: first_generation(info.id),
        };
        // An array that cannot be mapped is an error here, before anything relies on it.
        table.mapped()?;
        Ok(table)
    }

    /// Maps all arrays into our memory, until the result is dropped.
    pub(super) fn mapped(&self) -> Result<Mapped<'_>, DataplaneError> {
        let capacity = &self.capacity;
        Ok(Mapped {
            table: self,
            svc: map_open(&self.svc, "yurt_svc", capacity.services)?,
            slot: map_open(&self.slot, "yurt_slot", capacity.slots4)?,
            be6: map_open(&self.be6, "yurt_be6", capacity.slots6)?,
        })
    }

    /// Maps the parts of the arrays that are written to into our memory, until the result is dropped.
    pub(super) fn writer(&self) -> Writer<'_> {
        let capacity = &self.capacity;
        Writer {
            table: self,
            svc: WindowedArray::new(self.svc.as_fd(), capacity.services),
            slot: WindowedArray::new(self.slot.as_fd(), capacity.slots4),
            be6: WindowedArray::new(self.be6.as_fd(), capacity.slots6),
        }
    }

    pub(super) fn conf_entry(&self) -> Result<*mut Conf, DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_conf", 0);
        Ok(self.conf.entry(0).ok_or(out_of_bounds)?.as_ptr())
    }
}

impl RawTable for Mapped<'_> {
    fn row(&self, service: u32) -> Option<ServiceRow> {
        self.svc.read(service)
    }

    fn backend4(&self, slot: u32) -> Option<Backend4> {
        self.slot.read(slot)
    }

    fn backend6(&self, slot: u32) -> Option<Backend6> {
        self.be6.read(slot)
    }

    fn conf(&self) -> Option<Conf> {
        self.table.conf.read(0)
    }

    fn filter(&self) -> Filter {
        let words = (0..FILTER_WORDS).map_while(|word| self.table.filter.read(word));
        words.collect::<Vec<_>>().into()
    }
}

impl MapWriter for Writer<'_> {
    fn grace(&mut self) -> Result<(), DataplaneError> {
        self.table.grace.wait().map_err(DataplaneError::Grace)
    }

    fn prefixes(&mut self, set: PrefixSet) -> Result<(), DataplaneError> {
        let conf = self.table.conf_entry()?;
        // SAFETY: a valid entry of our mapping. No program reads the inactive half, and the switch is one word.
        unsafe {
            let active = AtomicU32::from_ptr(&raw mut (*conf).active_prefixes);
            let next = (active.load(Ordering::Relaxed) & 1) ^ 1;
            (&raw mut (*conf).prefixes[next as usize]).write_volatile(set);
            active.store(next, Ordering::Release);
        }
        Ok(())
    }

    fn filter(&mut self, word: u32, bits: u64) -> Result<(), DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_filter", word);
        let word = self.table.filter.entry(word).ok_or(out_of_bounds)?.as_ptr();
        // SAFETY: a valid, aligned word of our mapping.
        unsafe { AtomicU64::from_ptr(word) }.store(bits, Ordering::Release);
        Ok(())
    }

    fn backend4(&mut self, slot: u32, backend: Backend4) -> Result<(), DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_slot", slot);
        self.slot
            .write(slot, backend)
            .map_err(on_map(MAP, "yurt_slot"))?
            .then_some(())
            .ok_or(out_of_bounds)
    }

    fn backend6(&mut self, slot: u32, backend: Backend6) -> Result<(), DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_be6", slot);
        self.be6
            .write(slot, backend)
            .map_err(on_map(MAP, "yurt_be6"))?
            .then_some(())
            .ok_or(out_of_bounds)
    }

    fn publish(&mut self, service: u32, new: ServiceRow) -> Result<(), DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_svc", service);
        let row = self.svc.entry(service).map_err(on_map(MAP, "yurt_svc"))?;
        let row = row.ok_or(out_of_bounds)?.as_ptr();
        // SAFETY: valid, aligned words of our mapping. Release: programs see the slots before the word that points to
        // them.
        unsafe {
            AtomicU64::from_ptr(&raw mut (*row).affinity).store(new.affinity, Ordering::Relaxed);
            AtomicU64::from_ptr(&raw mut (*row).word).store(new.word, Ordering::Release);
        }
        Ok(())
    }

    fn put(&mut self, key: RawKey, value: u64) -> Result<(), DataplaneError> {
        match key {
            RawKey::V4(key) => sys::map_update(self.table.fe4.as_fd(), &key, &value)
                .map_err(on_map("write", "yurt_fe4")),
            RawKey::V6(key) => sys::map_update(self.table.fe6.as_fd(), &key, &value)
                .map_err(on_map("write", "yurt_fe6")),
        }
    }

    fn delete(&mut self, key: RawKey) -> Result<(), DataplaneError> {
        match key {
            RawKey::V4(key) => sys::map_delete(self.table.fe4.as_fd(), &key)
                .map_err(on_map("delete from", "yurt_fe4")),
            RawKey::V6(key) => sys::map_delete(self.table.fe6.as_fd(), &key)
                .map_err(on_map("delete from", "yurt_fe6")),
        }
    }
}

impl Table {
    /// All rows. Rows that no agent would write are deleted, because no plan could name them.
    pub(super) fn rows(&self) -> Result<Rows, DataplaneError> {
        let (mut rows4, mut rows6) = self.all_rows()?;
        for (key, _) in rows4.extract_if(.., |(key, _)| !is_written(RawKey::V4(*key))) {
            sys::map_delete(self.fe4.as_fd(), &key).map_err(on_map("delete from", "yurt_fe4"))?;
        }
        for (key, _) in rows6.extract_if(.., |(key, _)| !is_written(RawKey::V6(*key))) {
            sys::map_delete(self.fe6.as_fd(), &key).map_err(on_map("delete from", "yurt_fe6"))?;
        }
        Ok((rows4, rows6))
    }

    /// All rows except those that no agent would write. Deletes nothing.
    pub(super) fn written_rows(&self) -> Result<Rows, DataplaneError> {
        let (mut rows4, mut rows6) = self.all_rows()?;
        rows4.retain(|(key, _)| is_written(RawKey::V4(*key)));
        rows6.retain(|(key, _)| is_written(RawKey::V6(*key)));
        Ok((rows4, rows6))
    }

    fn all_rows(&self) -> Result<Rows, DataplaneError> {
        let rows4 = sys::map_entries::<FrontendKey4, u64>(self.fe4.as_fd());
        let rows6 = sys::map_entries::<FrontendKey6, u64>(self.fe6.as_fd());
        Ok((
            rows4.map_err(on_map("read", "yurt_fe4"))?,
            rows6.map_err(on_map("read", "yurt_fe6"))?,
        ))
    }
}

impl Writer<'_> {
    /// Writes a run of new rows with one call for each family.
    pub(super) fn put_all(&self, ops: &[Op]) -> Result<(), DataplaneError> {
        let (mut keys4, mut values4) =
            (Vec::with_capacity(ops.len()), Vec::with_capacity(ops.len()));
        let (mut keys6, mut values6) = (Vec::new(), Vec::new());
        for op in ops {
            let Op::PutFrontend(key, row) = op else {
                continue;
            };
            let raw = RawKey::from(key);
            let value = raw_value(&raw, row);
            match raw {
                RawKey::V4(key) => {
                    keys4.push(key);
                    values4.push(value);
                }
                RawKey::V6(key) => {
                    keys6.push(key);
                    values6.push(value);
                }
            }
        }
        sys::map_update_all(self.table.fe4.as_fd(), &keys4, &values4)
            .map_err(on_map("write", "yurt_fe4"))?;
        sys::map_update_all(self.table.fe6.as_fd(), &keys6, &values6)
            .map_err(on_map("write", "yurt_fe6"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_made_after_each_other_count_generations_from_far_apart() {
        let start = first_generation(4242);
        for later in 1..200 {
            let distance = first_generation(4242 + later).wrapping_sub(start);
            assert!(
                (200..=u16::MAX - 200).contains(&distance),
                "{later}: {distance}"
            );
        }
    }
}
