//! The ledger on disk: two journals that say the same, one that survives a reboot and one that cannot fail with the
//! disk.
//!
//! | file | what |
//! |---|---|
//! | `<state-dir>/ledger/ledger` | what is retained across reboots |
//! | `/run/yurt-net/<state-dir>/ledger` | the same, in memory (tmpfs): who has what in this boot |
//! | `/run/yurt-net/<state-dir>/lock`, and the directory on disk | held by whoever reads in order to write |
//! | `ledger.new`, `ledger.damaged` | one that is being written; what could not be read |
//!
//! Every change goes to both journals, and is confirmed when one of them has it. Each journal is a beginning of the
//! same history, so the longer one is right, and the other is written anew with the next change. The journal in memory
//! ensures that no address has two owners: a full, read-only or damaged disk does not affect it, and no owner outlives
//! a boot. The journal on disk brings addresses back after a reboot; a Pod that it misses because the disk was full
//! gets another address then.
//!
//! Everything here blocks. The caller of `commit` must hold the [`Lock`] since before `open`.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use super::codec::{self, Flaw, VERSION};
use super::{Ledger, Record};
use crate::error::PathError;
use crate::host::disk::{Directory, Disk};

pub(super) const CURRENT: &str = "ledger";
const NEW: &str = "ledger.new";
const DAMAGED: &str = "ledger.damaged";

/// A journal beyond this size is replaced by a new file: a board reads it for each ADD and DEL. Tests reach it often.
pub(super) const JOURNAL_BYTES: u64 = if cfg!(test) { 2 * 1024 } else { 64 * 1024 };

/// The most that is read of a journal. Compaction keeps it far smaller: a crash or another program made this one long.
pub(super) const MOST_BYTES: u64 = 16 << 20;

