//! What the tests and the demo of yurt-net share: a lab of nodes and Pods made of namespaces, and
//! the table that shows who answered whom.

pub mod lab;
pub mod matrix;
