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
//! Loading changes nothing on disk. A file that cannot be used stays until a good one takes its place, and is then set
//! aside under a name of its own: after a downgrade or an upgrade the other agent finds its own checkpoint again. Of
//! several usable files, the newest state wins.
//!
//! Everything here blocks: `Contents::of` runs in the loop, `Saver::save` in a thread. A directory must have only one
//! `Saver`; the agent holds a lock for that. `Pace` says when to save.

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

/// The size of one write to a file: as large as a frame.
const BUFFER_BYTES: usize = 64 * 1024;
/// Up to this size a journal is not worth a new file, however small the snapshot is. For a large snapshot the limit is
/// half of its size: the journal is replayed while the agent boots, and rewriting everything is then at most a quarter
/// of all writing.
const JOURNAL_BYTES: u64 = 256 * 1024;

/// What is wrong with a checkpoint, or with the disk it is on. The agent goes on without.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Something else is there.
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
    /// Writing it was interrupted: the states before that are used.
    #[error("{} ends unfinished after byte {kept}", path.display())]
    Torn {
        /// The file.
        path: PathBuf,
        /// Bytes that are good.
        kept: u64,
    },
    /// Its bytes are not what was written: the states before that are used.
    #[error("{} is damaged after byte {kept}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Bytes that are good.
        kept: u64,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] PathError),
}

/// A checkpoint that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Without rejections.
    pub snapshot: Snapshot,
    /// The source of the snapshot, and its age.
    pub provenance: Provenance,
}

impl Loaded {
    /// The service ports that were in force when it was saved.
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
    /// Forgets the resource versions, so that a source lists everything, if maps of this edition may be newer. A watch
    /// from these versions would bring the changes too, but a source counts as complete as soon as its watches are
    /// accepted, with what is here.
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
    /// The problems on the way; an absent file is none.
    pub problems: Vec<CheckpointError>,
}

/// For status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Bytes handed to the file system, including failed writes.
    pub bytes_written: u64,
    /// Saves that wrote something.
    pub writes: u64,
    /// How many of these wrote everything.
    pub whole_writes: u64,
    /// Milliseconds that the last save took, until it was on the medium.
    pub last_write_ms: u64,
    /// When that save ended, in seconds since 1970.
    pub last_write_at: Option<u64>,
    /// Saves that failed.
    pub errors: u64,
    /// The last error, until a save succeeds.
    pub last_error: Option<String>,
}

/// Keeps a checkpoint in step with the snapshots that it is given.
#[derive(Debug)]
pub struct Saver<D = Directory> {
    disk: D,
    /// The contents and end of `checkpoint`; `None` if they are not certain.
    saved: Option<Saved>,
    /// The name that the present `checkpoint` gets when it is replaced.
    aside: String,
    /// The name of `checkpoint` may not be on the medium: the agent that renamed it may have been killed before the
    /// fsync of the directory.
    is_name_loose: bool,
    stats: Stats,
}

#[derive(Debug)]
struct Saved {
    contents: Contents,
    provenance: Provenance,
    /// The length of the whole snapshot at the beginning of the file.
    base: u64,
    end: End,
}

impl Saver<Directory> {
    /// Reads the directory, which need not exist.
    pub fn open(directory: impl Into<PathBuf>) -> (Self, Found) {
        Self::on(Directory::new(directory))
    }
}

impl<D: Disk> Saver<D> {
    /// The same, on any disk.
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
        // A file of an older version cannot be appended to.
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

    /// The edition in `checkpoint`, if that is certain.
    pub fn edition(&self) -> Option<Edition> {
        self.saved.as_ref().map(|saved| saved.provenance.edition)
    }

    /// For status and metrics.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Looks whether `checkpoint` is still there with its length. True if it is not: the next save writes everything.
    pub fn has_lost(&mut self) -> bool {
        let Some(saved) = &self.saved else {
            return false;
        };
        // A file that cannot be looked at is reported by the save that needs it.
        let is_gone = matches!(self.disk.append(CURRENT, saved.end.length), Ok(None));
        if is_gone {
            self.saved = None;
        }
        is_gone
    }

    /// Brings the checkpoint in step, and returns whether it wrote anything. After an error the checkpoint holds the
    /// old state or the new one, and the next save writes everything anew.
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
            // The contents are equal to the saved ones. Keeping these lets the objects of the older snapshot be
            // dropped.
            saved.contents = contents;
            self.saved = Some(saved);
            return Ok(false);
        }
        let journal = saved.end.length - saved.base;
        let is_outgrown = journal > JOURNAL_BYTES.max(saved.base / 2);
        // Records for more than half of the objects cost nearly as much as writing everything, and everything would
        // follow soon.
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
            // The new file may be what fills the disk. If it cannot be removed, the first error says enough.
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

    /// Writes to a file, and returns once the bytes are on the medium.
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

/// The newer one by edition. Times count only if editions do not decide.
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

/// A file, with a count of the bytes that are written to it.
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
