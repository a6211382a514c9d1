//! Removes all pins, and with them the programs and maps.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::bpffs::{check_bpffs, lock, remove_dir};
use super::tc;
use crate::dataplane::DataplaneError;
use crate::dataplane::error::at;

/// Removes every pin, and with them the programs and maps. Refused while an agent runs. True if there were any.
pub fn cleanup(bpffs: &Path) -> Result<bool, DataplaneError> {
    Cleanup::begin(bpffs)?.finish()
}

/// A cleanup that has begun: no agent can take the pins over. Nothing is touched before [`Self::finish`].
pub struct Cleanup {
    root: PathBuf,
    /// `None` where there are no pins.
    lock: Option<File>,
}

impl Cleanup {
    /// Refused while an agent has the pins.
    pub fn begin(bpffs: &Path) -> Result<Self, DataplaneError> {
        check_bpffs(bpffs)?;
        let root = bpffs.join("yurt-net");
        let lock = root.exists().then(|| lock(&root)).transpose()?;
        Ok(Self { root, lock })
    }

    /// Removes them; true if there were any. A pin that cannot be removed is the error, but the others are removed.
    pub fn finish(self) -> Result<bool, DataplaneError> {
        let Self { root, lock } = self;
        if lock.is_none() {
            return Ok(false);
        }
        // Programs go before the maps that they read.
        let mut removed = remove_dir(&root.join("links")).and(tc::cleanup(&root));
        for entry in fs::read_dir(&root).map_err(at("read", &root))? {
            let path = entry.map_err(at("read", &root))?.path();
            // The directory of filters goes last: while it exists, the next run knows that there may be filters.
            if path != tc::directory(&root) {
                removed = removed.and(remove_dir(&path));
            }
        }
        removed.and_then(|()| fs::remove_dir(&root).map_err(at("remove", &root)))?;
        Ok(true)
    }
}
