//! What others can see of a running agent: its metrics.

pub mod http;
pub mod metrics;
