//! The kernel's maps, seen and written. The trait is cut at what the agent needs: observe, apply.
//!
//! `service::encode` and `service::decode` are the boundary between the proxy's vocabulary (`plan`) and the kernel's
//! (`yurt_ebpf::abi`): byte orders and packed words exist only behind them. `bpf` holds the real maps, `memory` the
//! same in memory for tests.

pub mod bpf;
pub mod claim;
pub mod clients;
pub mod grace;
pub mod guard;
mod kept;
pub mod memory;
pub mod netlink;
mod pinned;
mod service;
pub mod sockets;
pub mod strays;
mod sys;
pub mod tc;
pub mod translate;
pub mod vtep;

use std::io;
use std::path::PathBuf;

use crate::plan::{MapImage, Plan};

/// Where plans go.
pub trait Dataplane {
    /// Reads the maps.
    fn observe(&self) -> Result<MapImage, DataplaneError>;

    /// Whether the maps hold just what an image does. Makes no image of them: at rest this is all that an agent does.
    fn holds(&self, image: &MapImage) -> Result<bool, DataplaneError>;

    /// Writes a plan, in order. On an error, what was written stays: observe and plan again.
    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError>;
}

/// A plan that was applied in part.
#[derive(Debug, thiserror::Error)]
#[error("apply write {applied} of {total}")]
pub struct ApplyError {
    /// Writes that landed.
    pub applied: usize,
    /// Writes of the plan.
    pub total: usize,
    /// Why the next one did not.
    #[source]
    pub source: DataplaneError,
}

/// The loader's words: its types stay in `bpf`.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong with maps, programs and links.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The embedded object is the stub of a debug build.
    #[error("this binary was built without the eBPF programs: run `cargo xtask build`")]
    NoPrograms,
    /// `--bpffs` is not one.
    #[error("{} is not a bpf file system: mount one there (mount -t bpf bpf {0})", path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// A directory or pin.
    #[error("{operation} {}", path.display())]
    Path {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another agent is at work.
    #[error(
        "{what} is in use by another yurt-net (pid {pid}): one agent serves a node; stop that one first"
    )]
    InUse {
        /// What both would own.
        what: String,
        /// Who has it.
        pid: String,
    },
    /// A claim could not be made, or those of others not be read.
    #[error("look for other agents")]
    Claim(#[source] io::Error),
    /// A pin directory of an agent that is newer than this one.
    #[error(
        "{} was made by a newer yurt-net: run that version, or remove all pins with its `yurt-net cleanup`", path.display()
    )]
    UnknownAbi {
        /// The directory.
        path: PathBuf,
    },
    /// The object could not be loaded.
    #[error("load the eBPF object")]
    Load(#[source] LoadError),
    /// A program was rejected.
    #[error("load program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The verifier's words.
        #[source]
        source: LoadError,
    },
    /// The object lacks something: it was built from other sources.
    #[error("the eBPF object has no {name}")]
    Missing {
        /// Program or map.
        name: &'static str,
    },
    /// A map call.
    #[error("{operation} map {map}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// On which map.
        map: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A link call.
    #[error("{operation} {program}")]
    Link {
        /// What was tried.
        operation: &'static str,
        /// Which program's link.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A call on a device.
    #[error("{operation} {program} on device {ifindex}")]
    Device {
        /// What was tried.
        operation: &'static str,
        /// With which program.
        program: String,
        /// Index of the device.
        ifindex: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A write that a plan for these maps cannot hold.
    #[error("entry {index} is beyond the end of map {map}")]
    OutOfBounds {
        /// The map.
        map: &'static str,
        /// The entry.
        index: u32,
    },
    /// The grace period could not be waited for.
    #[error("wait for running programs")]
    Grace(#[source] io::Error),
    /// The network namespace has no cookie.
    #[error("read the cookie of the network namespace")]
    NetnsCookie(#[source] io::Error),
}
