//! The table that the kernel serves, read through its pins, with or without an agent. Writes nothing.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

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
    /// Reads them; `None` if there are none of this version, because no agent of it has served this node since the last
    /// cleanup or boot.
    pub fn read(bpffs: &Path) -> Result<Option<Self>, DataplaneError> {
        let root = bpffs.join("yurt-net");
        let dir = root.join(format!("v{TABLE_ABI}"));
        if !dir.join("yurt_svc").exists() {
            return Ok(None);
        }
        let entries = |name| {
            let map = open_map(&dir, name)?;
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
        let table = Table::open(capacity, &dir)?;
        let arrays = table.mapped()?;
        let mut image = MapImage::empty(capacity);
        for _ in 0..ATTEMPTS {
            image = decode(capacity, &table.written_rows()?, &arrays);
            if holds(&image, &table.written_rows()?, &arrays) {
                break;
            }
        }
        let is_attached =
            fs::read_dir(root.join("links")).is_ok_and(|mut pins| pins.next().is_some());
        Ok(Some(Self { image, is_attached }))
    }
}