/// The reason why a ledger cannot be used, or part of it was lost.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Its version is not known, so it cannot be known which addresses are taken.
    #[error(
        "{} is of version {version}, and this yurt-net reads version {VERSION}: use the yurt-net that wrote it, or move the file \
         away, which forgets what is retained", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file holds something else. It is set aside.
    #[error("{} is not a ledger", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Some of its records are lost. It is set aside, and the rest is used.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Its end is treated as lost. It is set aside, and what was read is used.
    #[error("{} is longer than {MOST_BYTES} bytes; the rest is not read", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Another process holds it.
    #[error("{} is held by another process for more than {} s", path.display(), waited.as_secs())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long this process waited.
        waited: Duration,
    },
    /// Another program has removed the locked file, and another process may have written since.
    #[error("{} was removed while it was held: try again", path.display())]
    LockLost {
        /// The lock.
        path: PathBuf,
    },
    /// A record cannot be written as JSON.
    #[error("encode a record")]
    Encode(#[from] serde_json::Error),
    /// The disk refuses.
    #[error(transparent)]
    Io(#[from] PathError),
    /// Neither journal can be written.
    #[error("the ledger can be written neither on disk ({on_disk}) nor in memory")]
    Nowhere {
        /// The error on disk, in words.
        on_disk: String,
        /// The error in memory.
        #[source]
        in_memory: Box<Self>,
    },
}

/// The directories of a ledger.
#[derive(Clone, Debug)]
pub struct LedgerDirs {
    /// The agent's state directory.
    pub state_dir: PathBuf,
    /// A directory in memory, which a reboot empties.
    pub run_dir: PathBuf,
}

impl LedgerDirs {
    /// The default of `run_dir`.
    pub const RUN_DIR: &str = "/run/yurt-net";

    fn on_disk(&self) -> PathBuf {
        self.state_dir.join("ledger")
    }

    /// The directory in memory. Each state directory has its own, however its path is spelled, because two ledgers must
    /// not mix, and one ledger must not have two locks. The name is the path, with `-` between its components and
    /// percent-encoding within them.
    pub fn in_memory(&self) -> PathBuf {
        let components = self.state_dir.components().filter_map(|part| match part {
            Component::Normal(name) => Some(encoded(name.as_bytes(), b"-%")),
            Component::ParentDir => Some(encoded(b"..", b".")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
        let name = components.collect::<Vec<_>>().join(&b'-');
        self.run_dir.join(OsStr::from_bytes(&name))
    }
}

fn encoded(name: &[u8], special: &[u8]) -> Vec<u8> {
    let encode = |byte: &u8| {
        if special.contains(byte) {
            format!("%{byte:02x}").into_bytes()
        } else {
            vec![*byte]
        }
    };
    name.iter().flat_map(encode).collect()
}

/// The right to write a ledger. It ends with this value, or with the process.
///
/// It is two locks: on a file beside the journal in memory, and on the directory of the journal on disk. If one of the
/// directories is removed while it is locked, the next process would lock another one under the same name; the other
/// lock then keeps the two apart. A lock counts only while it is found at its path.
#[derive(Debug)]
pub struct Lock(Vec<Held>);

#[derive(Debug)]
struct Held {
    path: PathBuf,
    file: File,
}

impl Held {
    fn is_in_place(&self) -> bool {
        let identity = |found: io::Result<Metadata>| found.ok().map(|it| (it.dev(), it.ino()));
        // The target of the path as it was opened: the directory may be a link to another disk.
        let there = identity(std::fs::metadata(&self.path));
        there.is_some() && there == identity(self.file.metadata())
    }
}

impl Lock {
    /// Waits for the right.
    pub fn take(dirs: &LedgerDirs, patience: Duration) -> Result<Self, LedgerError> {
        let path = dirs.in_memory().join("lock");
        let started = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(lock) = Self::try_take(dirs, &path)? {
                return Ok(lock);
            }
            if started.elapsed() >= patience {
                return Err(LedgerError::Locked {
                    path,
                    waited: patience,
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(4));
        }
    }

    /// `None` if another process holds it, or has removed the locked file.
    fn try_take(dirs: &LedgerDirs, path: &Path) -> Result<Option<Self>, LedgerError> {
        let io = |operation, source| LedgerError::from(PathError::of(operation, path)(source));
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dirs.in_memory());
        made.map_err(|source| io("make the directory of", source))?;
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // A pipe in its place is refused; opening it must not block.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|source| io("open", source))?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(io("lock", error)),
        }
        let path = path.to_owned();
        let mut held = vec![Held { path, file }];
        // The directory is absent until the first change is written. A disk that can be neither written nor locked does
        // not affect the ledger in memory.
        // the ledger in memory.
        let path = dirs.on_disk();
        if let Ok(file) = File::open(&path) {
            match file.try_lock() {
                Ok(()) => held.push(Held { path, file }),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(_)) => {}
            }
        }
        let is_in_place = held.iter().all(Held::is_in_place);
        Ok(is_in_place.then_some(Self(held)))
    }

    /// Whether no other process can have taken it since: one of its parts is still at its path. The caller asks this
    /// after everything is written, and before acting on it.
    pub fn check(&self) -> Result<(), LedgerError> {
        match self.0.iter().any(Held::is_in_place) {
            true => Ok(()),
            false => Err(LedgerError::LockLost {
                path: self
                    .0
                    .first()
                    .map(|held| held.path.clone())
                    .unwrap_or_default(),
            }),
        }
    }
}

/// A ledger and its two journals.
#[derive(Debug)]
pub struct Store<D = Directory> {
    on_disk: Journal<D>,
    in_memory: Journal<D>,
    ledger: Ledger,
    sequence: u64,
    /// The number of the last change that the journal on disk has.
    durable_sequence: u64,
    alarms: Vec<LedgerError>,
}

impl Store<Directory> {
    /// Reads the two journals, which may be absent.
    pub fn open(dirs: &LedgerDirs) -> Result<Self, LedgerError> {
        Self::on(
            Directory::new(dirs.on_disk()),
            Directory::new(dirs.in_memory()),
        )
    }
}

impl<D: Disk> Store<D> {
    /// Reads a ledger from any two disks.
    pub fn on(on_disk: D, in_memory: D) -> Result<Self, LedgerError> {
        let mut alarms = Vec::new();
        let (on_disk, durable) = Journal::open(on_disk, true, &mut alarms)?;
        let (in_memory, volatile) = Journal::open(in_memory, false, &mut alarms)?;
        // The one with the longer history; if they are equal, an undamaged one.
        let rank = |replayed: &codec::Replayed| {
            let is_whole = matches!(replayed.flaw, None | Some(Flaw::Torn));
            (replayed.sequence, is_whole)
        };
        let durable_sequence = durable.sequence;
        let right = if rank(&volatile) > rank(&durable) {
            volatile
        } else {
            durable
        };
        Ok(Self {
            on_disk,
            in_memory,
            ledger: right.ledger,
            sequence: right.sequence,
            durable_sequence,
            alarms,
        })
    }

    /// The state.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The state, for a reader: a node may have thousands of entries, and one copy is enough.
    pub(super) fn into_ledger(self) -> Ledger {
        self.ledger
    }

    /// How many changes the journal on disk lacked when it was opened: a reboot now would lose them. The next change
    /// that can be written there repairs that.
    pub fn behind(&self) -> u64 {
        self.sequence - self.durable_sequence
    }

    /// Errors that have cost nothing yet, for operators.
    pub fn alarms(&self) -> &[LedgerError] {
        &self.alarms
    }

    /// Takes up changes: all of them, or a beginning of them. After an error, the caller must not act on them.
    pub fn commit(&mut self, records: Vec<Record>) -> Result<(), LedgerError> {
        if records.is_empty() {
            return Ok(());
        }
        let before = self.sequence;
        let lines = codec::changes(before, &records)?;
        let mut must_survive = false;
        for record in records {
            must_survive |= self.ledger.must_survive(&record);
            self.ledger.apply(record);
            self.sequence += 1;
        }
        let step = Step {
            ledger: &self.ledger,
            before,
            after: self.sequence,
            lines: &lines,
            must_survive,
        };
        match (self.in_memory.write(&step), self.on_disk.write(&step)) {
            (Ok(()), Ok(())) => {}
            (Ok(()), Err(error)) | (Err(error), Ok(())) => self.alarms.push(error),
            (Err(in_memory), Err(on_disk)) => {
                return Err(LedgerError::Nowhere {
                    on_disk: crate::error::chain(&on_disk),
                    in_memory: Box::new(in_memory),
                });
            }
        }
        Ok(())
    }
}

/// A change of the ledger that is to be written.
struct Step<'a> {
    ledger: &'a Ledger,
    before: u64,
    after: u64,
    lines: &'a [u8],
    must_survive: bool,
}

#[derive(Debug)]
struct Journal<D> {
    disk: D,
    is_durable: bool,
    /// The end of its file; `None` if nothing can be appended.
    end: Option<End>,
    /// Whether the file is set aside when it is replaced.
    is_damaged: bool,
}

#[derive(Clone, Copy, Debug)]
struct End {
    sequence: u64,
    base: u64,
    length: u64,
}

impl<D: Disk> Journal<D> {
    fn open(
        disk: D,
        is_durable: bool,
        alarms: &mut Vec<LedgerError>,
    ) -> Result<(Self, codec::Replayed), LedgerError> {
        let mut journal = Self {
            disk,
            is_durable,
            end: None,
            is_damaged: false,
        };
        let path = journal.disk.path(CURRENT);
        let mut bytes = Vec::new();
        let read = journal
            .disk
            .read(CURRENT)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((journal, codec::Replayed::default()));
            }
            Err(error) => {
                journal.is_damaged = true;
                alarms.push(journal.error("read", CURRENT)(error));
            }
        }
        let most = usize::try_from(MOST_BYTES).unwrap_or(usize::MAX);
        let is_too_long = bytes.len() > most;
        bytes.truncate(most);
        let mut replayed = codec::replay(&bytes);
        if is_too_long && matches!(replayed.flaw, None | Some(Flaw::Torn | Flaw::Damaged)) {
            replayed.flaw = Some(Flaw::TooLong);
        }
        match replayed.flaw {
            None => {
                journal.end = Some(End {
                    sequence: replayed.sequence,
                    base: replayed.base,
                    length: replayed.length,
                });
            }
            Some(Flaw::Torn) => {}
            Some(Flaw::Version(version)) => return Err(LedgerError::Version { path, version }),
            Some(flaw) => {
                journal.is_damaged = true;
                alarms.push(match flaw {
                    Flaw::Foreign => LedgerError::Foreign { path },
                    Flaw::TooLong => LedgerError::TooLong { path },
                    _ => LedgerError::Damaged { path },
                });
            }
        }
        Ok((journal, replayed))
    }

    fn write(&mut self, step: &Step<'_>) -> Result<(), LedgerError> {
        // After an error, the contents of the file are not known.
        let end = self.end.take().filter(|end| {
            end.sequence == step.before && end.length <= JOURNAL_BYTES.max(end.base * 2)
        });
        if let Some(end) = end
            && self.append(end, step)?
        {
            return Ok(());
        }
        self.replace(step)
    }

    /// False if the file is not as it was left.
    fn append(&mut self, end: End, step: &Step<'_>) -> Result<bool, LedgerError> {
        let io = self.error("append to", CURRENT);
        let Some(mut file) = self.disk.append(CURRENT, end.length).map_err(&io)? else {
            return Ok(false);
        };
        file.write_all(step.lines).map_err(&io)?;
        if self.is_durable && step.must_survive {
            self.disk.sync_file(&file).map_err(&io)?;
            // The process that renamed it may have been killed before the rename was on the medium.
            self.disk.sync().map_err(&io)?;
        }
        self.end = Some(End {
            sequence: step.after,
            length: end.length + u64::try_from(step.lines.len()).unwrap_or(u64::MAX),
            ..end
        });
        Ok(true)
    }

    fn replace(&mut self, step: &Step<'_>) -> Result<(), LedgerError> {
        let io = self.error("replace", CURRENT);
        let bytes = codec::whole(step.ledger, step.after)?;
        let mut file = self.disk.create(NEW).map_err(&io)?;
        let mut written = file.write_all(&bytes);
        if self.is_durable {
            written = written.and_then(|()| self.disk.sync_file(&file));
        }
        written.map_err(&io).inspect_err(|_| {
            // It may be the very file that fills the disk. Failing to remove it is not an error of its own.
            let _ = self.disk.remove(NEW);
        })?;
        if self.is_damaged {
            // It is kept for people. Failing to keep it is no reason to stop.
            let _ = self.disk.rename(CURRENT, DAMAGED);
        }
        self.disk.rename(NEW, CURRENT).map_err(&io)?;
        self.is_damaged = false;
        if self.is_durable {
            self.disk.sync().map_err(&io)?;
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.end = Some(End {
            sequence: step.after,
            base: length,
            length,
        });
        Ok(())
    }

    fn error(
        &self,
        operation: &'static str,
        name: &str,
    ) -> impl Fn(io::Error) -> LedgerError + use<D> {
        let error = PathError::of(operation, &self.disk.path(name));
        move |source| error(source).into()
    }
}
