//! The operator's settings, as values. Flags, environment variables and files are decoded into them.

pub mod agent;
mod file;
pub mod flags;
pub mod place;
pub mod reading;
mod record;

pub use self::agent::AgentConfig;
pub use self::flags::{Cli, Command};
pub use self::place::Place;
pub use self::reading::{Again, Said, Unusable, Written, read};
pub use self::record::Record;
