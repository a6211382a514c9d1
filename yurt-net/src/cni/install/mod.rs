//! Puts the plugins into a node's CNI, and takes them out.
//!
//! `conflist` says how a configuration looks with them and without, `files` reads and writes it and puts the programs
//! beside others', and `run` executes a plugin as the host would, before a configuration names it.

mod conflist;
pub mod files;
pub mod run;

pub use self::conflist::{Call, Directories, Installed, Refusal, calls, install, uninstall};
