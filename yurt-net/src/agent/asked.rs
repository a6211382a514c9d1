//! Questions to the agent, by `agent.sock` and over HTTP: each waits here for its answer.

use std::net::SocketAddr;

use serde_json::json;
use tokio::sync::mpsc;

use super::disk::StateDir;
use crate::config::AgentConfig;
use crate::observe::control;
use crate::observe::http;
use crate::policy::NodePortAddresses;

/// Questions on their way to the loop.
pub(super) struct Asked {
    socket: control::Server,
    calls: mpsc::Receiver<control::Call>,
    metrics: Option<http::Server>,
    scrapes: mpsc::Receiver<http::Scrape>,
    /// Held so that `scrapes` waits, instead of ending, if no listener can send.
    _scraper: mpsc::Sender<http::Scrape>,
    question: Option<Question>,
    /// Checked for each question.
    pub(super) state_dir: StateDir,
}

/// A question.
pub(super) enum Question {
    /// By the socket.
    Call(control::Call),
    /// Over HTTP.
    Scrape(http::Scrape),
}

impl Asked {
    /// Listens where the configuration says.
    pub(super) async fn start(config: &AgentConfig) -> Self {
        let (caller, calls) = mpsc::channel(16);
        let (scraper, scrapes) = mpsc::channel(1);
        let metrics = config.metrics;
        Self {
            socket: control::serve(config.place.sockets(), caller).await,
            calls,
            metrics: metrics.map(|address| http::serve(address, &configz(config), scraper.clone())),
            scrapes,
            _scraper: scraper,
            question: None,
            state_dir: StateDir::new(config.place.state_dir.clone()),
        }
    }

    /// Waits for a question. Cancel safe.
    pub(super) async fn changed(&mut self) {
        self.question = Some(tokio::select! {
            Some(call) = self.calls.recv() => Question::Call(call),
            Some(scrape) = self.scrapes.recv() => Question::Scrape(scrape),
            else => std::future::pending().await,
        });
    }

    /// The question.
    pub(super) fn take(&mut self) -> Option<Question> {
        self.question.take()
    }

    /// Ends the metrics server, whose port the next agent needs.
    pub(super) fn end(&mut self) {
        self.metrics = None;
    }

    /// Why the agent's socket is not where it should be.
    pub(super) fn problem(&self) -> Option<String> {
        self.socket.problem()
    }
}

/// What kube-proxy shows of its configuration, as far as this agent has it.
fn configz(config: &AgentConfig) -> String {
    let shown = |address: Option<SocketAddr>| address.map_or_else(String::new, |a| a.to_string());
    let node_ports = match &config.policy.node_ports {
        NodePortAddresses::Primary => vec!["primary".to_owned()],
        NodePortAddresses::Inside(prefixes) => prefixes.iter().map(ToString::to_string).collect(),
    };
    let ours = json!({
        "mode": http::PROXY_MODE,
        "hostnameOverride": config.policy.node,
        "healthzBindAddress": shown(config.healthz),
        "metricsBindAddress": shown(config.metrics),
        "nodePortAddresses": node_ports,
    });
    json!({ "kubeproxy.config.k8s.io": ours }).to_string()
}
