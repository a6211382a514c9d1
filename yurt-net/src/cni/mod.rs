//! The plugins that container runtimes run for each Pod (`yurt-ipam` and `yurt-cni`, this program under other names), and the
//! configuration that they are put into.
//!
//! `plugin` answers a request: it reads it and writes the answer with `protocol`, decides with the rules of `retain`, and does what is
//! to be done to the Pod's interface with `interface` and `guarding`. `install` is what an operator or the agent does once a node.

mod asker;
mod error;
mod guarding;
pub mod install;
pub mod interface;
mod leftovers;
mod living;
mod plugin;
mod protocol;

pub use self::error::CniError;
pub use self::plugin::Plugin;
pub use self::protocol::{Claimed, Config, Environment, MacPolicy};
