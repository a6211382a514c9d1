//! The verbs of the command line: thin, except for what prints.

pub mod check;
pub mod cni;
pub mod explain;
pub mod ledger;
pub mod show;
pub mod verbs;
