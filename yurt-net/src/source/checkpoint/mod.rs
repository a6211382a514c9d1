//! The last live `Snapshot` on disk: what the agent boots from when there is no apiserver.
//!
//! | file | what |
//! |---|---|
//! | `checkpoint` | a whole snapshot, then what has changed since (see `codec`) |
//! | `checkpoint.new` | one that is being written |
//! | `checkpoint.old` | the one before: read where `checkpoint` is absent or damaged |
//! | `checkpoint.damaged`, `.foreign`, `.v7` | what was found as `checkpoint` and could not be used |
//!
//! A change appends the objects that differ, and the versions up to which the source has been followed. When what
//! was appended outgrows half of the snapshot, everything is written anew: new file, fsync, rename, fsync of the
//! directory. After an error the end of the file is uncertain, so the next save writes everything anew too.
//!
//! Loading changes nothing on disk. A file that cannot be used stays until a good one takes its place, and is set
//! aside then, under its own name: a newer agent finds its own checkpoint again after a downgrade, and so does an older
//! one. Where there are several, the newest state wins that this version can read.
//!
//! Everything here blocks: `Contents::of` in the loop, `Saver::save` in a thread. There must be one `Saver` for a
//! directory only; whoever runs the agent holds the lock for that. `Pace` says when to save.

use std::collections::BTreeSet;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::PathError;
use crate::host::disk::{Directory, Disk};
use crate::model::Snapshot;
use crate::table::ServiceKey;
use crate::table::edition::Edition;

mod codec;
mod contents;
pub mod keeper;
mod pace;
#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
mod v1;
mod v2;
mod v3;
mod v4;
mod v5;

use codec::{Encoder, End, Flaw, VERSION};
use contents::Record;
use pace::Pace;

pub use contents::{Contents, Provenance};
pub use pace::Occasion;

const CURRENT: &str = "checkpoint";
const NEW: &str = "checkpoint.new";
const OLD: &str = "checkpoint.old";

/// One write to a file: as large as a frame.
const BUFFER_BYTES: usize = 64 * 1024;
/// A journal up to this size is not worth a new file, however small the snapshot is. For a large one the limit is half
/// of the snapshot: boot waits while it is replayed, and writing anew is no more than a quarter of all writing then.
const JOURNAL_BYTES: u64 = 256 * 1024;

/// What is wrong with a checkpoint, or with the disk it is on. The agent goes on without.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Something else is there in its place.
    #[error("{} is not a checkpoint", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// An agent before this one wrote it.
    #[error("{} is of version {version}, before {VERSION}", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// An agent after this one wrote it.
    #[error("{} is of version {version}, after {VERSION}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Its writing was interrupted: what was complete before is used.
    #[error("{} ends unfinished after byte {kept}", path.display())]
    Torn {
        /// The file.
        path: PathBuf,
        /// Bytes that are good.
        kept: u64,
    },
    /// It is not what was written: what was complete before is used.
    #[error("{} is damaged after byte {kept}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Bytes that are good.
        kept: u64,
    },
    /// The disk.
    #[error(transparent)]
    Io(#[from] PathError),
}

/// A checkpoint that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Without rejections.
    pub snapshot: Snapshot,
    /// Where it came from, and when.
    pub provenance: Provenance,
}

impl Loaded {
    /// The service ports that were served when it was saved.
    pub fn in_force(&self) -> BTreeSet<ServiceKey> {
        let left_out = &self.provenance.left_out;
        let services = self.snapshot.services.values();
        let keys = services.flat_map(|service| {
            service.ports.iter().map(|port| ServiceKey {
                namespace: service.name.namespace.clone(),
                name: service.name.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
            })
        });
        keys.filter(|key| left_out.binary_search(key).is_err())
            .collect()
    }
}

impl Loaded {
    /// Has all of it listed, where maps of this edition may hold more. A watch from its versions would bring that, too,
    /// but a source is whole once its watches are accepted: with what is here, for as long as they say nothing.
    pub fn list_what_is_newer(&mut self, maps: Edition) {
        if !self.provenance.edition.may_replace(maps) {
            self.provenance.resource_versions.clear();
        }
    }
}

/// What a directory held.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest state that could be read.
    pub loaded: Option<Loaded>,
    /// What was wrong on the way; an absent file is not.
    pub problems: Vec<CheckpointError>,
}

/// For status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Bytes handed to the file system, also in vain.
    pub bytes_written: u64,
    /// Saves that wrote.
    pub writes: u64,
    /// Of these, saves of everything.
    pub whole_writes: u64,
    /// Milliseconds that the last of them took, until it was on the medium.
    pub last_write_ms: u64,
    /// When that was, in seconds since 1970.
    pub last_write_at: Option<u64>,
    /// Saves that failed.
    pub errors: u64,
    /// Why, until a save succeeds.
    pub last_error: Option<String>,
}

