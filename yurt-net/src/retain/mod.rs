//! A Pod keeps its addresses: across restarts of its sandbox, of the kubelet and of the node, with the cloud or without.
//!
//! ```text
//! container runtime -> cni (yurt-ipam, yurt-cni) -> plan + adopt -> ledger::store -> disk, memory
//!                        \_ interface (MAC, neighbours)  ^
//! agent -> watch ----------------------------------------'
//! ```
//!
//! `ledger`, `plan`, `adopt`, `range`, `truth` and `probing` are pure. docs/retention.md is what an operator needs.

pub mod probing;
pub mod settings;
pub mod truth;
