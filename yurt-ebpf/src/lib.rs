//! The library half of the kernel side: the map ABI and the pure decision code that both sides share.
//!
//! The binary half (`main.rs`) holds the programs. One crate, no features: the split is by `target_arch = "bpf"`, so
//! that `cargo check` and `clippy` type-check the kernel code on a machine without any BPF tool.
// A longer function says why it is one. Tables of tests are long.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod abi;
pub mod claims;
pub mod frame;
pub mod rewrite;
pub mod select;
pub mod vxlan;
