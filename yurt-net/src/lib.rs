//! The node agent of yurt-net, as a library: the binary, the lab and the benchmarks use the same code.

pub mod cli;
pub mod model;
pub mod policy;
pub mod table;
