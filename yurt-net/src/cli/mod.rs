//! The verbs of the command line: thin, except for what prints.

pub mod check;
pub mod cni;
pub mod explain;
pub mod flows;
mod kept;
pub mod ledger;
mod links;
mod live;
pub mod load;
pub mod monitor;
mod names;
pub mod services;
pub mod verbs;
