//! What the tests and the demo of yurt-net share: a lab of nodes and Pods made of
//! namespaces.

pub mod lab;
