//! Records which edition of the sources' word the table maps hold, and which source sent it: in a map that no program
//! reads.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::{fs, io};

use crate::dataplane::DataplaneError;
use crate::dataplane::attach::bpffs::{is_pinned_as, open_map};
use crate::dataplane::error::{at, on_map};
use crate::dataplane::load::maps::{BPF_MAP_TYPE_ARRAY, info};
use crate::dataplane::sys;
use crate::table::edition::{Edition, SaidBy};

pub(super) const NAME: &str = "yurt_edition";

/// Entry 0.
const EDITION: u32 = 0;
/// Entry 1, of the same size.
const SAID_BY: u32 = 1;
type SaidByEntry = [SaidBy; 2];
const _: () = assert!(size_of::<SaidByEntry>() == size_of::<Edition>());

/// Opens the map. A new one records nothing.
pub(super) fn open(dir: &Path) -> Result<OwnedFd, DataplaneError> {
    let pin = dir.join(NAME);
    let wanted = info::<u32, Edition>(BPF_MAP_TYPE_ARRAY, 2, 0);
    if !is_pinned_as(&pin, &wanted) {
        if pin.exists() {
            fs::remove_file(&pin).map_err(at("remove", &pin))?;
        }
        let map = sys::map_create(NAME, &wanted).map_err(on_map("make", NAME))?;
        sys::object_pin(map.as_fd(), &pin).map_err(at("pin", &pin))?;
    }
    open_map(dir, NAME)
}

/// The edition of the table maps in a directory, and the source that sent it; `None` if there are none. Earlier
/// versions did not record the source.
pub(super) fn read(dir: &Path) -> Option<(Edition, SaidBy)> {
    let map = open_map(dir, NAME).ok()?;
    let mut edition = [Edition::default()];
    let is_read = sys::map_lookup(map.as_fd(), &EDITION, &mut edition);
    is_read.is_ok_and(|is_there| is_there).then_some(())?;
    let mut said_by = [SaidByEntry::default()];
    let is_read = sys::map_lookup(map.as_fd(), &SAID_BY, &mut said_by);
    let is_known = is_read.is_ok_and(|is_there| is_there);
    let said_by = if is_known {
        said_by[0][0]
    } else {
        SaidBy::UNKNOWN
    };
    Some((edition[0], said_by))
}

/// Writes both, the source first: if the process is killed in between, the new source is recorded with an older edition
/// than it sent.
pub(super) fn write(map: BorrowedFd<'_>, edition: Edition, said_by: SaidBy) -> io::Result<()> {
    sys::map_update(map, &SAID_BY, &[said_by, SaidBy::UNKNOWN])?;
    sys::map_update(map, &EDITION, &edition)
}
