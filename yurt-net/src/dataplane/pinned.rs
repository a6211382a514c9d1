//! A directory of pins: the maps and programs on devices of one feature, which plugins and agents share, and which outlive them.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::DataplaneError;
use super::bpf::{LoadedProgram, at, check_bpffs, create_dir, has_object, is_pinned_as};
use super::kept::KeptPins;
use super::sys::{self, MapInfo};

/// Which nobody else loads into while this lives.
pub(super) struct Place {
    pub(super) bpffs: PathBuf,
    pub(super) root: PathBuf,
    pub(super) dir: PathBuf,
    _lock: File,
}

/// Where it is.
pub(super) fn directory(bpffs: &Path, feature: &str, abi: u32) -> PathBuf {
    bpffs.join("yurt-net").join(format!("{feature}-v{abi}"))
}

impl Place {
    /// Makes it, and waits for whoever else loads into it.
    pub(super) fn lock(bpffs: &Path, feature: &str, abi: u32) -> Result<Self, DataplaneError> {
        sys::raise_memlock();
        check_bpffs(bpffs)?;
        let root = bpffs.join("yurt-net");
        let dir = directory(bpffs, feature, abi);
        create_dir(&root)?;
        create_dir(&dir)?;
        let lock = File::open(&dir).map_err(at("open", &dir))?;
        lock.lock().map_err(at("lock", &dir))?;
        Ok(Self {
            bpffs: bpffs.to_owned(),
            root,
            dir,
            _lock: lock,
        })
    }

    /// Whether all maps are there, and are what they should be.
    pub(super) fn has_maps(&self, maps: &[(&'static str, MapInfo)]) -> bool {
        maps.iter()
            .all(|(name, info)| is_pinned_as(&self.dir.join(name), info))
    }

    /// Makes room for maps: what is in the place of one and is something else cannot be kept.
    pub(super) fn clear(&self, maps: &[(&'static str, MapInfo)]) -> Result<(), DataplaneError> {
        has_object()?;
        for (name, info) in maps {
            let pin = self.dir.join(name);
            if pin.exists() && !is_pinned_as(&pin, info) {
                fs::remove_file(&pin).map_err(at("remove", &pin))?;
            }
        }
        Ok(())
    }

    /// Pins a program in the place of the one that is there.
    pub(super) fn pin(&self, program: &LoadedProgram) -> Result<(), DataplaneError> {
        let (pin, next) = (self.dir.join(program.name), self.dir.join("next"));
        if next.exists() {
            fs::remove_file(&next).map_err(at("remove", &next))?;
        }
        let pinned = sys::object_pin(program.fd.as_fd(), &next);
        pinned.map_err(on_program("pin", program.name))?;
        fs::rename(&next, &pin).map_err(at("rename", &next))
    }
}

/// Makes pins again that are gone, and returns which those were. Under the lock: a plugin may be loading into the directory.
pub(super) fn keep_all(
    bpffs: &Path,
    feature: &str,
    abi: u32,
    pins: &KeptPins,
) -> Result<Vec<&'static str>, DataplaneError> {
    if pins.missing().next().is_none() {
        return Ok(Vec::new());
    }
    let _place = Place::lock(bpffs, feature, abi)?;
    pins.keep().into_iter().collect()
}

pub(super) fn on_program(
    operation: &'static str,
    program: &'static str,
) -> impl Fn(std::io::Error) -> DataplaneError {
    move |source| DataplaneError::Link {
        operation,
        program,
        source,
    }
}
