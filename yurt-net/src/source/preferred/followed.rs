//! A source of manifests, followed beside the others. It is read in another thread, because its disk may not answer.

use std::path::{Path, PathBuf};

use crate::error::chain;
use crate::host::disk::errand::{AtDisk, Errand, PATIENCE, SILENCE};
use crate::model::Snapshot;
use crate::source::error::SourceError;
use crate::source::file::{FileSource, SILENT_AFTER};

/// A source after a reading, and what the reading gave.
type Loaded = (Box<FileSource>, Result<Snapshot, SourceError>);

/// A source of manifests, with the result of the last reading that succeeded.
pub(super) struct FollowedFile {
    path: PathBuf,
    /// `None` while another thread reads it.
    source: Option<Box<FileSource>>,
    loading: Errand<Loaded>,
    /// Whether that waits for the disk.
    disk: AtDisk,
    /// What an earlier agent took from it, handed over while it was being read.
    memory: Option<Snapshot>,
    /// The last good snapshot.
    snapshot: Snapshot,
    has_loaded: bool,
    error: Option<String>,
    /// Manifests that could not be read completely, and why.
    stale: Vec<String>,
}

impl FollowedFile {
    /// Starts to read the manifests; `last` is what an earlier agent took from them.
    pub(super) fn start(path: &Path, last: Option<&Snapshot>) -> Self {
        let mut source = FileSource::new(path);
        if let Some(last) = last {
            source.remember(last);
        }
        let mut file = Self {
            path: path.to_owned(),
            disk: source.disk(),
            source: Some(Box::new(source)),
            loading: Errand::default(),
            memory: None,
            snapshot: Snapshot::default(),
            has_loaded: false,
            error: None,
            stale: Vec::new(),
        };
        file.load();
        file
    }

    fn load(&mut self) {
        if let Some(mut source) = self.source.take() {
            self.loading.begin(move || {
                let result = source.load();
                (source, result)
            });
        }
    }

    /// Waits a moment for the first reading; returns the error if it failed.
    pub(super) async fn first_load(&mut self) -> Option<SourceError> {
        let loaded = self.loading.answer(PATIENCE).await?;
        self.take(loaded).err()
    }

    /// Waits until the manifests say something else, or can no longer be read. Safe to cancel.
    pub(super) async fn changed(&mut self) {
        if let Some(source) = &mut self.source {
            source.changed().await;
            self.load();
        }
        let disk = &self.disk;
        let is_silent = || disk.is_silent(SILENT_AFTER);
        match self.loading.news_if(SILENT_AFTER, is_silent).await {
            Some(loaded) => {
                let _told = self.take(loaded);
            }
            None => {
                self.error = Some(format!("{}: {SILENCE}", self.path.display()));
                if self.loading.is_idle() {
                    // The source went with its thread, which has logged why.
                    let source = FileSource::new(&self.path);
                    self.disk = source.disk();
                    self.source = Some(Box::new(source));
                }
            }
        }
    }

    fn take(&mut self, (mut source, result): Loaded) -> Result<(), SourceError> {
        self.stale = source.stale().collect();
        let memory = self.memory.take();
        let result = match result {
            Ok(snapshot) => {
                self.snapshot = snapshot;
                self.has_loaded = true;
                self.error = None;
                Ok(())
            }
            Err(error) => {
                if let Some(memory) = memory.filter(|_| !self.has_loaded) {
                    source.remember(&memory);
                }
                self.error = Some(chain(&error));
                Err(error)
            }
        };
        self.source = Some(source);
        result
    }

    /// Hands over what an earlier agent took from it, before it has been read.
    pub(super) fn remember(&mut self, last: &Snapshot) {
        match &mut self.source {
            _ if self.has_loaded => {}
            Some(source) => source.remember(last),
            None => self.memory = Some(last.clone()),
        }
    }

    /// The last good snapshot.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub(super) fn is_good(&self) -> bool {
        self.has_loaded && self.error.is_none()
    }

    pub(super) fn error(&self) -> Option<String> {
        self.error.clone()
    }

    /// Manifests that cannot be read completely, and why: what they said last is in force.
    pub(super) fn stale(&self) -> Vec<String> {
        match &self.error {
            Some(error) => vec![error.clone()],
            None => self.stale.clone(),
        }
    }
}
