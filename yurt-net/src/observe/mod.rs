//! What others can see of a running agent: its metrics, and the process that it is.

pub mod columns;
pub mod durations;
pub mod http;
pub mod metrics;
pub mod process;
