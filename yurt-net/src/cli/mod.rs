//! The verbs of the command line: thin, except for what prints.

pub mod explain;
pub mod show;
