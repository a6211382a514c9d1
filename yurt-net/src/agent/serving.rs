//! From the sources' word to the maps: snapshot, table, plan, writes; and again after a failed write.
//!
//! Not a unit beside the loop: the table that it makes is a fact that the units hear. So it reads the sources itself,
//! with what has changed in them.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::deadlines::RETRY;
use super::error::AgentError;
use super::facts::Known;
use super::problem::Problem;
use super::react::Phase;
use super::told::Told;
use crate::config::AgentConfig;
use crate::dataplane::packet::Packets;
use crate::dataplane::service::clients::Look;
use crate::dataplane::service::sockets::SocketMaps;
use crate::dataplane::service::{BpfDataplane, Options, Repair};
use crate::dataplane::{ApplyError, Dataplane as _, DataplaneError};
use crate::error::chain;
use crate::host::cgroup::Cgroup;
use crate::host::clock::unix_seconds;
use crate::host::durations::Durations;
use crate::observe::status::health::Health;
use crate::observe::status::{MapUsage, Status};
use crate::plan::{MapImage, Plan, Refused, plan};
use crate::policy::{Memo, Memory, Suspects, compile};
use crate::source::checkpoint::{Loaded, Provenance};
use crate::source::preferred::{Origin, Sources};
use crate::table::edition::Edition;
use crate::table::{ServiceKey, ServiceTable};

/// Plans in a row for one table: each may free space that the next one needs.
const PLANS_PER_TABLE: usize = 8;
/// How long the maps of an earlier agent are left alone while only the checkpoint says what to serve.
const ADOPTED_PATIENCE: Duration = Duration::from_secs(10);

/// The table that should be in force, and the maps and programs that it is in.
pub(super) struct Serving {
    started: Instant,
    dataplane: BpfDataplane,
    /// The pins of an earlier agent were taken over at the start.
    is_adopted: bool,
    /// The first table is applied, and the programs were attached.
    is_serving: bool,
    /// What an earlier agent left is served unchanged, until a source answers.
    is_holding: bool,
    /// The edition of what the sources last said.
    edition: Edition,
    /// The sources have changed since that edition.
    has_news: bool,
    /// The contents of the maps. While a retry is due it is wrong, and the maps are read again.
    image: MapImage,
    memory: Memory,
    /// What compiling remembers, with the table that should be in force.
    memo: Memo,
    /// Backends that new flows no longer go to, since they were last taken.
    lost: Suspects,
    /// A set of the image needs to know the client.
    asks_for_clients: bool,
    /// When to repeat a write that has failed.
    retry_at: Option<Instant>,
    failing: Problem,
    told: Told,
    tally: Tally,
}

/// What has been applied so far.
#[derive(Debug, Default)]
struct Tally {
    applied: u64,
    failed: u64,
    durations: Durations,
    last_at: Option<u64>,
    last_writes: usize,
    drift_writes: usize,
}

impl Serving {
    /// Opens the maps, or takes over those that are there; nothing is written yet.
    pub(super) fn start(config: &AgentConfig, cgroup: &Cgroup) -> Result<Self, DataplaneError> {
        let dataplane = BpfDataplane::open(Options {
            bpffs: config.place.bpffs.clone(),
            cgroup: cgroup.path.clone(),
            capacity: config.capacity,
            tcp_peers: config.tcp_peers,
            affinity: config.affinity,
            socket_lb: config.socket_lb,
            serves_packets: config.packets.is_some() && Packets::is_pinned(&config.place.bpffs),
        })?;
        let image = dataplane.observe()?;
        Ok(Self {
            started: Instant::now(),
            is_adopted: dataplane.is_adopted(),
            is_serving: false,
            is_holding: false,
            edition: Edition::default(),
            has_news: false,
            // The sets that an earlier agent left may need clients already.
            asks_for_clients: image.asks_for_clients(),
            image,
            dataplane,
            memory: Memory::default(),
            memo: Memo::default(),
            lost: Suspects::default(),
            retry_at: None,
            failing: Problem::of("apply: clients keep what was written; trying again"),
            told: Told::default(),
            tally: Tally::default(),
        })
    }

