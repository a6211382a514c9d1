//! The fast path: a thread that looks at what others have on this node, and allows the path for a while. Where nobody
//! looks any more, it is not taken.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tracing::info;

use crate::dataplane::DataplaneError;
use crate::dataplane::fast::{FastMaps, Rules, look};
use crate::edge::EdgeRow;
use crate::edge::fast::{FastPath, Near};
use crate::error::chain;
use crate::host::clock::monotonic_ns;
use crate::observe::status;

/// How long something is not seen of which the kernel tells nobody: a neighbour, a policy of IPsec, a program.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the path is allowed at a time.
const ALLOWED_NS: u64 = 10_000_000_000;
/// Whoever writes rule after rule has them looked at together. A rule is in force for so long before it counts here.
const TOGETHER: Duration = Duration::from_millis(20);

/// What the thread is told.
enum Word {
    /// The devices that are served.
    Rows(BTreeMap<u32, EdgeRow>),
    /// The maps, which were loaded anew.
    Maps(FastMaps),
    /// A rule of nftables has changed.
    Stirred,
}

/// The agent's handle of the thread, which ends when this is dropped.
pub(super) struct Fast {
    words: Option<Sender<Word>>,
    /// The number of the maps that the thread has.
    maps: Option<u32>,
    rows: BTreeMap<u32, EdgeRow>,
    report: Arc<Mutex<status::FastPath>>,
}

impl Fast {
    /// Starts the thread, in the network namespace of the caller, unless the path is off.
    pub(super) fn start(how: FastPath) -> Self {
        let report = Arc::new(Mutex::new(status::FastPath::default()));
        let words = (how != FastPath::Off).then(|| {
            let (words, told) = mpsc::channel();
            let (stirred, reports) = (words.clone(), Arc::downgrade(&report));
            // A kernel without nftables has no rules to follow.
            if let Ok(rules) = Rules::follow() {
                thread::spawn(move || follow(rules, &stirred));
            }
            thread::spawn(move || Thread::new(how, reports).run(&told));
            words
        });
        Self {
            words,
            maps: None,
            rows: BTreeMap::new(),
            report,
        }
    }

    /// Passes on which devices are served, and the maps, if they are others.
    pub(super) fn hear(
        &mut self,
        rows: &BTreeMap<u32, EdgeRow>,
        maps: FastMaps,
    ) -> Result<(), DataplaneError> {
        let Some(words) = &self.words else {
            return Ok(());
        };
        let id = maps.id()?;
        if self.maps != Some(id) {
            maps.clear()?;
            let _ = words.send(Word::Maps(maps));
            self.maps = Some(id);
        }
        if self.rows != *rows {
            let _ = words.send(Word::Rows(rows.clone()));
            self.rows.clone_from(rows);
        }
        Ok(())
    }

    /// Whether the path is taken; `None` where it is off.
    pub(super) fn report(&self) -> Option<status::FastPath> {
        self.words.as_ref()?;
        let report = self.report.lock();
        Some(report.unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Tells of each change of nftables, until nobody hears it.
fn follow(mut rules: Rules, words: &Sender<Word>) {
    while rules.changed().is_ok() && words.send(Word::Stirred).is_ok() {}
}

struct Thread {
    how: FastPath,
    rows: BTreeMap<u32, EdgeRow>,
    nears: BTreeMap<IpAddr, Near>,
    maps: Option<FastMaps>,
    /// Where the agent reads it; nobody does any more when the agent has ended.
    report: Weak<Mutex<status::FastPath>>,
}

impl Thread {
    fn new(how: FastPath, report: Weak<Mutex<status::FastPath>>) -> Self {
        Self {
            how,
            rows: BTreeMap::new(),
            nears: BTreeMap::new(),
            maps: None,
            report,
        }
    }

    fn run(mut self, told: &Receiver<Word>) {
        loop {
            match told.recv_timeout(LOOK_EVERY) {
                Ok(word) => {
                    self.take(word);
                    thread::sleep(TOGETHER);
                }
                Err(RecvTimeoutError::Timeout) => {}
                // What is allowed ends by itself.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(word) = told.try_recv() {
                self.take(word);
            }
            let Some(shown) = self.report.upgrade() else {
                return;
            };
            let report = self.look().unwrap_or_else(|error| status::FastPath {
                reasons: vec![chain(&error)],
                ..status::FastPath::default()
            });
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            if shown.is_taken != report.is_taken {
                info!(is_taken = report.is_taken, reasons = ?report.reasons, "fast path");
            }
            *shown = report;
        }
    }

    fn take(&mut self, word: Word) {
        match word {
            Word::Rows(rows) => self.rows = rows,
            Word::Maps(maps) => self.maps = Some(maps),
            Word::Stirred => {}
        }
    }

    /// Allows the path, or forbids it at once: that comes before its Pods are looked for.
    fn look(&mut self) -> Result<status::FastPath, DataplaneError> {
        let Some(maps) = &mut self.maps else {
            return Ok(status::FastPath::default());
        };
        let seen = look(&self.rows);
        let reasons = seen.reasons(&self.rows);
        let is_taken = self.how == FastPath::On || reasons.is_empty();
        if !is_taken {
            maps.allow(0)?;
        }
        let (nears, left_to_the_stack) = seen.nears(&self.rows, &self.nears);
        maps.put(&nears)?;
        self.nears = nears;
        if is_taken {
            maps.allow(monotonic_ns() + ALLOWED_NS)?;
        }
        Ok(status::FastPath {
            is_taken,
            addresses: self.nears.len(),
            reasons,
            left_to_the_stack,
        })
    }
}
