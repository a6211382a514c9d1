//! The node agent of yurt-net, as a library: the binary, the lab and the benchmarks use the same code.
// A longer function says why it is one. Tables of tests are long.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]
#![deny(unsafe_code)]

pub mod agent;
#[cfg(test)]
mod cases;
pub mod cli;
pub mod cni;
pub mod config;
#[cfg(test)]
mod costs;
pub mod dataplane;
pub mod device;
pub mod edge;
pub mod error;
pub mod explain;
mod go_json;
pub mod host;
pub mod ledger;
pub mod model;
pub mod node;
pub mod observe;
pub mod output;
pub mod plan;
pub mod pods;
pub mod policy;
pub mod source;
pub mod table;
pub mod text;
pub mod tunnel;
