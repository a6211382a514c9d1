//! Follows the ledger for the agent: plugins write it, each in a process of its own. Also follows other directories.
#![expect(
    unsafe_code,
    reason = "tokio takes a descriptor whose owner is kept beside it"
)]

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::rules::wake;
use super::store::{CURRENT, LedgerDirs, LedgerError, Lock, Store};
use super::{Ledger, Now};
use crate::error::PathError;
use crate::host::clock::Clock;

/// Room for a few dozen events. The next read gets the rest.
const BUFFER_BYTES: usize = 4096;

/// A ledger that cannot be followed or read.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Its directory in memory cannot be made or watched.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The ledger at one moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The ledger as of this boot: sandboxes from before the reboot are retained, even while no plugin has recorded
    /// that.
    pub ledger: Ledger,
    /// When it was read.
    pub now: Now,
    /// For operators: errors that have cost nothing yet, and changes that a reboot would lose.
    pub alarms: Vec<String>,
}

impl Reading {
    /// Reads a ledger as it is now.
    pub fn take(dirs: &LedgerDirs) -> Result<Self, WatchError> {
        let mut store = Store::open(dirs)?;
        if store.behind() > 0 {
            // A plugin may be between the two journals: it holds the lock until both are written.
            let lock = Lock::take(dirs, Duration::ZERO);
            match lock {
                Err(LedgerError::Locked { .. }) => return Self::of(store, false),
                _ => store = Store::open(dirs)?,
            }
        }
        Self::of(store, true)
    }

    fn of(store: Store, is_settled: bool) -> Result<Self, WatchError> {
        let mut alarms: Vec<String> = store
            .alarms()
            .iter()
            .map(|alarm| crate::error::chain(alarm))
            .collect();
        if is_settled && store.behind() > 0 {
            alarms.push(format!(
                "the ledger on disk lacks the last {} changes, which a reboot now would lose: is the disk full or read-only?",
                store.behind()
            ));
        }
        let clock = Clock::read()?;
        let mut ledger = store.into_ledger();
        let now = ledger.now(&clock);
        for record in wake(&ledger, &clock) {
            ledger.apply(record);
        }
        Ok(Self {
            ledger,
            now,
            alarms,
        })
    }
}

/// Waits for changes of a ledger.
pub struct LedgerWatch(DirectoryWatch);

impl LedgerWatch {
    /// Watches for changes from now on. Blocks as the disk does, so call it on a thread of a tokio runtime that may
    /// block.
    pub fn new(dirs: &LedgerDirs) -> Result<Self, WatchError> {
        // Every change goes to the journal in memory while that can be written, so a watch on the disk would see no
        // more.
        let path = dirs.in_memory();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(PathError::of("make", &path))?;
        DirectoryWatch::new(&path, Some(CURRENT)).map(Self)
    }

    /// Waits for a change. Cancel safe.
    pub async fn changed(&mut self) {
        self.0.changed().await;
    }

    /// Whether the directory has gone, or the kernel reports no more events: the caller has to make a new watch.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }
}

/// Waits for files of a directory to be written, added or removed, without a thread or a timer.
pub struct DirectoryWatch {
    inotify: AsyncFd<Inotify>,
    only: Option<&'static str>,
    is_over: bool,
}

impl DirectoryWatch {
    /// Watches for changes from now on: of the file `only`, if it is given. Blocks as the disk does, so call it on a
    /// thread of a tokio runtime that may block.
    pub fn new(path: &Path, only: Option<&'static str>) -> Result<Self, WatchError> {
        let failed = PathError::of("watch", path);
        let inotify = Inotify::init().map_err(&failed)?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(path, mask).map_err(&failed)?;
        // SAFETY: the file descriptor is owned by `inotify`, which closes it only when it is dropped, and the
        // `AsyncFd` drops it after it has deregistered.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
        Ok(Self {
            inotify: inotify.map_err(|error| failed(error.into()))?,
            only,
            is_over: false,
        })
    }

