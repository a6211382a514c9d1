//! Pins that are made again when they go. The agent holds what is pinned, so nothing is lost with a pin but its name.
//!
//! That is noticed by the drift timer, within half a minute, and nothing is gained by noticing it earlier: until then programs stay
//! attached and maps in use. Only an agent that is killed in that half minute takes them along, and a watch of the directory would
//! not see another file system mounted over it.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::bpffs::create_dir;
use crate::dataplane::DataplaneError;
use crate::dataplane::error::at;
use crate::dataplane::sys;

/// Objects that are pinned in one directory, below the agent's.
#[derive(Debug)]
pub(in crate::dataplane) struct KeptPins {
    pub(in crate::dataplane) dir: PathBuf,
    objects: Vec<(&'static str, OwnedFd)>,
}

impl KeptPins {
    /// Opens what is pinned there under these names.
    pub(in crate::dataplane) fn open(
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

    /// Pins that are not there, or are of something else; and those of which that cannot be said.
    pub(in crate::dataplane) fn missing(
        &self,
    ) -> impl Iterator<Item = Result<PathBuf, DataplaneError>> {
        let pins = self.objects.iter();
        pins.filter_map(|(name, object)| missing(object.as_fd(), self.dir.join(name)))
    }

    /// Makes those again. What cannot be made keeps no other from being made.
    pub(in crate::dataplane) fn keep(&self) -> Vec<Result<&'static str, DataplaneError>> {
        let keep = |(name, object): &(&'static str, OwnedFd)| {
            let kept = keep_pin(object.as_fd(), &self.dir.join(name));
            kept.map(|is_new| is_new.then_some(*name)).transpose()
        };
        self.objects.iter().filter_map(keep).collect()
    }
}

/// The pin, if it is not there or is of something else; an error where that cannot be said.
pub(in crate::dataplane) fn missing(
    object: BorrowedFd<'_>,
    path: PathBuf,
) -> Option<Result<PathBuf, DataplaneError>> {
    match is_pinned(object, &path) {
        Ok(true) => None,
        Ok(false) => Some(Ok(path)),
        Err(error) => Some(Err(error)),
    }
}

/// Whether just this object is pinned there. That it cannot be looked at, as by who has no more descriptors, says nothing of it.
fn is_pinned(object: BorrowedFd<'_>, path: &Path) -> Result<bool, DataplaneError> {
    let pinned = match sys::object_get(path) {
        Ok(pinned) => pinned,
        Err(error) if is_absence(&error) => return Ok(false),
        Err(error) => return Err(at("look at", path)(error)),
    };
    let id = |object| sys::object_id(object).map_err(at("look at", path));
    Ok(id(pinned.as_fd())? == id(object)?)
}

/// There is nothing at a path, or what is there is no object (a file is refused as if it was somebody else's).
fn is_absence(error: &io::Error) -> bool {
    let absence = [
        libc::ENOENT,
        libc::ENOTDIR,
        libc::ELOOP,
        libc::EACCES,
        libc::EINVAL,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| absence.contains(&code))
}

/// Sees to it that an object is pinned, with the directory and the one above it; true where it was not.
pub(in crate::dataplane) fn keep_pin(
    object: BorrowedFd<'_>,
    path: &Path,
) -> Result<bool, DataplaneError> {
    if is_pinned(object, path)? {
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
