//! The steps of `react`: which unit does each with which facts, and the fact that each brings to light.

use std::sync::Arc;

use tracing::{info, warn};

use super::configured::{merged, score};
use super::facts::{Facts, Known};
use super::react::{Fact, Phase, Step};
use super::serving::Serving;
use super::{Agent, AgentError, Units};
use crate::error::chain;
use crate::host::clock::unix_seconds;
use crate::host::process::give_back_memory;
use crate::source::checkpoint::keeper::Due;
use crate::source::checkpoint::{Loaded, Provenance};
use crate::source::preferred::{Origin, Sources};

/// All that is known now.
pub(super) fn facts<'a>(known: &'a Known, sources: &'a Sources, serving: &'a Serving) -> Facts<'a> {
    Facts {
        known,
        snapshot: sources.snapshot(),
        origin: sources.origin(),
        freshness: sources.freshness(),
        pods_age: sources.pods_read_at().map(|at| at.elapsed()),
        table: serving.table(),
        memory: serving.memory(),
    }
}

impl Agent {
    /// Takes a step.
    pub(super) async fn take(&mut self, step: Step) -> Result<Option<Fact>, AgentError> {
        match step {
            Step::ReadAddresses => return Ok(self.read_addresses().await),
            Step::ReadOwnPods => return Ok(self.read_own_pods()),
            Step::ReadLedger => return Ok(self.read_ledger().await),
            Step::Locate => return Ok(self.locate()),
            Step::TakeFailing => return Ok(self.take_failing()),
            Step::TakeConfiguration => return Ok(self.take_configuration().await),
            Step::Boot => {
                self.boot().await?;
                let is_serving = self.serving.phase() == Phase::Serving;
                let is_due = is_serving && self.units.packets.is_wanted();
                return Ok(is_due.then_some(Fact::PacketsDue));
            }
            Step::Claim => self.units.claimed.look().await,
            Step::AskAgain => {
                self.sources.network_changed();
                self.units.clients.interfaces_changed();
                self.units.servers.network_changed();
            }
            Step::TakeServers => {
                self.known.policy.protect.servers = self.units.servers.addresses();
            }
            Step::TendCheckpoint => self.tend_checkpoint(),
            Step::Repair => self.repair().await,
            Step::LookAtCheckpoint => self.units.checkpoint.look(),
            // Flags with which an agent has served, in a directory of its own.
            Step::Record => {
                if let Some(record) = self.units.configured.take_record() {
                    self.units.recorded.hear(record);
                }
                let is_serving = self.serving.phase() == Phase::Serving;
                if is_serving && !self.units.claimed.is_refused() {
                    self.units.recorded.keep();
                }
            }
            Step::TellDevices => self.tell(|units, facts| units.devices.hear(facts)),
            Step::TellPeers => self.tell(|units, facts| {
                if let Some(mending) = &mut units.mending {
                    mending.hear(facts);
                }
            }),
            Step::RefreshPods => self.sources.refresh_pods(),
            Step::DoubtGrants => self.units.guarding.doubt_grants(),
            Step::Guard => {
                self.units.guarding.settle_doubt();
                self.tell_of_ledger(|units, facts| units.guarding.hear(facts));
            }
            Step::Translate => self.tell_of_ledger(|units, facts| units.translating.hear(facts)),
            // The programs of the packet path read the table that is in force.
            Step::ServePackets => {
                if self.serving.phase() == Phase::Serving {
                    self.tell(|units, facts| units.packets.hear(facts));
                }
            }
            Step::Release => {
                if !self.units.claimed.is_refused() {
                    self.tell_of_ledger(|units, facts| units.pods.hear(facts));
                }
            }
            Step::Probe => self.tell(|units, facts| units.probing.hear(facts)),
            Step::TellClients => {
                self.tell(|units, facts| units.clients.hear(facts, units.packets.served()));
                self.units.clients.follow(&mut self.serving);
            }
            Step::WriteClients => self.units.clients.write(&mut self.serving),
            Step::Sync => {
                let has_synced = self.serving.try_sync(&mut self.sources, &mut self.known);
                self.follow_table(has_synced);
            }
            Step::Judge => self.tell(|units, facts| units.established.hear(facts)),
            Step::Answer => self.answer().await,
        }
        Ok(None)
    }

