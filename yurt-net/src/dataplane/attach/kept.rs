//! Pins that are made again when somebody removes them. The agent holds the pinned objects, so only the names are lost.
//!
//! The drift timer notices a missing pin within half a minute. Until then programs stay attached and maps in use; only
//! if the agent is killed in that time, they are lost. Watching the directory would not show that another file system
//! was mounted over it.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::bpffs::create_dir;
use crate::dataplane::DataplaneError;
use crate::dataplane::error::at;
use crate::dataplane::sys;

/// Objects that are pinned in one directory below the agent's.
#[derive(Debug)]
pub(in crate::dataplane) struct KeptPins {
    pub(in crate::dataplane) dir: PathBuf,
    objects: Vec<(&'static str, OwnedFd)>,
}

impl KeptPins {
    /// Opens the objects that are pinned there under these names.
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

    /// Paths where nothing or another object is pinned, and errors where that cannot be told.
    pub(in crate::dataplane) fn missing(
        &self,
    ) -> impl Iterator<Item = Result<PathBuf, DataplaneError>> {
        let pins = self.objects.iter();
        pins.filter_map(|(name, object)| missing(object.as_fd(), self.dir.join(name)))
    }

    /// Makes missing pins again. A failure does not stop the others.
    pub(in crate::dataplane) fn keep(&self) -> Vec<Result<&'static str, DataplaneError>> {
        let keep = |(name, object): &(&'static str, OwnedFd)| {
            let kept = keep_pin(object.as_fd(), &self.dir.join(name));
            kept.map(|is_new| is_new.then_some(*name)).transpose()
        };
        self.objects.iter().filter_map(keep).collect()
    }
}

/// The path, if nothing or another object is pinned there; an error where that cannot be told.
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

/// Whether this very object is pinned there. An error where that cannot be told, as when the process has no descriptors
/// left.
fn is_pinned(object: BorrowedFd<'_>, path: &Path) -> Result<bool, DataplaneError> {
    let pinned = match sys::object_get(path) {
        Ok(pinned) => pinned,
        Err(error) if is_absence(&error) => return Ok(false),
        Err(error) => return Err(at("look at", path)(error)),
    };
    let id = |object| sys::object_id(object).map_err(at("look at", path));
    Ok(id(pinned.as_fd())? == id(object)?)
}

/// Whether an error says that no object is pinned at a path. A plain file is refused with `EACCES`.
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

/// Pins an object if it is not pinned, and makes its directory and the one above. True if it was not pinned.
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
