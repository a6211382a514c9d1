//! The health ports of kube-proxy: what load balancers learn about this node, and about the Services that have local
//! endpoints.

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::facts::Facts;
use crate::config::AgentConfig;
use crate::observe::http::health::{Answers, HealthServer, NodeHealth};
use crate::observe::status::{HealthPorts, Status};
use crate::source::preferred::Origin;

/// Tells load balancers whether to send clients here.
pub(super) struct Health {
    server: HealthServer,
    /// The port of the node's own health, if there is one.
    node_port: Option<u16>,
    told: NodeHealth,
}

impl Health {
    /// Listens where the configuration says; there are no Services yet.
    pub(super) fn start(config: &AgentConfig) -> Self {
        Self {
            server: HealthServer::start(config.healthz),
            node_port: config.healthz.map(|address| address.port()),
            told: NodeHealth::default(),
        }
    }

    /// Passes on the present state. `has_synced`: the kernel was just brought in step. `is_behind`: it is not in step
    /// now.
    pub(super) fn hear(&mut self, facts: &Facts<'_>, has_synced: bool, is_behind: bool) {
        let now = Timestamp::now();
        let told = NodeHealth {
            updated_at: has_synced.then_some(now).or(self.told.updated_at),
            behind_since: is_behind.then(|| self.told.behind_since.unwrap_or(now)),
            is_leaving: is_leaving(facts),
            checks: facts.table.health_checks.clone(),
        };
        if told != self.told {
            self.told = told;
            self.server.tell(self.told.clone());
        }
    }

    /// Which ports are answered, and how.
    pub(super) fn report(&self, status: &mut Status) {
        let listening = self.server.listening();
        let whose = |port: u16| {
            if self.node_port == Some(port) {
                return "the node's health".to_owned();
            }
            let checks = &self.told.checks;
            let at = checks.binary_search_by_key(&port, |check| check.port);
            at.map_or_else(|_| String::new(), |at| checks[at].service.to_string())
        };
        let problems = listening.problems.iter();
        let count = |answers: &Answers| {
            let both = [&answers.ok, &answers.unavailable];
            both.map(|answers| answers.load(Ordering::Relaxed))
        };
        let asked = self.server.asked();
        status.health_ports = HealthPorts {
            services: listening.ports,
            problems: problems
                .map(|(port, why)| format!("port {port} ({}): {why}", whose(*port)))
                .collect(),
            healthz: count(&asked.healthz),
            livez: count(&asked.livez),
        };
    }
}

/// Whether the Node is leaving. An absent Node counts as gone only by an apiserver's word: manifests need not have
/// Nodes, and a cache may have lost them.
fn is_leaving(facts: &Facts<'_>) -> bool {
    let Some(snapshot) = facts.snapshot else {
        return false;
    };
    match snapshot.nodes.get(&*facts.known.policy.node) {
        Some(node) => node.is_leaving,
        None => facts.origin == Origin::Live && facts.freshness.is_fresh(),
    }
}
