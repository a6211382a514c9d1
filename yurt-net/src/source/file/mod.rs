//! `file:PATH`: a file or a directory of manifests, read whole and followed for changes.
//!
//! `load` is blocking I/O of the length of one look at the tree, plus the reading of what has changed in it.
//! Files that have not changed are not read again, those that were only touched are not decoded again, and an object
//! that says the same as before keeps its `Arc`, so that everything compiled from it stays valid.
//!
//! What is broken never shrinks the snapshot: an object that became invalid, and every object of a file or
//! document that cannot be read any more, stays as it was last good, with a `Rejection`. Only what is absent
//! from files that could be read is gone. A load is of one moment: if the tree changes while it is read, it is
//! read again, so the swap of a ConfigMap's `..data` link shows as a whole.
//!
//! `changed` needs no task of its own: it runs inside the caller's `select!` and may be
//! cancelled there at any time. inotify tells it when to look; every few seconds it looks anyway, which
//! also covers lost events, network file systems and a source that is deleted and made anew. It looks in another
//! thread, for the disk may not answer: that is a change, and the load after it finds what it finds.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::decode::{self, Format, Names};
use super::error::SourceError;
use super::room::Room;
use crate::host::clock::unix_seconds;
use crate::host::disk::errand::{AtDisk, Errand};
use crate::model::Snapshot;

mod merge;
mod scan;
#[cfg(test)]
mod tests;
mod watch;

use merge::Manifest;
use scan::{Scan, Stamp, State};
use watch::Watch;

/// No events for this long: whoever changed the tree has finished.
const SETTLED_AFTER: Duration = Duration::from_millis(100);
/// A tree that never settles is read after this long all the same; `load` looks after itself.
const SETTLED_AT_LAST: Duration = Duration::from_secs(10);
/// A writer that does nothing for this long, and keeps its file open, is not waited for.
const WRITER_PATIENCE: Duration = Duration::from_secs(5);
/// How often the tree is looked at without any event.
const POLL_EVERY: Duration = Duration::from_secs(5);

/// A disk that has not answered for so long is taken for one that does not.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(10);

/// How often a tree that changes while it is read is read again.
const LOAD_ATTEMPTS: usize = 10;
const LOAD_PAUSE: Duration = Duration::from_millis(20);

/// How much of a file is looked at once where it is only compared.
const PART_BYTES: usize = 64 * 1024;
/// Larger than the manifests of any cluster. It is read whole, and a board has 512 MB. Where it is one text in YAML,
/// the parser has three copies of that for a moment (`peek_scalar_view` of serde-saphyr): a file of 40 MB takes 160 MB,
/// and 40 MB where it is JSON.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// The source `file:PATH`.
pub struct FileSource {
    root: PathBuf,
    /// By path relative to the root: what the last load made of each file.
    files: BTreeMap<OsString, Manifest>,
    names: Names,
    /// The tree of the last load; `None` when it failed.
    seen: Option<Scan>,
    /// The last load may have missed something that no later scan will show.
    is_unsettled: bool,
    /// Something has happened since the last load.
    is_dirty: bool,
    watch: Watching,
    is_first_look_due: bool,
    next_poll: Option<Instant>,
    /// Kept here, so that a wait that is cancelled goes on where it was.
    settling: Option<Settling>,
    looking: Errand<Option<Scan>>,
    disk: AtDisk,
}

/// How far the wait for the end of a change has come.
struct Settling {
    /// It is given up then.
    deadline: Instant,
    /// Without another event the tree is looked at then.
    quiet_at: Instant,
    /// The tree at the last look, if there was one.
    before: Option<Option<Scan>>,
}

enum Watching {
    NotYet,
    /// The disk is asked where its directories are.
    Starting(Errand<Box<Watch>>),
    On(Box<Watch>),
    /// inotify is not to be had: there is polling only.
    Impossible,
}

/// What reading a file came to.
enum Reading {
    Bytes(Vec<u8>),
    /// It changed between the scan and the end of the reading.
    Changed,
    Failed(io::Error),
}

