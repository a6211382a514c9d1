//! Errors between the agent and the kernel.

use std::io;
use std::path::{Path, PathBuf};

/// A plan that was applied in part.
#[derive(Debug, thiserror::Error)]
#[error("apply write {applied} of {total}")]
pub struct ApplyError {
    /// Writes that landed.
    pub applied: usize,
    /// Writes of the plan.
    pub total: usize,
    /// Why the next write failed.
    #[source]
    pub source: DataplaneError,
}

/// An error of the loader, whose types stay in `load`.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// An error of maps, programs and links.
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
        /// The operation.
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
        /// The thing that both agents would own.
        what: String,
        /// The process of the other agent.
        pid: String,
    },
    /// Another process listens to the programs.
    #[error("another yurt-net monitor listens to the programs (pid {pid}): stop that one first")]
    Listening {
        /// The process.
        pid: String,
    },
    /// The ring that was listened to is not the one that programs write to.
    #[error("{} was replaced, as `yurt-net cleanup` does it: start again", path.display())]
    OtherRing {
        /// Its pin.
        path: PathBuf,
    },
    /// A claim could not be made, or the claims of others could not be read.
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
    /// A map that no agent of this version makes.
    #[error("{} is no map of this yurt-net", path.display())]
    OtherMap {
        /// Its pin.
        path: PathBuf,
    },
    /// The object of `--ebpf-log` could not be read, or its programs log nothing.
    #[error(
        "--ebpf-log {}: give the object that `cargo xtask build-ebpf --log` makes, of this version", path.display()
    )]
    LogObject {
        /// The object.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
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
        /// The operation.
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
        /// The operation.
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
        /// The operation.
        operation: &'static str,
        /// With which program.
        program: String,
        /// Index of the device.
        ifindex: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A write to an entry that these maps do not have.
    #[error("entry {index} is beyond the end of map {map}")]
    OutOfBounds {
        /// The map.
        map: &'static str,
        /// The entry.
        index: u32,
    },
    /// Waiting for the grace period failed.
    #[error("wait for running programs")]
    Grace(#[source] io::Error),
    /// The kernel does not tell the cookie of the network namespace.
    #[error("read the cookie of the network namespace")]
    NetnsCookie(#[source] io::Error),
}

/// The error of a write beyond the end of an array.
pub(super) fn out_of_bounds(map: &'static str, index: u32) -> DataplaneError {
    DataplaneError::OutOfBounds { map, index }
}

/// The operation on a directory or a pin, for its error.
pub(super) fn at<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DataplaneError + 'a {
    move |source| DataplaneError::Path {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// The same of a map.
pub(super) fn on_map(
    operation: &'static str,
    map: &'static str,
) -> impl Fn(io::Error) -> DataplaneError {
    move |source| DataplaneError::Map {
        operation,
        map,
        source,
    }
}

/// The same of a program or its link.
pub(super) fn on_program(
    operation: &'static str,
    program: &'static str,
) -> impl Fn(io::Error) -> DataplaneError {
    move |source| DataplaneError::Link {
        operation,
        program,
        source,
    }
}

/// The same of a program on a device.
pub(super) fn on_device(
    operation: &'static str,
    program: &str,
    ifindex: u32,
) -> impl FnOnce(io::Error) -> DataplaneError {
    let program = program.to_owned();
    move |source| DataplaneError::Device {
        operation,
        program,
        ifindex,
        source,
    }
}
