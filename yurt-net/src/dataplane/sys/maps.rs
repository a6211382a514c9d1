//! Maps that are not part of the object, by aya.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapData, MapError, RingBuf, loaded_maps};

use super::bpf::{MapInfo, is_passed_over};

/// Makes a map; `info.id` is ignored.
pub(in crate::dataplane) fn map_create(name: &str, info: &MapInfo) -> io::Result<OwnedFd> {
    let map = aya_obj::Map::new_from_params(
        info.map_type,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.map_flags,
    );
    let map = MapData::create(map, name, None).map_err(io_error)?;
    map.fd().as_fd().try_clone_to_owned()
}

/// A ring that programs write to. It has one place to read from, so only one process may do that.
pub(in crate::dataplane) struct Ring(RingBuf<MapData>);

impl Ring {
    /// Opens a ring by its pin.
    pub(in crate::dataplane) fn open(pin: &Path) -> io::Result<Self> {
        let map = MapData::from_pin(pin).map_err(io_error)?;
        let map = Map::from_map_data(map).map_err(io_error)?;
        RingBuf::try_from(map).map(Self).map_err(io_error)
    }

    /// Takes the next record out of it.
    pub(in crate::dataplane) fn next<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.next().map(|record| see(&record))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// All maps in the kernel with this name, and their numbers. A map that may not be opened, because of a security module
/// or its owner, is left out: it is not ours. Needs `CAP_SYS_ADMIN`.
pub(in crate::dataplane) fn maps_named(name: &str) -> io::Result<Vec<(u32, OwnedFd)>> {
    let mut found = Vec::new();
    for map in loaded_maps() {
        let named = map.and_then(|map| match map.name() == name.as_bytes() {
            true => Ok(Some((map.id(), map.fd()?))),
            false => Ok(None),
        });
        match named.map_err(io_error) {
            Err(error) if is_passed_over(&error) => {}
            Err(error) => return Err(error),
            Ok(None) => {}
            Ok(Some((id, map))) => found.push((id, map.as_fd().try_clone_to_owned()?)),
        }
    }
    Ok(found)
}

fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::CreateError { io_error, .. } => io_error,
        MapError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}
