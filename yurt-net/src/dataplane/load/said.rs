//! Messages of the programs about their decisions: from an object that is built for it, and loaded in place of the
//! embedded one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use tracing::{error, info, warn};

use crate::dataplane::{DataplaneError, LoadError};
use crate::host::disk::read_whole;

/// How long a message of a program may wait in its ring.
const PAUSE: Duration = Duration::from_millis(100);
/// Many times the size of such an object.
const MAX_OBJECT_BYTES: u64 = 16 << 20;
/// The name of the ring that aya-log writes to.
const MAP: &str = "AYA_LOGS";

static OBJECT: OnceLock<PathBuf> = OnceLock::new();

/// Makes this process load all its programs from an object of `cargo xtask build-ebpf --log` from now on.
pub fn load_from(path: &Path) {
    // Called once; a second call would change nothing.
    let _ = OBJECT.set(path.to_owned());
}

/// The path of the object that is loaded instead of the embedded one.
pub(super) fn object_path() -> Option<&'static Path> {
    OBJECT.get().map(PathBuf::as_path)
}

/// The bytes of that object.
pub(super) fn object() -> Option<Result<Vec<u8>, DataplaneError>> {
    let path = object_path()?;
    Some(read(path).map_err(|source| unfit(path, source)))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    read_whole(path, MAX_OBJECT_BYTES)
}

fn unfit(path: &Path, source: io::Error) -> DataplaneError {
    let path = path.to_owned();
    DataplaneError::LogObject { path, source }
}

/// The messages of the programs of one object.
pub(super) struct Said(EbpfLogger<ToTracing>);

impl Said {
    /// Takes the ring, if the object has one and its messages are wanted.
    pub(super) fn by(ebpf: &mut Ebpf) -> Result<Option<Self>, DataplaneError> {
        let Some(path) = object_path() else {
            return Ok(None);
        };
        if ebpf.map(MAP).is_none() {
            let silent = format!("its programs log nothing: it has no map {MAP}");
            return Err(unfit(path, io::Error::other(silent)));
        }
        let logger = EbpfLogger::init_with_logger(ebpf, ToTracing);
        let logger = logger.map_err(|error| DataplaneError::Load(error.into()))?;
        Ok(Some(Self(logger)))
    }

    /// Forwards the messages to the agent's own log, for as long as the process runs.
    pub(super) fn forward(mut self) -> Result<(), DataplaneError> {
        let thread = thread::Builder::new().name("ebpf-log".to_owned());
        let forward = move || {
            loop {
                self.0.flush();
                thread::sleep(PAUSE);
            }
        };
        let started = thread.spawn(forward);
        started.map_err(|error| DataplaneError::Load(LoadError::from(error)))?;
        Ok(())
    }
}

/// From the `log` crate, which aya uses, to the agent's own log.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let said = record.args();
        match record.level() {
            Level::Error => error!(target: "ebpf", "{said}"),
            Level::Warn => warn!(target: "ebpf", "{said}"),
            Level::Info | Level::Debug | Level::Trace => info!(target: "ebpf", "{said}"),
        }
    }

    fn flush(&self) {}
}
