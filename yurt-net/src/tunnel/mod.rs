//! The node's own tunnel devices: vxlan devices and bridges keep the MACs that peers know, and this node's entries
//! about its peers stay right.
//!
//! Pure, except for `record`, which is on disk. `vtep` decides which MAC a device should have and which address it
//! sends from; `node::vtep` sets them. `peers` decides which entries about other nodes are wrong; `agent::mending`
//! repairs them. `announced` reads what flannel tells the peers.

pub mod announced;
pub mod peers;
pub mod record;
pub mod report;
pub mod vtep;

use serde::{Deserialize, Serialize};

use crate::device::Mac;

/// How long, in milliseconds, a state must last before it is believed: a fresh annotation that differs from the device,
/// an underlay address that is missing, a peer that sends with another MAC. Within that time flannel has finished
/// making a device.
const SETTLED: u64 = 5_000;

/// The addresses that are kept for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A vxlan device: its MAC, and the address that it sends from.
    Vtep,
    /// A bridge: its MAC, which would otherwise follow its ports.
    Bridge,
}

/// Whether a single device can have this MAC: it is neither a multicast address nor all zeros.
fn is_unicast(mac: Mac) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}