    /// Has the sources' word checked against what is in the maps. `saved`: the edition of the checkpoint that the
    /// sources have; `in_force`: the service ports that were in force by it.
    pub(super) fn expect(
        &mut self,
        sources: &mut Sources,
        saved: Option<Edition>,
        in_force: BTreeSet<ServiceKey>,
    ) {
        let maps = self.found_edition();
        let newer = maps.filter(|maps| !saved.unwrap_or_default().may_replace(*maps));
        sources.expect(
            self.image.cluster_ips(),
            newer.map(|_| self.dataplane.found_said_by()),
        );
        self.image.remember(in_force);
        self.edition = Edition::resume(maps, saved, fastrand::u64(..));
        self.has_news = matches!(sources.origin(), Origin::File | Origin::Live | Origin::Hub);
    }

    /// Takes up a checkpoint that the disk delivered after the start; true if it did. As at the start, it counts until
    /// a source answers.
    pub(super) fn take_up(&mut self, sources: &mut Sources, mut loaded: Loaded) -> bool {
        self.list_what_is_newer(&mut loaded);
        let in_force = loaded.in_force();
        let saved = loaded.provenance.edition;
        if !sources.remember(loaded) {
            return false;
        }
        info!("checkpoint: taken up, because no source is in charge yet");
        self.image.remember(in_force);
        self.edition = Edition::resume(self.found_edition(), Some(saved), fastrand::u64(..));
        if std::mem::take(&mut self.is_holding) {
            warn!("what an earlier agent left is compared with the checkpoint");
        }
        true
    }

    /// Has everything listed again if the maps may be newer than a checkpoint.
    pub(super) fn list_what_is_newer(&self, loaded: &mut Loaded) {
        if let Some(maps) = self.found_edition() {
            loaded.list_what_is_newer(maps);
        }
    }

    fn found_edition(&self) -> Option<Edition> {
        self.dataplane.found_edition()
    }

    /// What the scanner of sockets reads.
    pub(super) fn socket_maps(&self) -> Result<SocketMaps, DataplaneError> {
        self.dataplane.socket_maps()
    }

    /// How far serving has come.
    pub(super) fn phase(&self) -> Phase {
        match (self.is_serving, self.is_holding) {
            (true, _) => Phase::Serving,
            (false, true) => Phase::Holding,
            (false, false) => Phase::Waiting,
        }
    }

    /// When to [`begin`](Self::begin); `None`: not before a source answers, or it is done.
    ///
    /// Maps that an earlier agent left are usually newer than its checkpoint, so they are left alone until the sources
    /// have had time to answer. Those that `load` wrote are not.
    pub(super) fn begin_at(&self, origin: Origin) -> Option<Instant> {
        match origin {
            _ if self.is_serving => None,
            Origin::File | Origin::Live | Origin::Hub => Some(self.started),
            Origin::Checkpoint | Origin::None if self.is_holding => None,
            Origin::Checkpoint if self.dataplane.was_loaded() => Some(self.started),
            Origin::Checkpoint | Origin::None if self.dataplane.was_serving() => {
                Some(self.started + ADOPTED_PATIENCE)
            }
            Origin::Checkpoint => Some(self.started),
            Origin::None => None,
        }
    }

    /// When to repeat a write that has failed.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Serves what the sources or the checkpoint say: writes the first table and attaches the programs. If nobody says
    /// anything newer, keeps what an earlier agent left. `saved`: the edition of the checkpoint.
    pub(super) fn begin(
        &mut self,
        sources: &mut Sources,
        known: &mut Known,
        saved: Option<Edition>,
    ) -> Result<(), AgentError> {
        let maps = self.found_edition().unwrap_or_default();
        self.is_holding = match sources.origin() {
            Origin::File | Origin::Live | Origin::Hub => false,
            Origin::Checkpoint if !self.dataplane.was_serving() => false,
            Origin::Checkpoint => !saved.is_some_and(|saved| saved.may_replace(maps)),
            Origin::None => true,
        };
        if self.is_holding {
            warn!(
                "no source is in charge yet: what an earlier agent left in the kernel is served on as it is"
            );
            return Ok(());
        }
        self.sync(sources, known)?;
        self.dataplane.activate()?;
        self.is_serving = true;
        Ok(())
    }

