//! Maps that are not part of the object, by aya.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{MapData, MapError, loaded_maps};

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
