//! The agent's answers: its present status, the verdict of a flow, metrics, and whether it is well.

use std::net::{IpAddr, SocketAddr};

use tracing::debug;

use super::Agent;
use super::asked::Question;
use super::react::Phase;
use super::steps::facts;
use crate::dataplane::DataplaneError;
use crate::error::chain;
use crate::explain::find::Found;
use crate::explain::services::{Expected, named};
use crate::explain::verdict::{Dial, Explanation, OwnAddresses, explain};
use crate::host::clock::unix_seconds;
use crate::host::process::Process;
use crate::model::Snapshot;
use crate::observe::control::{self, Request};
use crate::observe::http;
use crate::observe::metrics;
use crate::observe::status::Status;
use crate::observe::status::health::Health;
use crate::policy::{Reasons, pods_among_services};
use crate::table::Scope;

/// Before the first table, `explain` cannot say anything.
const NO_TABLE: &str = "no source has been in charge since its start, so it cannot explain what is in the kernel: \
    see `yurt-net status`";

impl Agent {
    /// Answers the question that was asked.
    pub(super) async fn answer(&mut self) {
        let Some(question) = self.units.asked.take() else {
            return;
        };
        self.units.asked.state_dir.look().await;
        match question {
            Question::Call(call) => self.answer_call(call).await,
            Question::Scrape(scrape) => self.answer_scrape(scrape),
        }
    }

    async fn answer_call(&mut self, call: control::Call) {
        let reply = match call.request {
            Request::Status => match self.status() {
                Ok(status) => serde_json::to_value(status),
                Err(error) => Ok(control::error_reply(&chain(&error))),
            },
            // Before any source has spoken the table has no Service, although the kernel may serve them all.
            Request::Explain(_)
            | Request::Services(_)
            | Request::Expected(_)
            | Request::Find(_)
                if self.serving.phase() != Phase::Serving =>
            {
                Ok(control::error_reply(NO_TABLE))
            }
            Request::Explain(dial) => {
                // The caller may be a Pod of this node.
                let pod = self.units.pods.pod_at(&self.known, dial.from).await;
                serde_json::to_value(self.explain(dial, pod))
            }
            Request::Services(frontends) => {
                serde_json::to_value(named(self.serving.table(), &frontends))
            }
            Request::Expected(service) => serde_json::to_value(self.expected(&service)),
            Request::Find(service) => {
                let snapshot = self.sources.snapshot();
                let found = snapshot.map(|snapshot| Found::of(snapshot, &service));
                serde_json::to_value(found.unwrap_or_default())
            }
        };
        let reply = reply.unwrap_or_else(|error| control::error_reply(&error.to_string()));
        if call.reply.send(reply).is_err() {
            debug!("a client of the socket did not wait for its answer");
        }
    }

    fn answer_scrape(&mut self, scrape: http::Scrape) {
        let answer = match scrape.question {
            http::Question::Metrics => match self.status() {
                Ok(status) => Ok(metrics::render(&status)),
                Err(error) => Err(chain(&error)),
            },
            http::Question::Health => self.health(),
        };
        if scrape.reply.send(answer).is_err() {
            debug!("a scrape was given up");
        }
    }

    /// The present status.
    fn status(&self) -> Result<Status, DataplaneError> {
        let mut status = self.readiness();
        let facts = facts(&self.known, &self.sources, &self.serving);
        let units = &self.units;
        status.source = self.sources.status(unix_seconds());
        status.process = Process::current();
        self.serving.report(&mut status)?;
        units.checkpoint.report(&mut status);
        units.clients.report(&mut status);
        // First the rows of the Pods, to which the other units add.
        units.pods.report(&facts, &mut status);
        units.guarding.report(&facts, &mut status);
        units.translating.report(&facts, &mut status);
        units.packets.report(&facts, &mut status);
        let (moved, away) = facts.corrected();
        status.retention.endpoints_moved = moved;
        status.retention.endpoints_away = away;
        status.retention.endpoints_failing = facts.known.view.failing.len();
        if let Some(cni) = &units.cni {
            cni.report(&mut status);
        }
        units.devices.report(&mut status);
        if let Some(mending) = &units.mending {
            mending.report(&mut status);
        }
        units.established.report(&mut status);
        units.health.report(&mut status);
        units.configured.report(&mut status);
        Ok(status)
    }

    /// Whether Services are served, and what is wrong: the findings of all parts of the agent.
    fn readiness(&self) -> Status {
        let units = &self.units;
        let snapshot = self.sources.snapshot();
        let checkpoint = units.checkpoint.problem();
        let health = Health {
            manifests: self.sources.stale_manifests(),
            failures: units.upkeep.failures(),
            unasked: self.sources.unasked(),
            unproven: self.sources.unproven(),
            ranges: snapshot.and_then(|s| pods_among_services(s, self.serving.table())),
            state: units.asked.state_dir.problem(),
            checkpoint: checkpoint.as_deref(),
            socket: units.asked.problem(),
            claim: units.claimed.problem(),
            configuration: units.configured.problem(),
            ..self.serving.health()
        };
        let mut status = Status::new(&self.known.policy.node);
        status.degraded = health.degraded();
        status.ready = health.is_ready();
        units.upkeep.report(&health.detached, &mut status);
        status
    }

    /// The answer to a health probe: an error if Services are not served as they should be.
    fn health(&self) -> Result<String, String> {
        let status = self.readiness();
        match (status.ready, &*status.degraded) {
            (true, []) => Ok("ok".to_owned()),
            (true, _) => Ok(status.readiness()),
            (false, _) => Err(status.readiness()),
        }
    }

    fn reasons<'a>(&self, snapshot: &'a Snapshot) -> Reasons<'a> {
        let memory = self.serving.memory();
        Reasons::new(snapshot, &self.known.policy, &self.known.view, memory)
    }

    /// What the table says of a Service, whether or not it fits into the maps.
    fn expected(&self, service: &str) -> Expected {
        let empty = Snapshot::default();
        let reasons = self.reasons(self.sources.snapshot().unwrap_or(&empty));
        Expected::of(self.serving.table(), &reasons, service)
    }

    /// The verdict of the table on a flow, as far as it fits into the maps. `pod`: the address, if the client is a Pod
    /// of this node there.
    fn explain(&self, dial: Dial, pod: Option<IpAddr>) -> Explanation {
        let empty = Snapshot::default();
        let snapshot = self.sources.snapshot().unwrap_or(&empty);
        let mut own = OwnAddresses::new(snapshot, &self.known.policy.node);
        own.node
            .extend(self.known.view.local_addresses.iter().flatten());
        own.pods.extend(pod);
        let reasons = self.reasons(snapshot);
        let table = self.serving.table();
        let mut explanation = explain(table, &reasons, &own, dial);
        if self.units.clients.leave_alone(&self.known, dial.from) {
            explanation.reason +=
                "; the client's sockets are left alone, its packets are served at its device";
        }
        let mut keys = table.services.iter().map(|entry| &entry.key);
        let key = keys.find(|key| key.to_string() == explanation.service);
        match key.and_then(|key| self.serving.image().refused(key)) {
            Some(refused) => {
                let to = SocketAddr::new(dial.to.ip().to_canonical(), dial.to.port());
                let scope = own.scope(dial.from);
                // Without a packet path nothing is in force for clients outside.
                let is_served = scope == Scope::Internal || table.serves_packets;
                let image = self.serving.image();
                let in_force = is_served.then(|| image.in_force(to, dial.protocol, scope));
                explanation.with_a_full_map(&refused, in_force)
            }
            None => explanation,
        }
    }
}
