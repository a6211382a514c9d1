//! What lies under the source's path, told without reading any file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::source::decode::Format;
use crate::source::error::SourceError;

/// Deeper than any tree of manifests; it bounds trees of links.
const MAX_DEPTH: usize = 32;

/// Tells one content of a file from another, as far as the file system can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Stamp {
    /// Clocks of file systems tick in up to 2 s; a second write within one tick leaves no trace in the stamp.
    const TICK_SECONDS: i64 = 2;

    /// True when the file was touched so close to `now` (Unix seconds) that a later write might look the same.
    pub(super) fn is_recent(&self, now: i64) -> bool {
        [self.modified.0, self.changed.0]
            .iter()
            .any(|seconds| now.abs_diff(*seconds) <= Self::TICK_SECONDS.unsigned_abs())
    }
}

/// A file of manifests, or something that might hide some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A regular file.
    File(Stamp),
    /// A file, directory or link that cannot be examined, and why.
    Unreadable(String),
}

/// The tree at one moment. Two equal scans mean that nothing has changed in between, as far as stamps tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// By path relative to the source, bytewise: the order in which equal objects win.
    pub(super) entries: BTreeMap<OsString, State>,
    /// Directories in which a change of the tree shows.
    pub(super) directories: BTreeSet<PathBuf>,
    /// The source is this one file.
    pub(super) is_single_file: bool,
}

impl Scan {
    /// Walks the tree at `root`: `*.yaml`, `*.yml` and `*.json`, nothing whose name starts with a dot.
    /// Links are followed, so the `..data` and `..2024_*` of a mounted ConfigMap are read through its
    /// visible links only.
    pub(super) fn take(root: &Path) -> Result<Self, SourceError> {
        let metadata = fs::metadata(root).map_err(|source| SourceError::Examine {
            path: root.to_owned(),
            source,
        })?;
        let mut scan = Self {
            entries: BTreeMap::new(),
            directories: BTreeSet::new(),
            is_single_file: metadata.is_file(),
        };
        if metadata.is_file() {
            let name = root.file_name().unwrap_or(root.as_os_str());
            scan.entries
                .insert(name.to_owned(), State::File(Stamp::from(&metadata)));
            scan.note_link_target(root);
        } else if metadata.is_dir() {
            scan.walk(
                root,
                OsStr::new(""),
                &mut vec![(metadata.dev(), metadata.ino())],
            )
            .map_err(|source| SourceError::List {
                path: root.to_owned(),
                source,
            })?;
        } else {
            return Err(SourceError::NotAFile {
                path: root.to_owned(),
            });
        }
        Ok(scan)
    }

    /// Adds the directory `path`, known as `relative`; `above` are the directories on the way, to end loops.
    fn walk(
        &mut self,
        path: &Path,
        relative: &OsStr,
        above: &mut Vec<(u64, u64)>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            let mut below = relative.to_owned();
            if !below.is_empty() {
                below.push("/");
            }
            below.push(&name);
            self.visit(&entry, below, above);
        }
        self.directories.insert(path.to_owned());
        Ok(())
    }

    fn visit(&mut self, entry: &DirEntry, relative: OsString, above: &mut Vec<(u64, u64)>) {
        let path = entry.path();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => {
                let is_gone =
                    error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err();
                let may_hide_manifests = is_link
                    || format_of(&relative).is_some()
                    || entry.file_type().is_ok_and(|kind| kind.is_dir());
                if may_hide_manifests && !is_gone {
                    let what = if is_link {
                        "link leads nowhere"
                    } else {
                        "cannot be examined"
                    };
                    self.entries
                        .insert(relative, State::Unreadable(format!("{what}: {error}")));
                }
                return;
            }
        };
        if metadata.is_dir() {
            let identity = (metadata.dev(), metadata.ino());
            if above.contains(&identity) || above.len() >= MAX_DEPTH {
                tracing::debug!(path = %path.display(), "link to a directory above, or too deep: not followed");
                return;
            }
            above.push(identity);
            let result = self.walk(&path, &relative, above);
            above.pop();
            if let Err(error) = result {
                // A file that was deleted during the walk is gone; any other error hides what is in it.
                if error.kind() != io::ErrorKind::NotFound {
                    self.entries.insert(
                        relative,
                        State::Unreadable(format!("cannot be listed: {error}")),
                    );
                }
            }
        } else if format_of(&relative).is_some() {
            let state = if metadata.is_file() {
                State::File(Stamp::from(&metadata))
            } else {
                State::Unreadable("is not a regular file".to_owned())
            };
            self.entries.insert(relative, state);
            if is_link {
                self.note_link_target(&path);
            }
        }
    }

    /// A change of what a link leads to shows in another directory.
    fn note_link_target(&mut self, link: &Path) {
        if let Ok(target) = fs::canonicalize(link)
            && let Some(directory) = target.parent()
        {
            self.directories.insert(directory.to_owned());
        }
    }
}

/// How a file of this name is written; `None` when its name is not that of a manifest.
pub(super) fn format_of(name: &OsStr) -> Option<Format> {
    match Path::new(name).extension()?.as_bytes() {
        b"yaml" | b"yml" => Some(Format::Yaml),
        b"json" => Some(Format::Json),
        _ => None,
    }
}
