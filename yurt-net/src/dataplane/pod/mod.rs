//! Programs on the devices of Pods, and their maps.

pub mod guard;
pub mod translate;