    /// Notes in the maps that they hold what the checkpoint says, and nothing newer.
    pub(super) fn mark_loaded(&self) -> Result<(), DataplaneError> {
        self.dataplane.mark_loaded()
    }

    /// The sources have changed.
    pub(super) fn note_news(&mut self) {
        self.has_news = true;
    }

    /// Compiles what the sources say and writes the difference; true if there was one.
    pub(super) fn sync(
        &mut self,
        sources: &mut Sources,
        known: &mut Known,
    ) -> Result<bool, AgentError> {
        let started = Instant::now();
        known.policy.is_source_hub = sources.is_hub();
        let has_untold = sources.has_untold();
        let said_by = sources.said_by();
        let Some((snapshot, touched)) = sources.take_up() else {
            return Ok(false);
        };
        // Taken first, so that a failure below does not take it up twice. Findings about objects are no part of an
        // edition.
        let has_news = std::mem::take(&mut self.has_news) || has_untold;
        if has_news && !touched.is_nothing() {
            self.edition = self.edition.next();
        }
        let compiled = compile(
            snapshot,
            &touched,
            &known.policy,
            &known.view,
            &self.memory,
            &mut self.memo,
        );
        self.memory = compiled.memory;
        self.lost.merge(compiled.lost);
        self.told.rejections(&compiled.new_rejections);
        if self.retry_at.replace(Instant::now() + RETRY).is_some() {
            self.image = self.dataplane.observe()?;
            self.asks_for_clients = self.image.asks_for_clients();
        }
        self.dataplane.set_edition(self.edition, said_by)?;
        let (writes, refused) = self.write_table()?;
        self.retry_at = None;
        self.told.refused(&refused);
        self.told.left_alone(self.memo.table());
        self.note(writes, started.elapsed());
        Ok(true)
    }

    /// Logs a table that was applied.
    fn note(&mut self, writes: usize, took: Duration) {
        let tally = &mut self.tally;
        tally.applied += 1;
        tally.durations.record(took);
        tally.last_at = Some(unix_seconds());
        tally.last_writes = writes;
        let services = self.memo.table().services.len();
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if self.is_serving {
            // Logs are on flash, and there may be a hundred changes a second.
            debug!(services, writes, took_us, "applied");
        } else {
            let pool = &self.memo.table().pool;
            info!(services, writes, took_us, pool, "applied");
        }
    }

    /// Like [`Self::sync`]; a failure is reported, and tried again later.
    pub(super) fn try_sync(&mut self, sources: &mut Sources, known: &mut Known) -> bool {
        let synced = self.sync(sources, known);
        self.tally.failed += u64::from(synced.is_err());
        self.failing
            .set(synced.as_ref().err().map(|error| chain(error)));
        synced.unwrap_or_default()
    }

    /// Plans and applies until nothing more can be done; returns the number of writes and what does not fit.
    fn write_table(&mut self) -> Result<(usize, Vec<Refused>), ApplyError> {
        let mut writes = 0;
        let mut planned = Plan::default();
        for _ in 0..PLANS_PER_TABLE {
            planned = plan(self.memo.table(), &mut self.image);
            self.dataplane.apply(&planned)?;
            writes += planned.ops.len();
            // Searching all sets for one that needs clients would cost more than most plans.
            if planned.asks_for_clients() || self.asks_for_clients {
                self.asks_for_clients = self.image.asks_for_clients();
            }
            if planned.refused.is_empty() || !planned.has_freed {
                break;
            }
        }
        Ok((writes, planned.refused))
    }

    /// Repairs what another process has changed: programs, pins, and the maps once they are this agent's.
    pub(super) fn repair(&mut self) -> (Repair, Result<(), AgentError>) {
        // Reports what was left out of the log in the minute before.
        self.told.rejections(&[]);
        let repair = self.dataplane.repair();
        let maps = match self.is_serving {
            true => self.repair_maps(),
            false => Ok(()),
        };
        (repair, maps)
    }

    fn repair_maps(&mut self) -> Result<(), AgentError> {
        if self.dataplane.holds(&self.image)? {
            return Ok(());
        }
        self.image = self.dataplane.observe()?;
        self.retry_at = Some(Instant::now() + RETRY);
        let (writes, refused) = self.write_table()?;
        self.retry_at = None;
        self.told.refused(&refused);
        self.tally.drift_writes += writes;
        warn!(writes, "drift: maps were changed behind our back");
        Ok(())
    }

