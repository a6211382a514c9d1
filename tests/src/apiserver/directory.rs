//! A directory of manifests, and whether it has changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;

use super::objects;
use super::resource::Resource;

/// Values that differ once a file has changed.
type Stamp = (u64, u64, Option<SystemTime>);

/// The YAML and JSON files of a directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    seen: Option<BTreeMap<PathBuf, Stamp>>,
}

impl Directory {
    /// Starts without having read the directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            seen: None,
        }
    }

    /// All objects of known kinds, if a file has changed since the last call that succeeded.
    pub fn load_if_changed(&mut self) -> Result<Option<Vec<Value>>> {
        let files = self.files()?;
        if self.seen.as_ref() == Some(&files) {
            return Ok(None);
        }
        let mut objects = Vec::new();
        for path in files.keys() {
            let text = fs::read_to_string(path);
            let text = text.with_context(|| path.display().to_string())?;
            // YAML is a superset of JSON.
            let found = objects::documents(&text);
            objects.extend(found.with_context(|| path.display().to_string())?);
        }
        objects.retain(|object| Resource::of(object).is_some());
        self.seen = Some(files);
        Ok(Some(objects))
    }

    fn files(&self) -> Result<BTreeMap<PathBuf, Stamp>> {
        let mut files = BTreeMap::new();
        let entries = fs::read_dir(&self.path);
        for entry in entries.with_context(|| self.path.display().to_string())? {
            let path = entry?.path();
            if !is_manifest(&path) {
                continue;
            }
            match fs::metadata(&path) {
                Ok(meta) => {
                    let stamp = (meta.ino(), meta.len(), meta.modified().ok());
                    files.insert(path, stamp);
                }
                // The file was removed between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            }
        }
        Ok(files)
    }
}

fn is_manifest(path: &Path) -> bool {
    let is_hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(OsStr::to_str);
    !is_hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}
