//! What others can see of a running agent, and ask of it: its status, its metrics, its socket, and whether it serves.

pub mod control;
pub mod http;
pub mod metrics;
pub mod selftest;
pub mod status;
