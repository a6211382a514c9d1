//! The node's own tunnels: vxlan devices and bridges keep what peers know of them, and what this node knows of its peers stays right.
//!
//! Pure but for `record`, which is on disk. `vtep` decides which MAC a device has and where it sends from, and `node::vtep` sets it; `peers`
//! decides which entries about other nodes are wrong, and `agent::mending` has them repaired; `announced` reads what flannel tells peers.

pub mod announced;
pub mod peers;
pub mod record;
pub mod report;
pub mod vtep;

use serde::{Deserialize, Serialize};

use crate::device::Mac;

/// How long a fresh annotation must differ from the device before the device takes it, an underlay address must be missing before another
/// is taken, and a peer be seen with another MAC before that is believed: whoever makes a device is done by then. Milliseconds.
const SETTLED: u64 = 5_000;

/// What is kept of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A vxlan device: its MAC, and the address that it sends from.
    Vtep,
    /// A bridge: its MAC, which else follows its ports.
    Bridge,
}

/// Whether one device can have this MAC: it is no group's, and not all zeros.
fn is_unicast(mac: Mac) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}
