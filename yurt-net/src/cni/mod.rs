//! The plugins that container runtimes run for each Pod (`yurt-ipam` and `yurt-cni`, this program under other names),
//! and the configuration that they are put into.
//!
//! `plugin` answers a request: `protocol` reads it and writes the answer, the rules of `ledger` decide, and `interface`
//! and `guarding` change the Pod's interface. `install` puts the plugins into a node's configuration, for an operator
//! or the agent.

mod asker;
mod error;
mod guarding;
pub mod install;
pub mod interface;
mod leftovers;
mod living;
mod plugin;
mod protocol;

pub use self::plugin::Plugin;
pub use self::protocol::{Config, Environment};