    /// Whether programs of this agent may be attached: the table that they would read has been written.
    pub(super) fn may_attach(&self) -> bool {
        self.is_serving || self.is_adopted
    }

    /// The pins of an earlier agent were taken over at the start.
    pub(super) fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// The backends that new flows no longer go to, since the last call.
    pub(super) fn take_lost(&mut self) -> Suspects {
        std::mem::take(&mut self.lost)
    }

    /// A set of the table needs to know the client.
    pub(super) fn asks_for_clients(&self) -> bool {
        self.asks_for_clients
    }

    /// The sockets of a Pod are left alone. If that cannot be read, they may be.
    pub(super) fn leaves_clients_alone(&self) -> bool {
        self.dataplane.leaves_clients_alone().unwrap_or(true)
    }

    /// Writes the clients.
    pub(super) fn set_clients(&mut self, found: &Look) -> Result<(), DataplaneError> {
        self.dataplane.set_clients(found)
    }

    /// If the checkpoint already held the same contents as an earlier edition, takes that edition for the maps, too:
    /// otherwise the maps would be taken for newer than the checkpoint.
    pub(super) fn take_saved(&mut self, sources: &Sources, asked: Edition, on_disk: Edition) {
        let has_news = self.has_news || sources.has_untold();
        if asked != self.edition || asked == on_disk || has_news {
            return;
        }
        self.edition = on_disk;
        if let Err(error) = self.dataplane.set_edition(on_disk, sources.said_by()) {
            debug!(
                error = chain(&error),
                "the maps are thought to be newer than the checkpoint"
            );
        }
    }

    /// What a checkpoint says of the origin of its contents.
    pub(super) fn provenance(&self, sources: &Sources) -> Option<Provenance> {
        let provenance = sources.provenance(unix_seconds(), self.edition)?;
        Some(Provenance {
            left_out: self.image.left_out().cloned().collect(),
            ..provenance
        })
    }

    /// The table that should be in force.
    pub(super) fn table(&self) -> &ServiceTable {
        self.memo.table()
    }

    /// What was last known of the pool.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The contents of the maps.
    pub(super) fn image(&self) -> &MapImage {
        &self.image
    }

    /// The part of the agent's health that serving knows.
    pub(super) fn health(&self) -> Health<'_> {
        let serves = self.is_serving || self.is_holding;
        let unpinned = match serves {
            true => self.dataplane.unpinned(),
            false => Ok(None),
        };
        Health {
            is_serving: self.is_serving,
            is_holding: self.is_holding,
            detached: match serves {
                true => self.dataplane.detached(),
                false => Vec::new(),
            },
            unseen: unpinned.as_ref().err().map(|error| chain(error)),
            unpinned: unpinned.ok().flatten(),
            refused: self.told.full_maps(),
            ..Health::default()
        }
    }

    /// What is in force, and what is wrong or has no room.
    pub(super) fn report(&self, status: &mut Status) -> Result<(), DataplaneError> {
        let table = self.memo.table();
        status.pool.clone_from(&table.pool);
        status.services = table.services.len();
        status.set_rejections(&table.rejections);
        self.told.report(status);
        status.maps = MapUsage::all(&self.image.usage(), &self.image.capacity());
        status.adopted = self.is_serving && self.is_adopted;
        status.refuses_with_econnrefused = self.dataplane.has_set_retval();
        let programs = self.dataplane.programs().iter();
        status.programs = programs
            .map(|program| (program.name.to_owned(), program.verified))
            .collect();
        let Tally {
            applied,
            failed,
            durations,
            last_at,
            last_writes,
            drift_writes,
        } = &self.tally;
        status.applied = *applied;
        status.failed_applies = *failed;
        status.apply_durations.clone_from(durations);
        status.last_applied_at = *last_at;
        status.last_writes = *last_writes;
        status.drift_writes = *drift_writes;
        let counters = self.dataplane.counters()?.into_iter();
        status.counters = counters
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        Ok(())
    }
}