    /// Has a unit hear what is known.
    pub(super) fn tell(&mut self, hear: impl FnOnce(&mut Units, &Facts<'_>)) {
        let facts = facts(&self.known, &self.sources, &self.serving);
        hear(&mut self.units, &facts);
    }

    /// Has a unit hear what is known, once a plugin has written a ledger.
    fn tell_of_ledger(&mut self, hear: impl FnOnce(&mut Units, &Facts<'_>)) {
        if self.known.has_ledger() {
            self.tell(hear);
        }
    }

    /// Serves what the sources or the checkpoint say, or keeps what an earlier agent left.
    async fn boot(&mut self) -> Result<(), AgentError> {
        let Self {
            serving,
            sources,
            known,
            units,
            ..
        } = self;
        serving.begin(sources, known, units.checkpoint.edition())?;
        let is_serving = serving.phase() == Phase::Serving;
        self.follow_table(is_serving);
        give_back_memory();
        self.units.upkeep.test_itself().await;
        if !is_serving {
            return Ok(());
        }
        let source = self.sources.status(unix_seconds());
        if source.provenance == Origin::Checkpoint {
            warn!(
                source = source.source,
                age_seconds = source.age_seconds,
                "serving from the checkpoint: no source is in charge yet"
            );
        }
        info!(
            node = self.known.policy.node,
            pool = self.serving.table().pool,
            adopted = self.serving.is_adopted(),
            "ready"
        );
        Ok(())
    }

    /// Tells the units that follow the table. If it could not be written, they are told after the next try.
    fn follow_table(&mut self, has_synced: bool) {
        let Self { serving, units, .. } = self;
        units.established.suspect(serving.take_lost());
        units.clients.follow(serving);
        if has_synced {
            units.checkpoint.note_change();
            self.tell(|units, facts| units.established.hear(facts));
        }
        self.tell_health(has_synced);
    }

    /// Tells load balancers the present state. `has_synced`: the kernel was just brought in step.
    fn tell_health(&mut self, has_synced: bool) {
        let upkeep = &self.units.upkeep;
        let is_behind = self.serving.retry_at().is_some() || !upkeep.failures().is_empty();
        self.tell(|units, facts| units.health.hear(facts, has_synced, is_behind));
    }

    async fn repair(&mut self) {
        let Units {
            upkeep, claimed, ..
        } = &mut self.units;
        // Two agents would undo each other's repairs for ever.
        if !claimed.is_refused() && upkeep.repair(&mut self.serving) {
            upkeep.test_itself().await;
        }
        self.units.clients.follow(&mut self.serving);
        self.tell_health(false);
        give_back_memory();
    }

    /// Does what is due with the checkpoint.
    fn tend_checkpoint(&mut self) {
        match self.units.checkpoint.take_due() {
            Some(Due::Found(loaded)) => self.take_up(*loaded),
            Some(Due::Save) => {
                let provenance = self.provenance();
                self.tell(|units, facts| units.checkpoint.hear(facts, provenance));
            }
            Some(Due::Saved { asked, on_disk }) => {
                self.serving.take_saved(&self.sources, asked, on_disk);
            }
            None => {}
        }
    }

    fn take_up(&mut self, loaded: Loaded) {
        let synced_at = loaded.provenance.synced_at;
        if self.serving.take_up(&mut self.sources, loaded) {
            self.units.checkpoint.took_up(synced_at);
        }
    }

    /// What a save says of its contents; `None` if the directory belongs to another agent.
    fn provenance(&self) -> Option<Provenance> {
        let is_ours = !self.units.claimed.is_refused();
        is_ours
            .then(|| self.serving.provenance(&self.sources))
            .flatten()
    }

    /// Saves everything, because the agent ends.
    pub(super) async fn end(&mut self) {
        self.units.asked.end();
        self.units.claimed.look().await;
        let provenance = self.provenance();
        let facts = facts(&self.known, &self.sources, &self.serving);
        self.units.checkpoint.end(&facts, provenance).await;
    }

    async fn read_addresses(&mut self) -> Option<Fact> {
        match self.units.node.view().await {
            Ok(view) => {
                let have_pods_moved = self.known.set_pod_routes(Arc::clone(&view.pod_routes));
                match self.known.set_addresses(view) {
                    true => Some(Fact::AddressesChanged),
                    false => have_pods_moved.then_some(Fact::WhereaboutsChanged),
                }
            }
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "addresses of this node cannot be read; the last known ones are in force"
                );
                None
            }
        }
    }

    fn read_own_pods(&mut self) -> Option<Fact> {
        self.serving.note_news();
        let is_new = self.known.set_own_pods(self.sources.snapshot());
        is_new.then_some(Fact::OwnPodsChanged)
    }

    async fn read_ledger(&mut self) -> Option<Fact> {
        let Units {
            pods,
            guarding,
            probing,
            packets,
            claimed,
            ..
        } = &mut self.units;
        let reading = pods.read(!claimed.is_refused()).await;
        let is_new = reading.is_some_and(|reading| self.known.set_ledger(reading));
        self.known.set_guard_loaded(guarding.is_loaded());
        let has_pods = self.known.has_ledger() || probing.is_on();
        if has_pods {
            self.sources.follow_pods();
        }
        if has_pods || packets.is_on() {
            // After the ledger: a Pod's device exists before the ledger has the Pod.
            if let Some(links) = pods.list_devices().await {
                self.known.links = Some(links);
            }
        }
        is_new.then_some(Fact::LedgerChanged)
    }

    fn locate(&mut self) -> Option<Fact> {
        let was_known = self.known.view.truth.is_some();
        let is_new = self.known.locate_pods(self.sources.freshness());
        match (was_known, self.known.view.truth.is_some()) {
            (false, true) => {
                info!("the source is stale: Pods of this node are where the ledger has them");
            }
            (true, false) => info!("the source is fresh: Pods are where it has them"),
            _ => {}
        }
        is_new.then_some(Fact::WhereaboutsChanged)
    }

    async fn take_configuration(&mut self) -> Option<Fact> {
        let config = self.units.configured.take().await?;
        score(&config);
        self.deadlines.set_drift(config.drift_interval);
        let policy = merged(&self.known.policy, config.policy);
        let is_new = policy != self.known.policy;
        self.known.policy = policy;
        is_new.then_some(Fact::PolicyChanged)
    }

    fn take_failing(&mut self) -> Option<Fact> {
        let failing = self.units.probing.failing();
        let is_new = self.known.set_failing(failing);
        is_new.then_some(Fact::FailingChanged)
    }
}