/// Keeps a checkpoint in step with the snapshots that it is given.
#[derive(Debug)]
pub struct Saver<D = Directory> {
    disk: D,
    /// What `checkpoint` says, and how it ends; `None` when that is not certain.
    saved: Option<Saved>,
    /// The name that `checkpoint` takes when it is replaced.
    aside: String,
    /// The name of `checkpoint` may not be on the medium: whoever gave it may have been killed before it was.
    is_name_loose: bool,
    stats: Stats,
}

#[derive(Debug)]
struct Saved {
    contents: Contents,
    provenance: Provenance,
    /// Length of the snapshot at its beginning.
    base: u64,
    end: End,
}

impl Saver<Directory> {
    /// Reads what there is in the directory, which need not exist.
    pub fn open(directory: impl Into<PathBuf>) -> (Self, Found) {
        Self::on(Directory::new(directory))
    }
}

impl<D: Disk> Saver<D> {
    /// The same on any disk.
    pub fn on(disk: D) -> (Self, Found) {
        let mut saver = Self {
            disk,
            saved: None,
            aside: OLD.to_owned(),
            is_name_loose: true,
            stats: Stats::default(),
        };
        let mut found = Found::default();
        found.loaded = saver.load(CURRENT, &mut found.problems).or_else(|| {
            let spares = [OLD, &version_name(VERSION)];
            let loaded = spares
                .iter()
                .filter_map(|name| saver.load(name, &mut found.problems));
            loaded.reduce(newer)
        });
        (saver, found)
    }

