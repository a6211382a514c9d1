//! Directories and pins in a bpf file system.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use crate::dataplane::DataplaneError;
use crate::dataplane::error::{at, on_map};
use crate::dataplane::sys::{self, MapInfo, MappedArray};
use crate::host::filesystem::Kind;

/// Whether `path` is the mount point of a bpf file system, or a directory of one.
pub fn check_bpffs(path: &Path) -> Result<(), DataplaneError> {
    if !Kind::Bpf.is_at(path).map_err(at("stat", path))? {
        return Err(DataplaneError::NotBpffs {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Makes a directory; an existing one is no error.
pub(in crate::dataplane) fn create_dir(path: &Path) -> Result<(), DataplaneError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(at("create", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a directory of pins; a missing one is no error.
pub(in crate::dataplane) fn remove_dir(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Locks the directory of all pins, which belongs to one agent.
pub(in crate::dataplane) fn lock(root: &Path) -> Result<File, DataplaneError> {
    let file = File::open(root).map_err(at("open", root))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(at("lock", root)(error)),
        Err(TryLockError::WouldBlock) => Err(DataplaneError::InUse {
            what: root.display().to_string(),
            pid: holder(&file),
        }),
    }
}

/// The process that holds the lock: `1: FLOCK ADVISORY WRITE 4242 00:2a:17 0 EOF` in `/proc/locks`.
pub(in crate::dataplane) fn holder(file: &File) -> String {
    let inode = file
        .metadata()
        .map(|metadata| metadata.st_ino())
        .unwrap_or_default();
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(1) == Some(&"FLOCK"))
        .find(|fields| {
            let id = fields.get(5).and_then(|id| id.rsplit(':').next());
            id == Some(inode.to_string().as_str())
        })
        .and_then(|fields| fields.get(4).map(|pid| (*pid).to_owned()))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// Opens a map by its pin.
pub(in crate::dataplane) fn open_map(
    dir: &Path,
    name: &'static str,
) -> Result<OwnedFd, DataplaneError> {
    sys::object_get(&dir.join(name)).map_err(on_map("open", name))
}

/// Opens an array by its pin, and maps it into our memory.
pub(in crate::dataplane) fn map_array<T: Copy>(
    dir: &Path,
    name: &'static str,
    length: u32,
) -> Result<MappedArray<T>, DataplaneError> {
    map_open(&open_map(dir, name)?, name, length)
}

/// Maps an array into our memory.
pub(in crate::dataplane) fn map_open<T: Copy>(
    map: &OwnedFd,
    name: &'static str,
    length: u32,
) -> Result<MappedArray<T>, DataplaneError> {
    MappedArray::new(map.as_fd(), length).map_err(on_map("map into memory", name))
}

/// Whether a map of this kind and size is pinned at a path.
pub(in crate::dataplane) fn is_pinned_as(path: &Path, wanted: &MapInfo) -> bool {
    sys::object_get(path)
        .and_then(|map| sys::map_info(map.as_fd()))
        .is_ok_and(|found| MapInfo { id: 0, ..found } == *wanted)
}
