//! Pins that are made again when they go. The agent holds what is pinned, so nothing is lost with a pin but its name.
//!
//! That is noticed by the drift timer, within half a minute, and nothing is gained by noticing it earlier: until then programs stay
//! attached and maps in use. Only an agent that is killed in that half minute takes them along, and a watch of the directory would
//! not see another file system mounted over it.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::DataplaneError;
use super::bpf::{at, create_dir};
use super::sys;

/// Objects that are pinned in one directory, below the agent's.
#[derive(Debug)]
pub(super) struct KeptPins {
    pub(super) dir: PathBuf,
    objects: Vec<(&'static str, OwnedFd)>,
}

impl KeptPins {
    /// Opens what is pinned there under these names.
    pub(super) fn open(
        dir: &Path,
        names: impl IntoIterator<Item = &'static str>,
    ) -> Result<Self, DataplaneError> {
        let open = |name: &'static str| {
            let path = dir.join(name);
            let object = sys::object_get(&path).map_err(at("open", &path))?;
            Ok((name, object))
        };
        Ok(Self {
            dir: dir.to_owned(),
            objects: names.into_iter().map(open).collect::<Result<_, _>>()?,
        })
    }

    /// Pins that are not there, or are of something else.
    pub(super) fn missing(&self) -> impl Iterator<Item = PathBuf> {
        let pins = self.objects.iter();
        let pins = pins.map(|(name, object)| (self.dir.join(name), object));
        let missing = pins.filter(|(path, object)| !is_pinned(object.as_fd(), path));
        missing.map(|(path, _)| path)
    }

    /// Makes those again. What cannot be made keeps no other from being made.
    pub(super) fn keep(&self) -> Vec<Result<&'static str, DataplaneError>> {
        let missing = self.objects.iter();
        let missing = missing.filter(|(name, fd)| !is_pinned(fd.as_fd(), &self.dir.join(name)));
        let keep = |(name, object): &(&'static str, OwnedFd)| {
            keep_pin(object.as_fd(), &self.dir.join(name)).map(|_| *name)
        };
        missing.map(keep).collect()
    }
}

/// Whether just this object is pinned there.
pub(super) fn is_pinned(object: BorrowedFd<'_>, path: &Path) -> bool {
    let pinned = sys::object_get(path).and_then(|pinned| sys::object_id(pinned.as_fd()));
    match (pinned, sys::object_id(object)) {
        (Ok(pinned), Ok(object)) => pinned == object,
        _ => false,
    }
}

/// Sees to it that an object is pinned, with the directory and the one above it; true where it was not.
pub(super) fn keep_pin(object: BorrowedFd<'_>, path: &Path) -> Result<bool, DataplaneError> {
    if is_pinned(object, path) {
        return Ok(false);
    }
    for dir in [path.parent().and_then(Path::parent), path.parent()] {
        dir.map_or(Ok(()), create_dir)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("remove", path)(error));
        }
        _ => {}
    }
    sys::object_pin(object, path).map_err(at("pin", path))?;
    Ok(true)
}
