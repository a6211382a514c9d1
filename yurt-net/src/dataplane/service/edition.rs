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
const ORIGIN: u32 = 1;

/// How the table came into the maps.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Origin {
    said_by: SaidBy,
    /// 1: `load` wrote it from the checkpoint, and no agent has written since.
    is_loaded: u64,
}
const _: () = assert!(size_of::<Origin>() == size_of::<Edition>());

/// What the maps record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) edition: Edition,
    /// The source that sent it.
    pub(super) said_by: SaidBy,
    /// It is what the checkpoint said when this node started, as `load` wrote it.
    pub(super) is_loaded: bool,
}

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

/// What the table maps in a directory record; `None` if there are none. Earlier versions did not record the source.
pub(super) fn read(dir: &Path) -> Option<Found> {
    let map = open_map(dir, NAME).ok()?;
    let mut edition = [Edition::default()];
    let is_read = sys::map_lookup(map.as_fd(), &EDITION, &mut edition);
    is_read.is_ok_and(|is_there| is_there).then_some(())?;
    let Origin { said_by, is_loaded } = origin(map.as_fd()).unwrap_or_default();
    Some(Found {
        edition: edition[0],
        said_by,
        is_loaded: is_loaded != 0,
    })
}

fn origin(map: BorrowedFd<'_>) -> io::Result<Origin> {
    let mut origin = [Origin::default()];
    sys::map_lookup(map, &ORIGIN, &mut origin)?;
    Ok(origin[0])
}

/// Writes both, the source first: if the process is killed in between, the new source is recorded with an older edition
/// than it sent.
pub(super) fn write(map: BorrowedFd<'_>, edition: Edition, said_by: SaidBy) -> io::Result<()> {
    let origin = Origin {
        said_by,
        is_loaded: 0,
    };
    sys::map_update(map, &ORIGIN, &origin)?;
    sys::map_update(map, &EDITION, &edition)
}

/// Records that `load` wrote the table.
pub(super) fn mark_loaded(map: BorrowedFd<'_>) -> io::Result<()> {
    let origin = Origin {
        is_loaded: 1,
        ..origin(map)?
    };
    sys::map_update(map, &ORIGIN, &origin)
}
