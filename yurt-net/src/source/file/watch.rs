//! inotify, reduced to two questions: has something happened, and is a process still writing?
#![expect(
    unsafe_code,
    reason = "tokio takes a descriptor whose owner is kept beside it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::scan::format_of;

/// Room for a few dozen events; what does not fit is read in the next round.
const BUFFER_BYTES: usize = 4096;

/// An inotify instance and the directories that it watches. Dropping it ends all; there is no thread.
pub(super) struct Watch {
    inotify: AsyncFd<Inotify>,
    /// By watch number: its handle and what is watched.
    targets: BTreeMap<i32, (WatchDescriptor, Target)>,
    /// The limit on watches was reached, and that was reported.
    is_incomplete: bool,
    /// The last sign of a writer that has not closed its file since.
    pub(super) written_at: Option<Instant>,
}

struct Target {
    directory: PathBuf,
    /// The only name in it that matters; `None`: all do.
    only: Option<OsString>,
}

struct Event {
    watch: i32,
    mask: EventMask,
    name: Option<OsString>,
}

impl Watch {
    /// Must be called inside a tokio runtime.
    pub(super) fn start() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // SAFETY: the file descriptor is owned by `inotify`, which closes it only when it is dropped, and the
        // `AsyncFd` drops it after it has deregistered.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE)? };
        Ok(Self {
            inotify,
            targets: BTreeMap::new(),
            is_incomplete: false,
            written_at: None,
        })
    }

    /// Watches `directories`, and `root` itself in its parent directory, and nothing else any more.
    ///
    /// A directory that cannot be watched is left to the caller's polling.
    pub(super) fn set(&mut self, root: &Path, directories: &BTreeSet<PathBuf>) {
        let mut targets = BTreeMap::new();
        if let (Some(parent), Some(name)) = (root.parent(), root.file_name()) {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            // A mounted ConfigMap changes beside the link, under another name.
            let is_link = fs::symlink_metadata(root).is_ok_and(|metadata| metadata.is_symlink());
            self.add(parent, (!is_link).then(|| name.to_owned()), &mut targets);
        }
        for directory in directories {
            self.add(directory, None, &mut targets);
        }
        let old = std::mem::replace(&mut self.targets, targets);
        for (number, (watch, _)) in old {
            if !self.targets.contains_key(&number) {
                // Fails for a directory that is gone: the kernel has removed the watch already.
                let _gone = self.inotify.get_mut().watches().remove(watch);
            }
        }
    }

    fn add(
        &mut self,
        directory: &Path,
        only: Option<OsString>,
        targets: &mut BTreeMap<i32, (WatchDescriptor, Target)>,
    ) {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MODIFY
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        match self.inotify.get_mut().watches().add(directory, mask) {
            Ok(watch) => {
                let target = Target {
                    directory: directory.to_owned(),
                    only,
                };
                targets.insert(watch.get_watch_descriptor_id(), (watch, target));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if self.is_incomplete => {
                tracing::debug!(directory = %directory.display(), %error, "directory is polled only");
            }
            Err(error) => {
                self.is_incomplete = true;
                tracing::warn!(directory = %directory.display(), %error, "directory is polled only: changes take longer");
            }
        }
    }

    /// Waits for events; true when one of them asks for another look at the tree. Safe to cancel.
    pub(super) async fn events(&mut self) -> io::Result<bool> {
        let mut buffer = [0; BUFFER_BYTES];
        let mut events = Vec::new();
        let mut guard = self.inotify.readable_mut().await?;
        let result = guard.try_io(|inotify| {
            for event in inotify.get_mut().read_events(&mut buffer)? {
                events.push(Event {
                    watch: event.wd.get_watch_descriptor_id(),
                    mask: event.mask,
                    name: event.name.map(OsStr::to_owned),
                });
            }
            Ok(())
        });
        // A wrong sign of readiness is no error: the next call waits again.
        if let Ok(read) = result {
            read?;
        }
        let mut matters = false;
        for event in &events {
            matters |= self.judge(event);
        }
        Ok(matters)
    }

    fn judge(&mut self, event: &Event) -> bool {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return true;
        }
        // An event of a watch that was removed meanwhile: the tree has been read since.
        let Some((_, target)) = self.targets.get(&event.watch) else {
            return false;
        };
        let name = event.name.as_deref();
        if target.only.is_some() && target.only.as_deref() != name {
            return false;
        }
        // A single file may have any name.
        let is_manifest =
            target.only.is_some() || name.is_some_and(|name| format_of(name).is_some());
        let is_written = event.mask.contains(EventMask::MODIFY)
            || event.mask.contains(EventMask::CREATE)
                && name.is_some_and(|name| is_new_regular_file(&target.directory.join(name)));
        if is_written {
            // Its end, the closing, is what matters.
            if is_manifest {
                self.written_at = Some(Instant::now());
            }
            return false;
        }
        if event.mask.contains(EventMask::CLOSE_WRITE) && is_manifest {
            self.written_at = None;
        }
        true
    }
}

/// Links, directories and second names of a file are complete when they are created; a file is not.
fn is_new_regular_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}
