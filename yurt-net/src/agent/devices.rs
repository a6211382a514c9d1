//! The node's own devices: the thread that keeps them hears what the cloud says of this node, and reports their state.

use std::io;

use super::facts::Facts;
use crate::config::AgentConfig;
use crate::node::vtep::{OwnDevices, Word};
use crate::observe::status::Status;

/// Keeps the node's own devices.
pub(super) struct Devices(OwnDevices);

impl Devices {
    /// Starts to look after them. In the network namespace of the caller.
    pub(super) fn start(config: &AgentConfig) -> io::Result<Self> {
        let (devices, state_dir) = (config.devices.clone(), config.place.state_dir.clone());
        OwnDevices::start(devices, state_dir).map(Self)
    }

    /// Passes on what the source in charge says of this node's Node.
    pub(super) fn hear(&self, facts: &Facts<'_>) {
        let node = &facts.known.policy.node;
        let nodes = facts.snapshot.map(|snapshot| &snapshot.nodes);
        let own = nodes.and_then(|nodes| nodes.get(node.as_str()));
        let annotations = own.map(|node| node.annotations.clone());
        self.0.hear(Word {
            node: node.clone(),
            annotations: annotations.unwrap_or_default(),
            is_fresh: facts.freshness.is_fresh(),
        });
    }

    /// The state of the devices.
    pub(super) fn report(&self, status: &mut Status) {
        status.devices = self.0.report();
    }
}
