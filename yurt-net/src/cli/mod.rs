//! The verbs of the command line: thin, except for what prints.

pub mod check;
pub mod cni;
pub mod ledger;
pub mod verbs;
