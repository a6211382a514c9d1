//! The table that the kernel serves, read through its pins, with or without an agent. Writes nothing.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use yurt_ebpf::abi::TABLE_ABI;

use super::decode::{decode, holds};
use super::table::Table;
use crate::dataplane::DataplaneError;
use crate::dataplane::attach::bpffs::{is_pinned_as, open_map};
use crate::dataplane::error::on_map;
use crate::dataplane::load::maps::table_maps;
use crate::dataplane::sys;
use crate::plan::{Capacity, MapImage};

/// How often the maps are read again if an agent has written to them meanwhile.
const ATTEMPTS: usize = 10;

/// The table maps, whatever agent wrote them.
pub struct TableInForce {
    /// Their contents. If an agent writes all the time, sets may be from two different moments.
    pub image: MapImage,
    /// Programs read them: otherwise nothing of this is in force.
    pub is_attached: bool,
}

impl TableInForce {
    /// Looks whether all of them can be read: an error says which one is absent, or another one in its place.
    pub fn check(bpffs: &Path) -> Result<(), DataplaneError> {
        Self::capacity(&directory(bpffs)).map(|_capacity| ())
    }

    /// Reads them; `None` if there are none of this version, because no agent of it has served this node since the last
    /// cleanup or boot.
    pub fn read(bpffs: &Path) -> Result<Option<Self>, DataplaneError> {
        let dir = directory(bpffs);
        let Some(capacity) = Self::capacity(&dir)? else {
            return Ok(None);
        };
        let table = Table::open(capacity, &dir)?;
        let arrays = table.mapped()?;
        let mut image = MapImage::empty(capacity);
        for _ in 0..ATTEMPTS {
            image = decode(capacity, &table.written_rows()?, &arrays);
            if holds(&image, &table.written_rows()?, &arrays) {
                break;
            }
        }
        let links = bpffs.join("yurt-net/links");
        let is_attached = fs::read_dir(links).is_ok_and(|mut pins| pins.next().is_some());
        Ok(Some(Self { image, is_attached }))
    }

    /// How large they are, if all of them are what an agent of this version makes; `None` if there are none.
    fn capacity(dir: &Path) -> Result<Option<Capacity>, DataplaneError> {
        if !dir.join("yurt_svc").exists() {
            return Ok(None);
        }
        let entries = |name| {
            let map = open_map(dir, name)?;
            let info = sys::map_info(map.as_fd()).map_err(on_map("inspect", name))?;
            Ok::<u32, DataplaneError>(info.max_entries)
        };
        let capacity = Capacity {
            frontends4: entries("yurt_fe4")?,
            frontends6: entries("yurt_fe6")?,
            services: entries("yurt_svc")?,
            slots4: entries("yurt_slot")?,
            slots6: entries("yurt_be6")?,
        };
        for (name, info) in table_maps(&capacity) {
            let path = dir.join(name);
            if !is_pinned_as(&path, &info) {
                return Err(DataplaneError::OtherMap { path });
            }
        }
        Ok(Some(capacity))
    }
}

/// Of the pins of this version.
fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("yurt-net/v{TABLE_ABI}"))
}
