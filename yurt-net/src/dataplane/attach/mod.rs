//! The objects that outlive the agent: pins, links on cgroups, programs on devices.

pub mod before;
pub mod bpffs;
pub(super) mod cgroup;
pub mod cleanup;
pub(super) mod devices;
pub(super) mod kept;
pub(super) mod pinned;
pub mod strays;
pub mod tc;
