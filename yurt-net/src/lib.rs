//! The node agent of yurt-net, as a library: the binary, the lab and the benchmarks use the same code.

pub mod model;
pub mod source;
pub mod table;