    fn load(&mut self, name: &str, problems: &mut Vec<CheckpointError>) -> Option<Loaded> {
        let path = self.disk.path(name);
        let is_current = name == CURRENT;
        let replayed = match self.disk.read(name) {
            Ok(file) => codec::replay(BufReader::with_capacity(BUFFER_BYTES, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => codec::Replayed {
                flaw: Some(Flaw::Read(error)),
                ..codec::Replayed::default()
            },
        };
        let is_whole = replayed.flaw.is_none();
        if let Some(flaw) = replayed.flaw {
            if is_current && replayed.state.is_none() {
                self.aside = match flaw {
                    Flaw::Foreign => "checkpoint.foreign".to_owned(),
                    Flaw::Version(version) => version_name(version),
                    Flaw::Torn(_) | Flaw::Damaged(_) | Flaw::Read(_) => {
                        "checkpoint.damaged".to_owned()
                    }
                };
            }
            problems.push(match flaw {
                Flaw::Foreign => CheckpointError::Foreign { path },
                Flaw::Version(version) if version < VERSION => {
                    CheckpointError::Older { path, version }
                }
                Flaw::Version(version) => CheckpointError::Newer { path, version },
                Flaw::Torn(kept) => CheckpointError::Torn { path, kept },
                Flaw::Damaged(kept) => CheckpointError::Damaged { path, kept },
                Flaw::Read(source) => PathError::of("read", &path)(source).into(),
            });
        }
        let (snapshot, provenance) = replayed.state?;
        // Whoever wrote an older version could not read on.
        if is_current && is_whole && replayed.version == VERSION {
            self.saved = Some(Saved {
                contents: Contents::of(&snapshot),
                provenance: provenance.clone(),
                base: replayed.base,
                end: replayed.end,
            });
        }
        Some(Loaded {
            snapshot,
            provenance,
        })
    }

    /// Which edition `checkpoint` says, where that is certain.
    pub fn edition(&self) -> Option<Edition> {
        self.saved.as_ref().map(|saved| saved.provenance.edition)
    }

    /// For status and metrics.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Looks whether `checkpoint` is still there, as long as it was left. True when it is not: the next save writes
    /// everything.
    pub fn has_lost(&mut self) -> bool {
        let Some(saved) = &self.saved else {
            return false;
        };
        // What cannot be looked at is told by the save that needs it.
        let is_gone = matches!(self.disk.append(CURRENT, saved.end.length), Ok(None));
        if is_gone {
            self.saved = None;
        }
        is_gone
    }

    /// Brings the checkpoint in step, and returns whether that took any writing. After an error the checkpoint says
    /// what it said before or what it should say, and the next save will not build on it.
    pub fn save(
        &mut self,
        contents: Contents,
        provenance: &Provenance,
        occasion: Occasion,
    ) -> Result<bool, CheckpointError> {
        let started = Instant::now();
        let saved = self.saved.take();
        let result = self.try_save(saved, contents, provenance, occasion);
        match &result {
            Ok(has_written) => {
                if *has_written {
                    let took = started.elapsed().as_millis();
                    self.stats.last_write_ms = u64::try_from(took).unwrap_or(u64::MAX);
                    self.stats.last_write_at = Some(crate::host::clock::unix_seconds());
                    self.stats.writes += 1;
                }
                self.stats.last_error = None;
            }
            Err(error) => {
                self.stats.errors += 1;
                self.stats.last_error = Some(crate::error::chain(error));
            }
        }
        result
    }

    fn try_save(
        &mut self,
        saved: Option<Saved>,
        contents: Contents,
        provenance: &Provenance,
        occasion: Occasion,
    ) -> Result<bool, CheckpointError> {
        let Some(mut saved) = saved else {
            return self.replace(contents, provenance);
        };
        let changes = saved.contents.changes(&contents);
        let has_changed = !changes.is_empty()
            || saved.provenance.source != provenance.source
            || saved.provenance.left_out != provenance.left_out;
        let is_due = match occasion {
            Occasion::Changes => has_changed,
            Occasion::Everything => has_changed || saved.provenance != *provenance,
        };
        if !is_due {
            // Equal, but not the same: what was compared with can be dropped.
            saved.contents = contents;
            self.saved = Some(saved);
            return Ok(false);
        }
        let journal = saved.end.length - saved.base;
        let is_outgrown = journal > JOURNAL_BYTES.max(saved.base / 2);
        // More than half: nearly as much as everything, and then what it replaces.
        if is_outgrown || changes.len() > contents.len() / 2 + 16 {
            return self.replace(contents, provenance);
        }
        match self.append(saved.end, &changes, provenance)? {
            Some(end) => {
                self.saved = Some(Saved {
                    contents,
                    provenance: provenance.clone(),
                    base: saved.base,
                    end,
                });
                Ok(true)
            }
            None => self.replace(contents, provenance),
        }
    }

    /// Writes changes behind the state that ends at `end`; `None` when the file is not what it was.
    fn append(
        &mut self,
        end: End,
        changes: &[Record],
        provenance: &Provenance,
    ) -> Result<Option<End>, CheckpointError> {
        let io = self.error("append to", CURRENT);
        let Some(file) = self.disk.append(CURRENT, end.length).map_err(io)? else {
            return Ok(None);
        };
        let end = self.write(CURRENT, file, |out| {
            let mut encoder = Encoder::resume(out, end);
            let mut changes = changes.iter();
            changes.try_for_each(|change| encoder.record(change))?;
            encoder.finish(provenance)
        })?;
        if self.is_name_loose {
            self.sync_names()?;
        }
        Ok(Some(end))
    }

    /// Writes everything to a new file, and puts that in the place of the old one.
    fn replace(
        &mut self,
        contents: Contents,
        provenance: &Provenance,
    ) -> Result<bool, CheckpointError> {
        let file = self.disk.create(NEW).map_err(self.error("create", NEW))?;
        let written = self.write(NEW, file, |out| {
            let mut encoder = Encoder::begin(out)?;
            let mut records = contents.records();
            records.try_for_each(|record| encoder.record(&record))?;
            encoder.finish(provenance)
        });
        let end = written.inspect_err(|_| {
            // It may be what fills the disk. That it cannot be removed is no error besides.
            let _ = self.disk.remove(NEW);
        })?;
        let aside = self.aside.clone();
        match self.disk.rename(CURRENT, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(self.error("set aside", CURRENT))?,
        }
        self.disk
            .rename(NEW, CURRENT)
            .map_err(self.error("rename", NEW))?;
        OLD.clone_into(&mut self.aside);
        self.is_name_loose = true;
        self.sync_names()?;
        self.stats.whole_writes += 1;
        self.saved = Some(Saved {
            contents,
            provenance: provenance.clone(),
            base: end.length,
            end,
        });
        Ok(true)
    }

    fn sync_names(&mut self) -> Result<(), CheckpointError> {
        let error = self.error("sync the directory of", CURRENT);
        self.disk.sync().map_err(error)?;
        self.is_name_loose = false;
        Ok(())
    }

    /// Writes to a file and returns when that is on the medium.
    fn write(
        &mut self,
        name: &str,
        file: D::File,
        encode: impl FnOnce(Out<'_, D::File>) -> io::Result<(Out<'_, D::File>, End)>,
    ) -> Result<End, CheckpointError> {
        let (write_error, sync_error) = (self.error("write", name), self.error("sync", name));
        let bytes = &mut self.stats.bytes_written;
        let out = BufWriter::with_capacity(BUFFER_BYTES, Counted { file, bytes });
        let (out, end) = encode(out).map_err(write_error)?;
        let file = &out.get_ref().file;
        self.disk.sync_file(file).map_err(sync_error)?;
        Ok(end)
    }

    fn error(
        &self,
        operation: &'static str,
        name: &str,
    ) -> impl Fn(io::Error) -> CheckpointError + use<D> {
        let error = PathError::of(operation, &self.disk.path(name));
        move |source| error(source).into()
    }
}

/// By their editions; times count only where those say nothing.
fn newer(one: Loaded, other: Loaded) -> Loaded {
    let (a, b) = (&one.provenance, &other.provenance);
    let is_other = b.edition.may_replace(a.edition)
        || (!a.edition.may_replace(b.edition) && b.synced_at >= a.synced_at);
    if is_other { other } else { one }
}

fn version_name(version: u32) -> String {
    format!("{CURRENT}.v{version}")
}

type Out<'a, F> = BufWriter<Counted<'a, F>>;

/// A file, and the count of what is written to it.
struct Counted<'a, F> {
    file: F,
    bytes: &'a mut u64,
}

impl<F: Write> Write for Counted<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        *self.bytes += u64::try_from(written).unwrap_or(u64::MAX);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
