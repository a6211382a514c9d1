//! Where a `Snapshot` comes from: watch (I/O in), then decode (foreign to model).
//!
//! A source hands out whole snapshots only. What it cannot reach at all is an error that leaves the caller's
//! last good state alone; what is wrong with one object is a `Rejection` inside the snapshot.

pub mod checkpoint;
pub mod decode;
mod error;
pub mod file;
pub mod hub;
pub mod kube;
pub mod objects;
pub mod preferred;
mod room;
pub mod spec;

pub use error::SourceError;
pub use spec::{SourceSpec, SpecError};
