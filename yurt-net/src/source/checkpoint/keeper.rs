//! The checkpoint, kept beside the loop: all work on the disk runs on a blocking thread, one job at a time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{error, info, warn};

use super::{CheckpointError, Contents, Found, Loaded, Occasion, Pace, Provenance, Saver, Stats};
use crate::error::chain;
use crate::host::disk::errand::{Errand, SILENCE};
use crate::model::Snapshot;
use crate::table::edition::Edition;

/// A disk that has not answered for this long is reported.
const SLOW: Duration = Duration::from_secs(5);
/// How long the last save is waited for: kubelet kills an agent that takes 10 s to end.
const LAST_SAVE: Duration = Duration::from_secs(5);

/// A job on the disk that has ended.
type Done = (Saver, Outcome);

/// The result of a job.
enum Outcome {
    /// Whether the checkpoint is gone or was replaced.
    Looked(bool),
    Saved(Result<bool, CheckpointError>),
}

/// Something for the loop to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Take up the checkpoint on a disk that did not answer at the start.
    Found(Box<Loaded>),
    /// Call [`Keeper::begin`].
    Save,
    /// Note that the checkpoint on disk holds an edition.
    Saved {
        /// The edition that was to be saved.
        asked: Edition,
        /// The edition of the checkpoint: an earlier one, if its contents are the same.
        on_disk: Edition,
    },
}

/// The checkpoint, kept beside the loop.
pub struct Keeper {
    found: Option<Provenance>,
    directory: PathBuf,
    opening: Errand<(Saver, Found)>,
    /// The first question has been repeated. A disk that is taken away while it is asked ends the question with an
    /// error, and another disk may be there in its place.
    is_asked_again: bool,
    /// `None` while a job runs, and until the disk has answered for the first time.
    saver: Option<Saver>,
    running: Option<JoinHandle<Done>>,
    /// When the present job began.
    since: Instant,
    /// The edition that is being saved, or was saved last.
    asked: Edition,
    pace: Pace,
    stats: Stats,
}

impl Keeper {
    /// Reads the directory, if its disk answers at once. What it delivers later is [`Due::Found`].
    pub async fn open(directory: PathBuf) -> (Self, Option<Loaded>) {
        let mut keeper = Self {
            found: None,
            directory: directory.clone(),
            opening: Errand::default(),
            is_asked_again: false,
            saver: None,
            running: None,
            since: Instant::now(),
            asked: Edition::default(),
            pace: Pace::default(),
            stats: Stats::default(),
        };
        let opened = keeper.opening.run(move || Saver::open(directory)).await;
        let loaded = match opened {
            Some(opened) => keeper.take_opened(opened),
            None => {
                warn!("checkpoint: the disk does not answer; it is read as soon as it does");
                None
            }
        };
        (keeper, loaded)
    }

    fn take_opened(&mut self, (saver, found): (Saver, Found)) -> Option<Loaded> {
        for problem in &found.problems {
            warn!(
                problem = chain(problem),
                "checkpoint: not all of it can be used"
            );
        }
        self.stats = saver.stats().clone();
        self.saver = Some(saver);
        let loaded = found.loaded.as_ref();
        self.found = loaded.map(|loaded| loaded.provenance.clone());
        found.loaded
    }

    /// The provenance of the state that was found at the start.
    pub fn found(&self) -> Option<&Provenance> {
        self.found.as_ref()
    }

    /// For status and metrics.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Why the checkpoint cannot be kept in step.
    pub fn problem(&self) -> Option<String> {
        let is_at_work = self.running.is_some() || self.opening.is_outstanding();
        let waited = self.since.elapsed();
        match is_at_work && waited >= SLOW {
            true => Some(format!(
                "the disk was asked {} s ago, and {SILENCE}",
                waited.as_secs()
            )),
            false => self.stats.last_error.clone(),
        }
    }

    /// There is a new snapshot.
    pub fn changed(&mut self) {
        self.pace.changed(Instant::now());
    }

    /// Looks whether the checkpoint is still the one that was saved. If not, everything is saved anew.
    pub fn look(&mut self) {
        self.work(|saver| Outcome::Looked(saver.has_lost()));
    }

