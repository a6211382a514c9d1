//! What the agent answers: its status as it is now, the verdict of a flow, metrics, and whether it is well.

use tracing::debug;

use super::Agent;
use super::asked::Question;
use super::steps::facts;
use crate::dataplane::DataplaneError;
use crate::error::chain;
use crate::host::clock::unix_seconds;
use crate::host::process::Process;
use crate::observe::control::{self, Request};
use crate::observe::http;
use crate::observe::metrics;
use crate::observe::status::{MapUsage, Retention};

/// Before the first table, `explain` cannot say anything.
const NO_TABLE: &str = "no source is in charge since its start, so it cannot say why what is in the kernel is as it is: \
    see `yurt-net status`";

impl Agent {
    /// Answers who asks.
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
            Request::Status => match self.fill_status() {
                Ok(()) => serde_json::to_value(&self.status),
                Err(error) => Ok(control::error_reply(&chain(&error))),
            },
            // A table that nobody has said anything of knows no Service, and the kernel may serve them all.
            Request::Explain(_) if !self.is_serving => Ok(control::error_reply(NO_TABLE)),
            Request::Explain(dial) => {
                // Whoever asks may be a Pod of this node.
                let pod = self.units.pods.pod_at(&self.known, dial.from).await;
                serde_json::to_value(self.explain(dial, pod))
            }
        };
        let reply = reply.unwrap_or_else(|error| control::error_reply(&error.to_string()));
        if call.reply.send(reply).is_err() {
            debug!("a client of the socket did not wait for its answer");
        }
    }

    fn answer_scrape(&mut self, scrape: http::Scrape) {
        let answer = match scrape.question {
            http::Question::Metrics => match self.fill_status() {
                Ok(()) => Ok(metrics::render(&self.status)),
                Err(error) => Err(chain(&error)),
            },
            http::Question::Health => self.health(),
        };
        if scrape.reply.send(answer).is_err() {
            debug!("a scrape was given up");
        }
    }

    fn fill_status(&mut self) -> Result<(), DataplaneError> {
        self.fill_health();
        self.report_units();
        let (usage, capacity) = (self.image.usage(), self.image.capacity());
        let status = &mut self.status;
        status.source = self.sources.status(unix_seconds());
        status.checkpoint.clone_from(self.keeper.stats());
        status.pool.clone_from(&self.memo.table().pool);
        status.services = self.memo.table().services.len();
        status.set_rejections(&self.memo.table().rejections);
        status.maps = MapUsage::all(&usage, &capacity);
        status.process = Process::current();
        let counters = self.dataplane.counters()?;
        status.counters = counters
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect();
        Ok(())
    }

    fn report_units(&mut self) {
        let facts = facts(&self.known, &self.sources, &self.memo, &self.memory);
        let (units, status) = (&self.units, &mut self.status);
        status.retention = Retention::default();
        // The rows of the Pods first, which the others add to.
        units.pods.report(&facts, status);
        units.guarding.report(&facts, status);
        units.translating.report(&facts, status);
        (
            status.retention.endpoints_moved,
            status.retention.endpoints_away,
        ) = facts.corrected();
        status.retention.endpoints_failing = facts.known.view.failing.len();
        if let Some(cni) = &units.cni {
            cni.report(status);
        }
        units.devices.report(status);
        if let Some(mending) = &units.mending {
            mending.report(status);
        }
        units.established.report(status);
    }
}
