//! What the tests, the demo and the bench of yurt-net share: a scripted apiserver, a lab of nodes and Pods made of
//! namespaces, a container runtime, what kustomize makes of `deploy/`, the table that shows who answered whom, and the
//! measures of the bench.

pub mod apiserver;
pub mod bench;
mod bpf;
pub mod kustomize;
pub mod lab;
pub mod matrix;
pub mod preempted;
pub mod runtime;
pub mod testrun;