    /// Whether the directory has gone, or the kernel reports no more events: the caller has to make a new watch.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Waits for a change. The end of the watch counts as the last one. Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            if self.is_over {
                return std::future::pending().await;
            }
            let Ok(mut guard) = self.inotify.readable_mut().await else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            let only = self.only.map(OsStr::new);
            let result = guard.try_io(|inotify| {
                let mut buffer = [0; BUFFER_BYTES];
                let (mut is_news, mut is_over) = (false, false);
                for event in inotify.get_mut().read_events(&mut buffer)? {
                    // The watch ends with its directory; one that was moved is not where plugins write.
                    is_over |= event
                        .mask
                        .intersects(EventMask::IGNORED | EventMask::MOVE_SELF);
                    is_news |= only.is_none()
                        || event.name == only
                        || event.mask.contains(EventMask::Q_OVERFLOW);
                }
                Ok((is_news, is_over))
            });
            // The socket was not ready after all: wait again.
            let Ok(read) = result else { continue };
            // Reading again would fail again at once.
            let (is_news, is_over) = read.unwrap_or((false, true));
            self.is_over = is_over;
            if is_news || is_over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use tokio::time::timeout;

    use super::*;
    use crate::ledger::rules::Draft;
    use crate::ledger::store::Lock;
    use crate::ledger::tests::{entry, key};
    use crate::ledger::{Record, State};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn dirs(directory: &tempfile::TempDir) -> LedgerDirs {
        LedgerDirs {
            state_dir: directory.path().join("state"),
            run_dir: directory.path().join("run"),
        }
    }

    fn write(dirs: &LedgerDirs, records: Vec<Record>) {
        let _lock = Lock::take(dirs, PATIENCE).unwrap();
        let mut store = Store::open(dirs).unwrap();
        let mut draft = Draft::new(store.ledger(), &Clock::read().unwrap());
        draft.take(records);
        store.commit(draft.into_records()).unwrap();
    }

    #[tokio::test]
    async fn a_change_by_another_process_is_seen_and_looking_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let dirs = dirs(&directory);
        let mut watch = LedgerWatch::new(&dirs).unwrap();
        assert!(Reading::take(&dirs).unwrap().ledger.entries().is_empty());
        let quiet = timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(quiet.is_err());
        for (name, address) in [("web-0", "10.1.0.2"), ("web-1", "10.1.0.3")] {
            let entry = entry(address, "c1");
            let key = key(name);
            write(&dirs, vec![Record::Put { key, entry }]);
            timeout(PATIENCE, watch.changed()).await.unwrap();
        }
        let reading = Reading::take(&dirs).unwrap();
        assert_eq!(reading.ledger.entries().len(), 2);
        assert!(reading.alarms.is_empty(), "{:?}", reading.alarms);
    }

    #[tokio::test]
    async fn a_directory_that_goes_is_a_change_and_the_last_one_that_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let dirs = dirs(&directory);
        for is_moved in [false, true] {
            let mut watch = LedgerWatch::new(&dirs).unwrap();
            assert!(!watch.is_over());
            match is_moved {
                false => std::fs::remove_dir_all(&dirs.run_dir).unwrap(),
                true => std::fs::rename(dirs.in_memory(), directory.path().join("old")).unwrap(),
            }
            while !watch.is_over() {
                timeout(PATIENCE, watch.changed()).await.unwrap();
            }
            let quiet = timeout(Duration::from_millis(50), watch.changed()).await;
            assert!(quiet.is_err());
        }
        let mut again = LedgerWatch::new(&dirs).unwrap();
        let (key, entry) = (key("web-0"), entry("10.1.0.2", "c1"));
        write(&dirs, vec![Record::Put { key, entry }]);
        timeout(PATIENCE, again.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_watch_that_cannot_be_read_any_more_is_over_and_does_not_turn() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = DirectoryWatch::new(directory.path(), None).unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        // The descriptor is ready now, and what is read then is a directory.
        drop(watch.inotify.readable().await.unwrap());
        let other = std::fs::File::open(directory.path()).unwrap();
        // SAFETY: both are open, and each is closed by its owner.
        let replaced = unsafe { libc::dup2(other.as_raw_fd(), watch.inotify.as_raw_fd()) };
        assert_eq!(replaced, watch.inotify.as_raw_fd());
        timeout(PATIENCE, watch.changed()).await.unwrap();
        assert!(watch.is_over());
    }

    #[test]
    fn what_the_journal_on_disk_lacks_is_an_alarm_unless_somebody_is_writing_it() {
        let directory = tempfile::tempdir().unwrap();
        let dirs = dirs(&directory);
        let put = |name: &str, address: &str| Record::Put {
            key: key(name),
            entry: entry(address, "c1"),
        };
        write(&dirs, vec![put("web-0", "10.1.0.2")]);
        let journal = dirs.state_dir.join("ledger").join(CURRENT);
        let before = std::fs::read(&journal).unwrap();
        write(&dirs, vec![put("web-1", "10.1.0.3")]);
        std::fs::write(&journal, before).unwrap();
        let alarms = || Reading::take(&dirs).unwrap().alarms.len();
        assert_eq!(alarms(), 1);
        let lock = Lock::take(&dirs, PATIENCE).unwrap();
        assert_eq!(alarms(), 0);
        drop(lock);
        assert_eq!(alarms(), 1);
    }

    #[test]
    fn what_ran_before_a_reboot_is_read_as_retained_before_any_plugin_ran() {
        let directory = tempfile::tempdir().unwrap();
        let dirs = dirs(&directory);
        {
            let _lock = Lock::take(&dirs, PATIENCE).unwrap();
            let mut store = Store::open(&dirs).unwrap();
            let boot = Record::Boot {
                id: "an earlier boot".to_owned(),
                up: 1,
                at: 1,
            };
            let web = Record::Put {
                key: key("web-0"),
                entry: entry("10.1.0.2", "c1"),
            };
            store.commit(vec![boot, web]).unwrap();
        }
        std::fs::remove_dir_all(&dirs.run_dir).unwrap();
        let reading = Reading::take(&dirs).unwrap();
        assert_eq!(
            reading.ledger.entries()[&key("web-0")].state,
            State::Retained
        );
    }
}
