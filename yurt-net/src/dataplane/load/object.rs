//! Brings the embedded object into the kernel, by aya: first the maps, then the programs that use them.
//!
//! Decision 24 says what this costs, and what aya does not do.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::maps::Map;
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::said::Said;
use crate::dataplane::sys::without_files;
use crate::dataplane::{DataplaneError, LoadError};

/// How a map is made, if not as the object says.
pub(super) struct MapPlan {
    /// 0: as the object says.
    pub(super) max_entries: u32,
    /// The map is opened there if it is pinned, otherwise made and pinned.
    pub(super) pin: Option<PathBuf>,
}

/// A program in the kernel. It lives as long as this value, a pin or a link.
pub(in crate::dataplane) struct LoadedProgram {
    pub(in crate::dataplane) name: &'static str,
    /// The attach type of a program on cgroups; 0 for others.
    pub(in crate::dataplane) attach_type: u32,
    pub(in crate::dataplane) fd: OwnedFd,
    pub(in crate::dataplane) id: u32,
}

/// The verifier's result for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramSize {
    /// Name.
    pub name: &'static str,
    /// Instructions that the verifier looked at; 0 below kernel 5.16.
    pub verified: u32,
    /// Size after translation, bytes.
    pub translated: u32,
}

/// An object whose maps exist. They live as long as their pins, a program that uses them, or this value.
pub(super) struct Object {
    ebpf: Ebpf,
    /// The reader of the programs' messages, until a program is loaded that may send some.
    said: Option<Said>,
}

impl Object {
    /// Opens or makes the maps; loads no program yet. `switches` are values of statics, set before programs can see
    /// them.
    pub(super) fn new(
        bytes: &[u8],
        switches: &[(&'static str, u32)],
        plans: &BTreeMap<&'static str, MapPlan>,
    ) -> Result<Self, DataplaneError> {
        // The loader would parse all types of the kernel, which takes twice the memory of a small node's agent, and no
        // program of ours uses one. The only way to make a loader without them is to keep it from finding their file.
        let mut loader = without_files(EbpfLoader::new);
        loader.btf(None);
        for (name, value) in switches {
            loader.override_global(name, value, true);
        }
        for (name, plan) in plans {
            if plan.max_entries > 0 {
                loader.map_max_entries(name, plan.max_entries);
            }
            if let Some(pin) = &plan.pin {
                loader.map_pin_path(name, pin.as_path());
            }
        }
        let loaded = loader.load(bytes).map_err(|error| match error {
            // The words of aya's own error would be printed twice.
            EbpfError::MapError(error) => LoadError::from(error),
            error => LoadError::from(error),
        });
        let mut ebpf = loaded.map_err(DataplaneError::Load)?;
        let said = Said::by(&mut ebpf)?;
        Ok(Self { ebpf, said })
    }

    /// Takes a per-CPU hash out of the object, to be kept.
    pub(super) fn take_per_cpu_hash(
        &mut self,
        name: &'static str,
    ) -> Result<OwnedFd, DataplaneError> {
        let Some(Map::PerCpuHashMap(map)) = self.ebpf.take_map(name) else {
            return Err(DataplaneError::Missing { name });
        };
        let map = map.fd().as_fd().try_clone_to_owned();
        map.map_err(|source| DataplaneError::Map {
            operation: "open",
            map: name,
            source,
        })
    }

    /// Loads a program.
    pub(super) fn load(
        &mut self,
        name: &'static str,
        attach_type: u32,
    ) -> Result<(LoadedProgram, ProgramSize), DataplaneError> {
        let loaded = load(name, attach_type, self.ebpf.program_mut(name))?;
        forward(&mut self.said)?;
        Ok(loaded)
    }

    /// Loads programs, in as many threads as there are processors: a start mostly waits for the verifier. The result is
    /// in the order of `wanted`; the error is the first program's that failed.
    pub(super) fn load_all<const N: usize>(
        &mut self,
        wanted: [(&'static str, u32); N],
    ) -> Result<Vec<(LoadedProgram, ProgramSize)>, DataplaneError> {
        let programs = self.ebpf.programs_mut();
        let mut programs: BTreeMap<_, _> = programs
            .map(|(name, program)| (name.to_owned(), program))
            .collect();
        let tasks = wanted.map(|(name, attach_type)| (name, attach_type, programs.remove(name)));
        let tasks = Mutex::new(tasks.into_iter().enumerate());
        // Of the programs on sockets, the last ones take longest, so they come first.
        let next = || {
            let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.next_back()
        };
        let work = || {
            let mut loaded = Vec::new();
            while let Some((at, (name, attach_type, program))) = next() {
                loaded.push((at, load(name, attach_type, program)));
            }
            loaded
        };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut loaded = thread::scope(|scope| {
            let helpers: Vec<_> = (1..processors.min(N))
                .map_while(|_| {
                    let thread = thread::Builder::new().name("load".to_owned());
                    thread.spawn_scoped(scope, work).ok()
                })
                .collect();
            let mut loaded = work();
            for helper in helpers {
                loaded.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
            loaded
        });
        loaded.sort_by_key(|(at, _)| *at);
        let loaded: Vec<_> = loaded
            .into_iter()
            .map(|(_, loaded)| loaded)
            .collect::<Result<_, _>>()?;
        forward(&mut self.said)?;
        Ok(loaded)
    }
}

/// Forwards the programs' messages from now on.
fn forward(said: &mut Option<Said>) -> Result<(), DataplaneError> {
    said.take().map_or(Ok(()), Said::forward)
}

fn load(
    name: &'static str,
    attach_type: u32,
    program: Option<&mut Program>,
) -> Result<(LoadedProgram, ProgramSize), DataplaneError> {
    let program = program.ok_or(DataplaneError::Missing { name })?;
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::SocketFilter(program) => program.load(),
        _ => return Err(DataplaneError::Missing { name }),
    };
    let failed = |error| DataplaneError::Program {
        program: name,
        source: shortened(error),
    };
    loaded.map_err(failed)?;
    let info = program.info().map_err(failed)?;
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    let program = LoadedProgram {
        name,
        attach_type,
        fd: fd.map_err(|error| failed(error.into()))?,
        id: info.id(),
    };
    let size = ProgramSize {
        name,
        verified: info.verified_instruction_count().unwrap_or_default(),
        translated: info.size_translated().unwrap_or_default(),
    };
    Ok((program, size))
}

/// Why a program was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("{source}; the verifier's last words:\n{words}")]
struct Rejected {
    source: io::Error,
    words: String,
}

/// The verifier logs everything that it did, and its complaint at the end.
fn shortened(error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => Box::new(Rejected {
            source: io_error,
            words: last_words(&verifier_log.to_string()),
        }),
        error => Box::new(error),
    }
}

/// The last lines of a log.
fn last_words(log: &str) -> String {
    const LINES: usize = 24;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_end_of_the_log() {
        let lines: Vec<String> = (0..100).map(|line| format!("line {line}")).collect();
        let words = last_words(&lines.join("\n"));
        assert!(
            words.starts_with("line 76\n") && words.ends_with("line 99"),
            "{words}"
        );
        assert_eq!(last_words(""), "");
    }
}
