//! Which edition of what the sources say the table maps hold: a map beside them that no program reads.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use crate::dataplane::DataplaneError;
use crate::dataplane::attach::bpffs::{is_pinned_as, open_map};
use crate::dataplane::error::{at, on_map};
use crate::dataplane::load::maps::{BPF_MAP_TYPE_ARRAY, info};
use crate::dataplane::sys;
use crate::table::edition::Edition;

pub(super) const NAME: &str = "yurt_edition";

/// Opens it; where there is none, a new one says that nothing is known.
pub(super) fn open(dir: &Path) -> Result<OwnedFd, DataplaneError> {
    let pin = dir.join(NAME);
    let wanted = info::<u32, Edition>(BPF_MAP_TYPE_ARRAY, 1, 0);
    if !is_pinned_as(&pin, &wanted) {
        if pin.exists() {
            fs::remove_file(&pin).map_err(at("remove", &pin))?;
        }
        let map = sys::map_create(NAME, &wanted).map_err(on_map("make", NAME))?;
        sys::object_pin(map.as_fd(), &pin).map_err(at("pin", &pin))?;
    }
    open_map(dir, NAME)
}

/// What the table maps of a directory hold; `None` where none are.
pub(super) fn read(dir: &Path) -> Option<Edition> {
    let map = open_map(dir, NAME).ok()?;
    let mut found = [Edition::default()];
    let is_read = sys::map_lookup(map.as_fd(), &0u32, &mut found);
    is_read.is_ok_and(|is_there| is_there).then_some(found[0])
}
