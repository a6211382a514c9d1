//! The machine below everything: its clocks, disks, file systems, network namespaces and processes, and how people read
//! its figures.

pub mod cgroup;
pub mod clock;
pub mod columns;
pub mod disk;
pub mod durations;
pub mod filesystem;
pub mod limit;
pub mod netns;
pub mod process;
