//! The operator's settings, as values. Flags, and environment variables in their place, are decoded into them.

pub mod agent;
pub mod flags;
pub mod place;

pub use self::agent::AgentConfig;
pub use self::flags::{Cli, Command};
pub use self::place::Place;