impl FileSource {
    /// A source that has read nothing yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            root: path.into(),
            files: BTreeMap::new(),
            names: Names::default(),
            seen: None,
            is_unsettled: false,
            is_dirty: false,
            watch: Watching::NotYet,
            is_first_look_due: false,
            next_poll: None,
            settling: None,
            looking: Errand::default(),
            disk: AtDisk::default(),
        }
    }

    /// Tells whether [`Self::load`], which may take its time, waits for the disk.
    pub fn disk(&self) -> AtDisk {
        self.disk.clone()
    }

    /// Lets it know what it said last, before it has read anything: that is kept of what cannot be read.
    pub fn remember(&mut self, last: &Snapshot) {
        self.files = merge::remembered(last);
    }

    /// Manifests of which not everything that is in force could be read, and why.
    pub fn stale(&self) -> impl Iterator<Item = String> {
        self.files.values().filter_map(Manifest::staleness)
    }

    /// Reads the tree. An error changes nothing: the last good snapshot stays in force, and the next load
    /// still knows the last good objects.
    pub fn load(&mut self) -> Result<Snapshot, SourceError> {
        self.is_dirty = false;
        let result = self.try_load();
        self.names.expect([]);
        if result.is_err() {
            self.seen = None;
            self.is_unsettled = false;
        }
        result
    }

    fn try_load(&mut self) -> Result<Snapshot, SourceError> {
        let mut fresh = BTreeMap::new();
        let mut scan = self.disk.during(|| Scan::take(&self.root))?;
        // What a file still says is not there twice while it is read, be it the manifest of a whole cluster.
        let known = self.files.values().flat_map(Manifest::all);
        self.names.expect(known.map(|located| &located.object));
        for attempt in 1.. {
            if let Watching::On(watch) = &mut self.watch {
                let disk = &self.disk;
                disk.during(|| watch.set(&self.root, &scan.directories));
            }
            let is_last = attempt == LOAD_ATTEMPTS;
            let has_changed = self.read(&scan, &mut fresh, is_last)?;
            let after = self.disk.during(|| Scan::take(&self.root))?;
            if is_last || (!has_changed && after == scan) {
                self.is_dirty |= after != scan;
                break;
            }
            scan = after;
            thread::sleep(LOAD_PAUSE);
        }
        self.is_unsettled = fresh.values().any(|file: &Manifest| file.is_provisional);
        let snapshot = merge::merge(&mut self.files, &scan, fresh);
        self.names.prune();
        self.seen = Some(scan);
        Ok(snapshot)
    }

    /// Reads the files of `scan` that neither the last load nor an earlier attempt has read. True when one of
    /// them changed meanwhile; the last attempt takes that for an unreadable file.
    fn read(
        &mut self,
        scan: &Scan,
        fresh: &mut BTreeMap<OsString, Manifest>,
        is_last: bool,
    ) -> Result<bool, SourceError> {
        let mut has_changed = false;
        let mut room = Room::default();
        for (name, state) in &scan.entries {
            let stamp = match state {
                State::File(stamp) => stamp,
                State::Unreadable(reason) => {
                    fresh.insert(name.clone(), Manifest::unreadable(name, reason));
                    continue;
                }
            };
            let is_known = |file: &Manifest| file.stamp == Some(*stamp);
            if fresh.get(name).is_some_and(is_known)
                || self
                    .files
                    .get(name)
                    .is_some_and(|file| is_known(file) && !file.is_provisional)
            {
                continue;
            }
            fresh.remove(name);
            let path = if scan.is_single_file {
                self.root.clone()
            } else {
                self.root.join(name)
            };
            let known = self.files.get(name);
            let is_same = |known: &&Manifest| self.disk.during(|| known.is_in(&path, *stamp));
            if let Some(same) = known.filter(is_same) {
                fresh.insert(name.clone(), same.read_again(*stamp));
                continue;
            }
            let file = match self.disk.during(|| read_file(&path, *stamp)) {
                Reading::Bytes(bytes) => self.decode(name, *stamp, &bytes, &mut room),
                Reading::Changed if is_last => Manifest {
                    is_provisional: true,
                    ..Manifest::unreadable(name, "cannot be read: it changes all the time")
                },
                Reading::Changed => {
                    has_changed = true;
                    continue;
                }
                Reading::Failed(source) if scan.is_single_file => {
                    return Err(SourceError::Read { path, source });
                }
                Reading::Failed(error) => Manifest {
                    // A change of permissions shows in the next scan, the end of an I/O error does not.
                    is_provisional: error.kind() != io::ErrorKind::PermissionDenied,
                    ..Manifest::unreadable(name, &format!("cannot be read: {error}"))
                },
            };
            fresh.insert(name.clone(), file);
        }
        Ok(has_changed)
    }

    fn decode(&mut self, name: &OsStr, stamp: Stamp, bytes: &[u8], room: &mut Room) -> Manifest {
        let format = scan::format_of(name).unwrap_or(Format::Yaml);
        let path = name.to_string_lossy();
        let decoded = decode::decode_bytes(bytes, format, &path, &mut self.names);
        let mut manifest = Manifest {
            path: path.into(),
            stamp: Some(stamp),
            digest: digest(bytes).unwrap_or_default(),
            is_provisional: is_recent(stamp),
            objects: decoded.objects,
            rejections: decoded.rejections,
            held: Vec::new(),
        };
        // Now, and not only when it comes to the others: a directory may have a thousand such files.
        manifest.keep_to(room);
        manifest
    }

    /// Waits until the tree differs from what the last load saw and has settled. Safe to cancel; ready at once
    /// again until the next `load`. Must be called inside a tokio runtime with I/O and time.
    pub async fn changed(&mut self) {
        self.start_watch().await;
        loop {
            if !self.is_dirty {
                self.wait().await;
            }
            if self.is_dirty {
                self.settle().await;
                self.is_dirty = self.differs().await;
                if self.is_dirty {
                    return;
                }
            }
        }
    }

    async fn start_watch(&mut self) {
        if let Watching::NotYet = self.watch {
            match Watch::start() {
                Ok(mut watch) => {
                    let directories = self.seen.as_ref().map(|seen| seen.directories.clone());
                    let root = self.root.clone();
                    let mut starting = Errand::default();
                    starting.begin(move || {
                        watch.set(&root, &directories.unwrap_or_default());
                        Box::new(watch)
                    });
                    self.watch = Watching::Starting(starting);
                }
                Err(error) => {
                    tracing::warn!(path = %self.root.display(), %error, "source is polled only: changes take longer");
                    self.watch = Watching::Impossible;
                    self.is_first_look_due = true;
                }
            }
        }
        if let Watching::Starting(starting) = &mut self.watch {
            self.watch = match starting.answer(SILENT_AFTER).await {
                Some(watch) => Watching::On(watch),
                None => {
                    tracing::warn!(path = %self.root.display(), "source is polled only, because its disk does not answer: changes take longer");
                    Watching::Impossible
                }
            };
            self.is_first_look_due = true;
        }
        if self.is_first_look_due {
            // What happened before there was a watch.
            self.is_dirty |= self.tree_differs().await;
            self.is_first_look_due = false;
        }
    }

    /// Waits for an event or the next poll.
    async fn wait(&mut self) {
        let next_poll = *self
            .next_poll
            .get_or_insert_with(|| Instant::now() + POLL_EVERY);
        tokio::select! {
            matters = events(&mut self.watch) => self.is_dirty |= matters,
            () = sleep_until(next_poll) => {
                self.is_dirty |= !self.is_being_written() && self.differs().await;
                self.next_poll = None;
            }
        }
    }

    /// Waits until nothing happens any more, by the events and by the tree itself.
    async fn settle(&mut self) {
        loop {
            let now = Instant::now();
            let settling = self.settling.get_or_insert_with(|| Settling {
                deadline: now + SETTLED_AT_LAST,
                quiet_at: now + SETTLED_AFTER,
                before: None,
            });
            if now >= settling.deadline {
                break;
            }
            let quiet_at = settling.quiet_at;
            if settling.before.is_none() {
                let before = self.look().await;
                if let Some(settling) = &mut self.settling {
                    settling.before = Some(before);
                }
            }
            tokio::select! {
                biased;
                _ = events(&mut self.watch) => {}
                () = sleep_until(quiet_at) => {
                    if !self.is_being_written() {
                        let after = self.look().await;
                        let before = self.settling.as_mut().map(|settling| &mut settling.before);
                        let before = before.and_then(|before| before.replace(after.clone()));
                        if before == Some(after) {
                            break;
                        }
                    }
                }
            }
            if let Some(settling) = &mut self.settling {
                settling.quiet_at = Instant::now() + SETTLED_AFTER;
            }
        }
        self.settling = None;
    }

    fn is_being_written(&self) -> bool {
        match &self.watch {
            Watching::On(watch) => watch
                .written_at
                .is_some_and(|at| at.elapsed() < WRITER_PATIENCE),
            Watching::NotYet | Watching::Starting(_) | Watching::Impossible => false,
        }
    }

    /// Also true when the tree alone cannot tell.
    async fn differs(&mut self) -> bool {
        self.is_unsettled || self.tree_differs().await
    }

    async fn tree_differs(&mut self) -> bool {
        self.look().await != self.seen
    }

    /// The tree as it is; `None` where it cannot be examined, or its disk does not answer. Cancel safe.
    async fn look(&mut self) -> Option<Scan> {
        let root = self.root.clone();
        self.looking.begin(move || Scan::take(&root).ok());
        self.looking.answer(SILENT_AFTER).await.flatten()
    }
}

