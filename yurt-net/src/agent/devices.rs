//! The node's own devices, and what they know of peers: what the cloud says goes there, and how they are comes back.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::mending::Mending;
use crate::config::AgentConfig;
use crate::node::vtep::{OwnDevices, Word};
use crate::tunnel::Kind;
use crate::tunnel::peers::Peer;
use crate::tunnel::report::Report;

/// See the module.
pub(super) struct Devices {
    own: OwnDevices,
    /// Only where the operator wants it.
    mending: Option<Mending>,
    /// When it may be looked again who the peers are.
    peers_at: Instant,
    /// It should be, then.
    are_peers_due: bool,
}

/// Pools change seldom, and all endpoints are looked at.
const PEERS_AGE: Duration = Duration::from_secs(10);

impl Devices {
    /// Starts to look after them. In the network namespace of the caller.
    pub(super) fn start(config: &AgentConfig) -> io::Result<Self> {
        let kept = config.devices.clone();
        let vteps = kept.iter().filter(|(_, kind)| *kind == Kind::Vtep);
        let vteps = vteps.map(|(name, _)| name.clone()).collect();
        Ok(Self {
            mending: config.repairs_peers.then(|| Mending::start(vteps)),
            own: OwnDevices::start(kept, config.place.state_dir.clone())?,
            peers_at: Instant::now(),
            are_peers_due: false,
        })
    }

    /// Waits until there is more to hear than there was at the last [`Self::hear`]. Cancel safe.
    pub(super) async fn due(&self) {
        match self.are_peers_due {
            true => sleep_until(self.peers_at).await,
            false => std::future::pending().await,
        }
    }

    /// Takes up what the source in charge says of this node's Node, and, where peers are looked after and it is time, who they are.
    pub(super) fn hear(&mut self, word: Word, peers: Option<impl FnOnce() -> Vec<Peer>>) {
        self.own.hear(word);
        let Some(mending) = &self.mending else {
            return;
        };
        let now = Instant::now();
        self.are_peers_due = now < self.peers_at;
        if !self.are_peers_due
            && let Some(peers) = peers
        {
            self.peers_at = now + PEERS_AGE;
            mending.hear(peers());
        }
    }

    /// How they are.
    pub(super) fn report(&self) -> Report {
        let mut report = self.own.report();
        if let Some(mending) = &self.mending {
            let mended = mending.report();
            for device in &mut report.devices {
                let of = |counts: &BTreeMap<String, u64>| counts.get(&device.name).copied();
                device.peers = of(&mended.listened);
                device.peer_repairs = of(&mended.repairs).unwrap_or_default();
            }
            report.alarms.extend(mended.alarms);
        }
        report
    }
}