    /// Starts a job on the disk, unless one is running.
    fn work(&mut self, work: impl FnOnce(&mut Saver) -> Outcome + Send + 'static) {
        let Some(mut saver) = self.saver.take() else {
            return;
        };
        self.since = Instant::now();
        self.running = Some(spawn_blocking(move || {
            let outcome = work(&mut saver);
            (saver, outcome)
        }));
    }

    /// Waits until the loop has something to do. Safe to cancel.
    pub async fn due(&mut self) -> Due {
        loop {
            let save_at = self.pace.due().filter(|_| self.saver.is_some());
            let running = async {
                match &mut self.running {
                    Some(running) => running.await,
                    None => std::future::pending().await,
                }
            };
            let save = async {
                match save_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                opened = self.opening.late() => {
                    let Some(opened) = opened else { continue };
                    let is_error = |problem: &CheckpointError| matches!(problem, CheckpointError::Io { .. });
                    if opened.1.problems.iter().any(is_error) && !self.is_asked_again {
                        self.is_asked_again = true;
                        let directory = self.directory.clone();
                        self.opening.begin(move || Saver::open(directory));
                        continue;
                    }
                    info!("checkpoint: the disk answers");
                    if let Some(loaded) = self.take_opened(opened) {
                        return Due::Found(Box::new(loaded));
                    }
                }
                done = running => {
                    self.running = None;
                    match done {
                        Ok(done) => {
                            if let Some(on_disk) = self.take(done) {
                                let asked = self.asked;
                                return Due::Saved { asked, on_disk };
                            }
                        }
                        // The saver is lost with its thread, so there is no second try.
                        Err(error) => error!(%error, "checkpoint: the save has failed for good"),
                    }
                }
                () = save => return Due::Save,
            }
        }
    }

    /// Starts to save `snapshot`, if it is time.
    pub fn begin(&mut self, snapshot: &Snapshot, provenance: Provenance) {
        if self.pace.begin(Instant::now()) {
            self.start(snapshot, provenance, Occasion::Changes);
        }
    }

    /// There is nothing worth saving.
    pub fn skip(&mut self) {
        if self.pace.begin(Instant::now()) {
            self.pace.saved();
        }
    }

    fn start(&mut self, snapshot: &Snapshot, provenance: Provenance, occasion: Occasion) {
        if self.saver.is_none() {
            return;
        }
        self.asked = provenance.edition;
        let contents = Contents::of(snapshot);
        self.work(move |saver| Outcome::Saved(saver.save(contents, &provenance, occasion)));
    }

    /// Saves everything, versions too, because the agent ends. A disk that does not answer does not keep it from
    /// ending.
    pub async fn finish(&mut self, snapshot: &Snapshot, provenance: Provenance) {
        let save = async {
            self.wait().await;
            self.start(snapshot, provenance, Occasion::Everything);
            self.wait().await;
        };
        if tokio::time::timeout(LAST_SAVE, save).await.is_err() {
            error!(
                "checkpoint: the disk does not answer; what has changed since the last save is not in it"
            );
        }
    }

    async fn wait(&mut self) {
        if let Some(running) = &mut self.running {
            let done = running.await;
            self.running = None;
            if let Ok(done) = done {
                self.take(done);
            }
        }
    }

    /// Takes the saver back. Returns the edition on disk, if that is certain.
    fn take(&mut self, (saver, outcome): Done) -> Option<Edition> {
        let result = match outcome {
            Outcome::Saved(result) => result,
            Outcome::Looked(is_gone) => {
                self.saver = Some(saver);
                if is_gone {
                    warn!("checkpoint: somebody has removed or replaced it; it is saved anew");
                    self.changed();
                }
                return None;
            }
        };
        let had_error = self.stats.last_error.is_some();
        self.stats = saver.stats().clone();
        let on_disk = saver.edition();
        self.saver = Some(saver);
        match result {
            Ok(_has_written) => {
                self.pace.saved();
                if had_error {
                    info!("checkpoint: saved again");
                }
                on_disk
            }
            Err(error) => {
                self.pace.failed(Instant::now());
                error!(
                    error = chain(&error),
                    "checkpoint: not saved; after a reboot without the cloud this node would serve an older state"
                );
                None
            }
        }
    }
}
