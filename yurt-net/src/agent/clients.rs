//! The clients that source ranges need: looked for while a Service has ranges, and written where the programs find
//! them.

use tracing::warn;

use super::facts::Facts;
use super::serving::Serving;
use crate::dataplane::service::clients::identity::{ClientAddresses, Word};
use crate::dataplane::service::clients::{Clients as Search, Look};
use crate::error::chain;
use crate::observe::status::{self, Status};

/// Looks for the clients of this node.
pub(super) struct Clients {
    search: Search,
    /// The clients that were found, until they are written.
    found: Option<Look>,
    report: status::Clients,
}

impl Clients {
    /// Looks for no clients until a Service asks.
    pub(super) fn start() -> Self {
        Self {
            search: Search::default(),
            found: None,
            report: status::Clients::default(),
        }
    }

    /// Waits until a look has ended. Cancel safe.
    pub(super) async fn changed(&mut self) {
        self.found = Some(self.search.next().await);
    }

    /// Looks for clients while the table needs them. When it no longer does, forgets what was found.
    pub(super) fn follow(&mut self, serving: &mut Serving) {
        let is_wanted = serving.asks_for_clients();
        if self.search.want(is_wanted) && !is_wanted {
            self.found = None;
            self.write(serving);
        }
    }

    /// A Pod may have come or gone.
    pub(super) fn interfaces_changed(&mut self) {
        self.search.interfaces_changed();
    }

    /// Passes on what is known of clients.
    pub(super) fn hear(&mut self, facts: &Facts<'_>) {
        let view = &facts.known.view;
        let (v4, v6) = view.default_source;
        self.search.hear(Word {
            own: ClientAddresses { v4, v6 },
            local: view.local_addresses.clone().unwrap_or_default(),
            entries: facts.known.entries().clone(),
        });
    }

    /// Writes what was found.
    pub(super) fn write(&mut self, serving: &mut Serving) {
        let found = self.found.take().unwrap_or_default();
        let written = serving.set_clients(&found);
        let error = match (&found.error, &written) {
            (Some(error), _) => Some(chain(error)),
            (None, Err(error)) => Some(chain(error)),
            (None, Ok(())) => None,
        };
        if let Some(error) = error.as_ref()
            && self.report.last_error.as_ref() != Some(error)
        {
            warn!(error, "not all clients of this node are known");
        }
        self.report = status::Clients {
            known: found.clients.len(),
            last_error: error,
        };
    }

    /// How many clients are known.
    pub(super) fn report(&self, status: &mut Status) {
        status.clients.clone_from(&self.report);
    }
}
