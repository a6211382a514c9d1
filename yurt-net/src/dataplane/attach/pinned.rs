//! The directory of one feature's pins: maps and programs that plugins and agents share, and that outlive both.

use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::os::fd::AsFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::bpffs::{check_bpffs, create_dir, holder, is_pinned_as};
use super::kept::KeptPins;
use crate::dataplane::DataplaneError;
use crate::dataplane::error::{at, on_program};
use crate::dataplane::load::{LoadedProgram, has_object};
use crate::dataplane::sys::{self, MapInfo};

/// How long another load is waited for. One takes tens of milliseconds, and a slow board may have a hundred Pods to
/// start.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(2);

/// A directory of pins, locked so that no other process loads into it while this value lives.
pub(in crate::dataplane) struct PinDir {
    pub(in crate::dataplane) bpffs: PathBuf,
    pub(in crate::dataplane) root: PathBuf,
    pub(in crate::dataplane) dir: PathBuf,
    _lock: File,
}

/// The path of a feature's directory.
pub(in crate::dataplane) fn directory(bpffs: &Path, feature: &str, abi: u32) -> PathBuf {
    bpffs.join("yurt-net").join(format!("{feature}-v{abi}"))
}

impl PinDir {
    /// Makes the directory, and waits while another process loads into it: when a node starts, dozens of plugins run at
    /// a time. The error names a process that takes too long.
    pub(in crate::dataplane) fn lock(
        bpffs: &Path,
        feature: &str,
        abi: u32,
    ) -> Result<Self, DataplaneError> {
        sys::raise_memlock();
        check_bpffs(bpffs)?;
        let root = bpffs.join("yurt-net");
        let dir = directory(bpffs, feature, abi);
        let lock = lock(PATIENCE, &dir, || {
            create_dir(&root)?;
            create_dir(&dir)
        })?;
        Ok(Self {
            bpffs: bpffs.to_owned(),
            root,
            dir,
            _lock: lock,
        })
    }

    /// Whether all maps are pinned, with the right kinds and sizes.
    pub(in crate::dataplane) fn has_maps(&self, maps: &[(&'static str, MapInfo)]) -> bool {
        maps.iter()
            .all(|(name, info)| is_pinned_as(&self.dir.join(name), info))
    }

    /// Removes pins of maps that have another kind or size.
    pub(in crate::dataplane) fn clear(
        &self,
        maps: &[(&'static str, MapInfo)],
    ) -> Result<(), DataplaneError> {
        has_object()?;
        clear(&self.dir, maps)
    }

    /// Pins a program in place of the one that is pinned.
    pub(in crate::dataplane) fn pin(&self, program: &LoadedProgram) -> Result<(), DataplaneError> {
        let (pin, next) = (self.dir.join(program.name), self.dir.join("next"));
        if next.exists() {
            fs::remove_file(&next).map_err(at("remove", &next))?;
        }
        let pinned = sys::object_pin(program.fd.as_fd(), &next);
        pinned.map_err(on_program("pin", program.name))?;
        fs::rename(&next, &pin).map_err(at("rename", &next))
    }
}

/// Removes pins in a directory that have the name of a map and are of another kind or size.
pub(in crate::dataplane) fn clear(
    dir: &Path,
    maps: &[(&'static str, MapInfo)],
) -> Result<(), DataplaneError> {
    for (name, info) in maps {
        let pin = dir.join(name);
        if pin.exists() && !is_pinned_as(&pin, info) {
            fs::remove_file(&pin).map_err(at("remove", &pin))?;
        }
    }
    Ok(())
}

/// Makes missing pins again, and returns their names. Under the lock, because a plugin may be loading into the
/// directory.
pub(in crate::dataplane) fn keep_all(
    bpffs: &Path,
    feature: &str,
    abi: u32,
    pins: &KeptPins,
) -> Result<Vec<&'static str>, DataplaneError> {
    if pins.missing().next().is_none() {
        return Ok(Vec::new());
    }
    let _locked = PinDir::lock(bpffs, feature, abi)?;
    pins.keep().into_iter().collect()
}

/// Locks a directory, and makes it again if somebody removes it meanwhile: only the lock of the directory at the path
/// counts.
fn lock(
    patience: Duration,
    dir: &Path,
    make: impl Fn() -> Result<(), DataplaneError>,
) -> Result<File, DataplaneError> {
    let started = Instant::now();
    loop {
        make()?;
        let file = match File::open(dir) {
            // It has just been removed; or the path is a link to nowhere, which stays so.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && started.elapsed() < patience =>
            {
                thread::sleep(PAUSE);
                continue;
            }
            file => file.map_err(at("open", dir))?,
        };
        match file.try_lock() {
            Ok(()) => {
                let identity =
                    |found: io::Result<Metadata>| found.ok().map(|it| (it.st_dev(), it.st_ino()));
                if identity(fs::metadata(dir)) == identity(file.metadata()) {
                    return Ok(file);
                }
            }
            Err(TryLockError::Error(error)) => return Err(at("lock", dir)(error)),
            Err(TryLockError::WouldBlock) if started.elapsed() >= patience => {
                return Err(DataplaneError::InUse {
                    what: dir.display().to_string(),
                    pid: holder(&file),
                });
            }
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_waits_and_is_told_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("guard-v1");
        let make = || fs::create_dir_all(&dir).map_err(at("make", &dir));
        let first = lock(Duration::ZERO, &dir, make).unwrap();
        let error = lock(PAUSE * 3, &dir, make).unwrap_err();
        let (named, pid) = (dir.display().to_string(), std::process::id().to_string());
        assert!(
            matches!(&error, DataplaneError::InUse { what, pid: by } if *what == named && *by == pid),
            "{error}"
        );
        thread::scope(|scope| {
            let second = scope.spawn(|| lock(Duration::from_secs(60), &dir, make).map(drop));
            drop(first);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_link_to_nowhere_is_an_error_and_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("guard-v1");
        std::os::unix::fs::symlink("nowhere", &dir).unwrap();
        let error = lock(PAUSE * 3, &dir, || create_dir(&dir)).unwrap_err();
        assert!(error.to_string().contains("guard-v1"), "{error}");
    }

    #[test]
    fn a_lock_on_what_was_removed_while_it_was_waited_for_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("guard-v1");
        let make = || fs::create_dir_all(&dir).map_err(at("make", &dir));
        let first = lock(Duration::ZERO, &dir, make).unwrap();
        fs::remove_dir(&dir).unwrap();
        // As after a cleanup: the first lock is on a directory that is gone, and excludes nobody.
        let second = lock(Duration::ZERO, &dir, make).unwrap();
        drop(first);
        lock(Duration::ZERO, &dir, make).unwrap_err();
        drop(second);
        lock(Duration::ZERO, &dir, make).unwrap();
    }
}
