//! The end of all pins, and with them of the programs and maps.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::bpffs::{check_bpffs, lock, remove_dir};
use super::tc;
use crate::dataplane::DataplaneError;
use crate::dataplane::error::at;

/// Removes every pin, and with them the programs and maps. Refused while an agent runs. True when there was any.
pub fn cleanup(bpffs: &Path) -> Result<bool, DataplaneError> {
    Cleanup::begin(bpffs)?.finish()
}

/// Pins that are to go. Until it is finished nothing was touched, and no agent takes them over.
pub struct Cleanup {
    root: PathBuf,
    /// `None` where there are no pins.
    lock: Option<File>,
}

impl Cleanup {
    /// Refused while an agent has them.
    pub fn begin(bpffs: &Path) -> Result<Self, DataplaneError> {
        check_bpffs(bpffs)?;
        let root = bpffs.join("yurt-net");
        let lock = root.exists().then(|| lock(&root)).transpose()?;
        Ok(Self { root, lock })
    }

    /// Removes them; true when there were any. One that cannot be removed, which is the error, keeps no other in place.
    pub fn finish(self) -> Result<bool, DataplaneError> {
        let Self { root, lock } = self;
        if lock.is_none() {
            return Ok(false);
        }
        // Programs go before the maps that they read.
        let mut removed = remove_dir(&root.join("links")).and(tc::cleanup(&root));
        for entry in fs::read_dir(&root).map_err(at("read", &root))? {
            let path = entry.map_err(at("read", &root))?.path();
            // The directory of filters goes last: until then it shows the next run that there may be filters.
            if path != tc::directory(&root) {
                removed = removed.and(remove_dir(&path));
            }
        }
        removed.and_then(|()| fs::remove_dir(&root).map_err(at("remove", &root)))?;
        Ok(true)
    }
}