/// Events of the watch; never any when there is none.
async fn events(watching: &mut Watching) -> bool {
    let Watching::On(watch) = watching else {
        return std::future::pending().await;
    };
    match watch.events().await {
        Ok(matters) => matters,
        Err(error) => {
            tracing::warn!(%error, "source is polled only: changes take longer");
            *watching = Watching::Impossible;
            true
        }
    }
}

fn is_recent(stamp: Stamp) -> bool {
    stamp.is_recent(i64::try_from(unix_seconds()).unwrap_or(i64::MAX))
}

impl Manifest {
    /// Whether the file with this stamp has the very bytes that this was read from. It is read in parts: to decode it
    /// once more would take the memory of the whole file, and of all its objects, beside those that there are.
    fn is_in(&self, path: &Path, stamp: Stamp) -> bool {
        let look = || -> io::Result<bool> {
            let mut file = File::open(path)?;
            let found = digest((&mut file).take(stamp.size + 1))?;
            Ok(found == self.digest && Stamp::from(&file.metadata()?) == stamp)
        };
        let size = self.stamp.map(|known| known.size);
        size == Some(stamp.size) && look().unwrap_or_default()
    }

    /// The same, of a file that says the same.
    fn read_again(&self, stamp: Stamp) -> Self {
        Self {
            stamp: Some(stamp),
            is_provisional: is_recent(stamp),
            held: Vec::new(),
            ..self.clone()
        }
    }
}

/// Tells one content from another.
fn digest(mut content: impl Read) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut part = Vec::with_capacity(PART_BYTES);
    loop {
        part.clear();
        let limit = u64::try_from(PART_BYTES).unwrap_or(u64::MAX);
        if content.by_ref().take(limit).read_to_end(&mut part)? == 0 {
            return Ok(hasher.finish());
        }
        hasher.write(&part);
    }
}

/// Reads a file that must be the one with this stamp, before and after.
fn read_file(path: &Path, stamp: Stamp) -> Reading {
    let read = || -> io::Result<Option<Vec<u8>>> {
        let mut file = File::open(path)?;
        if Stamp::from(&file.metadata()?) != stamp {
            return Ok(None);
        }
        if stamp.size > MAX_FILE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(stamp.size).unwrap_or_default() + 1);
        (&mut file).take(stamp.size + 1).read_to_end(&mut bytes)?;
        Ok((Stamp::from(&file.metadata()?) == stamp).then_some(bytes))
    };
    match read() {
        Ok(Some(bytes)) => Reading::Bytes(bytes),
        Ok(None) => Reading::Changed,
        // Gone since the scan: the next one will not show it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Changed,
        Err(error) => Reading::Failed(error),
    }
}
