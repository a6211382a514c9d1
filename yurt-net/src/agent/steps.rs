//! The steps of `react`, each with the fact that it brings to light.

use tracing::{info, warn};

use super::facts::{Facts, Known};
use super::react::{Fact, Step};
use super::{Agent, AgentError, Units};
use crate::error::chain;
use crate::host::process::give_back_memory;
use crate::policy::{Memo, Memory};
use crate::source::preferred::Sources;

/// All that is known now.
pub(super) fn facts<'a>(
    known: &'a Known,
    sources: &'a Sources,
    memo: &'a Memo,
    memory: &'a Memory,
) -> Facts<'a> {
    Facts {
        known,
        snapshot: sources.snapshot(),
        origin: sources.origin(),
        freshness: sources.freshness(),
        pods_age: sources.pods_read_at().map(|at| at.elapsed()),
        table: memo.table(),
        memory,
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
            Step::Boot => self.boot().await?,
            Step::Claim => self.units.claimed.look().await,
            Step::AskAgain => {
                self.sources.network_changed();
                self.units.clients.interfaces_changed();
            }
            Step::TendCheckpoint => self.tend_checkpoint(),
            Step::Repair => {
                if self.repair() {
                    self.test_itself().await;
                }
                give_back_memory();
            }
            Step::LookAtCheckpoint => self.keeper.look(),
            Step::TellDevices => self.tell(|units, facts| units.devices.hear(facts)),
            Step::TellPeers => self.tell(|units, facts| {
                if let Some(mending) = &mut units.mending {
                    mending.hear(facts);
                }
            }),
            Step::RefreshPods => self.sources.refresh_pods(),
            Step::Guard => self.tell_of_ledger(|units, facts| units.guarding.hear(facts)),
            Step::Translate => self.tell_of_ledger(|units, facts| units.translating.hear(facts)),
            Step::Release => self.tell_of_ledger(|units, facts| units.pods.hear(facts)),
            Step::Probe => self.tell(|units, facts| units.probing.hear(facts)),
            Step::TellClients => self.tell_clients(),
            Step::WriteClients => {
                let found = self.units.found.take().unwrap_or_default();
                self.set_clients(&found);
            }
            Step::Sync => self.try_sync(),
            Step::Judge => self.tell(|units, facts| units.established.hear(facts)),
            Step::Answer => self.answer().await,
        }
        Ok(None)
    }

    /// Has a unit hear what is known.
    pub(super) fn tell(&mut self, hear: impl FnOnce(&mut Units, &Facts<'_>)) {
        let facts = facts(&self.known, &self.sources, &self.memo, &self.memory);
        hear(&mut self.units, &facts);
    }

    /// The same, once a plugin has written a ledger.
    fn tell_of_ledger(&mut self, hear: impl FnOnce(&mut Units, &Facts<'_>)) {
        if self.known.has_ledger() {
            self.tell(hear);
        }
    }

    async fn read_addresses(&mut self) -> Option<Fact> {
        match self.units.node.view().await {
            Ok(view) => self
                .known
                .set_addresses(view)
                .then_some(Fact::AddressesChanged),
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
        self.has_news = true;
        let is_new = self.known.set_own_pods(self.sources.snapshot());
        is_new.then_some(Fact::OwnPodsChanged)
    }

    async fn read_ledger(&mut self) -> Option<Fact> {
        let Units {
            pods,
            guarding,
            probing,
            ..
        } = &mut self.units;
        let reading = pods.read().await;
        let is_new = reading.is_some_and(|reading| self.known.set_ledger(reading));
        self.known.set_guard_loaded(guarding.is_loaded());
        if self.known.has_ledger() || probing.is_on() {
            self.sources.follow_pods();
            // After the ledger: a device is there before its Pod is in it.
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

    fn take_failing(&mut self) -> Option<Fact> {
        let failing = self.units.probing.failing();
        let is_new = self.known.set_failing(failing);
        is_new.then_some(Fact::FailingChanged)
    }
}
