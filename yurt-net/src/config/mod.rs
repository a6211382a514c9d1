//! What the operator decides, as values. Flags, and variables of the environment in their place, are decoders of them.

pub mod agent;
pub mod flags;
pub mod place;

pub use self::agent::AgentConfig;
pub use self::flags::{Cli, Command};
pub use self::place::Place;
