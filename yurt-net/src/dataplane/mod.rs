//! The kernel, as the agent sees and changes it: maps, programs and what they are attached to.
//!
//! | room | what is there |
//! |---|---|
//! | `service` | the maps that Services are served from, the clients and the sockets of Services |
//! | `pod` | the maps of the guard and of translation |
//! | `packet` | the maps and programs that serve packets from outside |
//! | `events` | what programs tell of refusals and drops, while somebody listens |
//! | `fast` | the maps of the fast path, and what of others it would skip |
//! | `flows` | the flow tables of the packet path, read and swept |
//! | `live` | the program of the packet path on a made-up packet |
//! | `ports` | the ports that stand for clients outside, kept from sockets of this node |
//! | `counts` | counters that programs add to, by name |
//! | `tunnel` | listening to how peers send through tunnels |
//! | `attach` | pins, links on cgroups, programs on devices: all that outlives the agent |
//! | `load` | from the embedded object to programs in the kernel |
//! | `sys` | system calls |
//! | `claim` | what one agent owns on a machine |
//!
//! `service::encode` and `service::decode` are the boundary between the proxy's vocabulary (`plan`) and the kernel's
//! (`yurt_ebpf::abi`): byte orders and packed words exist only behind them. `BpfDataplane` has the kernel's maps,
//! `service::memory` the same in memory for tests.

pub mod attach;
pub mod claim;
pub mod counts;
mod error;
pub mod events;
pub mod fast;
pub mod flows;
pub mod live;
pub mod load;
pub mod netlink;
pub mod packet;
pub mod pod;
pub mod ports;
pub mod service;
mod sys;
pub mod tunnel;

pub use self::error::{ApplyError, DataplaneError, LoadError};
use crate::plan::{MapImage, Plan};

/// Where plans go.
pub trait Dataplane {
    /// Reads the maps.
    fn observe(&self) -> Result<MapImage, DataplaneError>;

    /// Whether the maps hold just what an image does. Makes no image of them: at rest this is all that an agent does.
    fn holds(&self, image: &MapImage) -> Result<bool, DataplaneError>;

    /// Writes a plan, in order. On an error, what was written stays: observe and plan again.
    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError>;
}
