//! The node agent of yurt-net, as a library: the binary, the lab and the benchmarks use the same code.

pub mod cli;
pub mod dataplane;
pub mod model;
pub mod plan;
pub mod policy;
pub mod table;
