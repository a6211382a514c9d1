//! From the embedded object to programs in the kernel, with the maps that they use.

pub(super) mod hooks;
pub(super) mod maps;
mod object;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use self::hooks::ON_CGROUP;
use self::maps::{StateCapacity, guard_maps, state_maps, table_maps, translate_maps};
use self::object::{MapPlan, Object};
use crate::dataplane::DataplaneError;
use crate::dataplane::sys::{self, MapInfo};
use crate::plan::Capacity;

/// The programs, or nothing in a debug build without the BPF tools. Compressed: they are read a few times, and every page of a file that
/// was read once counts as the agent's.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/yurt-ebpf.o.lz4"));

/// Whether this binary has the programs.
pub(in crate::dataplane) fn has_object() -> Result<(), DataplaneError> {
    match OBJECT {
        [] => Err(DataplaneError::NoPrograms),
        _ => Ok(()),
    }
}

/// The object. What allocators give is aligned for every ELF header.
fn object() -> Result<Vec<u8>, DataplaneError> {
    has_object()?;
    // build.rs has made it: what cannot be unpacked is as good as none.
    lz4_flex::decompress_size_prepended(OBJECT).map_err(|_damaged| DataplaneError::NoPrograms)
}

/// The guard; attached to devices, at their ingress.
const GUARD: &str = hooks::GUARD.0;
/// Translation; to a Pod at egress, from it at ingress.
const TRANSLATE: [&str; 2] = [hooks::TRANSLATE[0].0, hooks::TRANSLATE[1].0];

/// Listens to peers' tunnels; a filter of packet sockets.
const VTEP: &str = "yurt_vtep_in";

/// Its map.
pub(in crate::dataplane) const VTEP_MAP: &str = "yurt_vtep";
/// The programs that are not of a cgroup.
const OTHERS: [&str; 4] = [GUARD, TRANSLATE[0], TRANSLATE[1], VTEP];

/// What the compiler may call instead of writing it out.
const COMPILER_CALLS: [&str; 2] = ["memset", "memcpy"];

/// A program as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramSize {
    /// Name.
    pub name: &'static str,
    /// Instructions that the verifier looked at; 0 below kernel 5.16.
    pub verified: u32,
    /// Size after translation, bytes.
    pub translated: u32,
}

pub(in crate::dataplane) struct LoadedProgram {
    pub(in crate::dataplane) name: &'static str,
    pub(in crate::dataplane) attach_type: u32,
    pub(in crate::dataplane) fd: OwnedFd,
    pub(in crate::dataplane) id: u32,
}

/// What this kernel makes of the programs.
#[derive(Debug)]
pub struct Trial {
    /// Those on sockets.
    pub sockets: Vec<ProgramSize>,
    /// Whether a refusal is `ECONNREFUSED`.
    pub has_set_retval: bool,
    /// The guard, which Services do without.
    pub guard: Result<ProgramSize, DataplaneError>,
    /// Translation, likewise.
    pub translate: Result<[ProgramSize; 2], DataplaneError>,
    /// Listening to peers' tunnels, likewise.
    pub vtep: Result<ProgramSize, DataplaneError>,
}

/// Loads the programs against maps of their own, and drops both: can this kernel run them?
pub fn trial() -> Result<Trial, DataplaneError> {
    sys::raise_memlock();
    let (_, sockets, has_set_retval) = load_either(&TRIAL_CAPACITY, TRIAL_STATE, None)?;
    Ok(Trial {
        sockets,
        has_set_retval,
        guard: load_guard(None).map(|(_, size)| size),
        translate: load_translate(None).map(|programs| programs.map(|(_, size)| size)),
        vtep: load_vtep().map(|(_, _, size)| size),
    })
}

/// As [`trial`] for the programs on sockets, but with `bpf_set_retval` or without it, whatever this kernel has.
pub fn trial_as(has_set_retval: bool) -> Result<Vec<ProgramSize>, DataplaneError> {
    sys::raise_memlock();
    load(&TRIAL_CAPACITY, TRIAL_STATE, None, has_set_retval).map(|(_, sizes)| sizes)
}

const TRIAL_STATE: StateCapacity = StateCapacity {
    peers: 512,
    affinity: 1,
};
const TRIAL_CAPACITY: Capacity = Capacity {
    frontends4: 1,
    frontends6: 1,
    services: 1,
    slots4: 512,
    slots6: 512,
};

pub(in crate::dataplane) struct Pins {
    pub(in crate::dataplane) table: PathBuf,
    pub(in crate::dataplane) state: PathBuf,
}

type Loaded = (Vec<LoadedProgram>, Vec<ProgramSize>);

/// Loads the programs with `bpf_set_retval`, or without where the verifier does not know it in these hooks: before
/// about 6.1. The last value says which.
pub(in crate::dataplane) fn load_either(
    capacity: &Capacity,
    state: StateCapacity,
    pins: Option<&Pins>,
) -> Result<(Vec<LoadedProgram>, Vec<ProgramSize>, bool), DataplaneError> {
    match load(capacity, state, pins, true) {
        Ok((programs, sizes)) => Ok((programs, sizes, true)),
        // If that was not the reason, the second error says what is.
        Err(DataplaneError::Program { .. }) => {
            load(capacity, state, pins, false).map(|(programs, sizes)| (programs, sizes, false))
        }
        Err(error) => Err(error),
    }
}

/// Loads the programs against the maps that are pinned; makes and pins those that are not.
fn load(
    capacity: &Capacity,
    state: StateCapacity,
    pins: Option<&Pins>,
    has_set_retval: bool,
) -> Result<Loaded, DataplaneError> {
    let mut plans = BTreeMap::new();
    for (name, info) in table_maps(capacity) {
        let pin = pins.map(|pins| pins.table.join(name));
        let max_entries = info.max_entries;
        plans.insert(name, MapPlan { max_entries, pin });
    }
    for (name, info) in state_maps(state) {
        let pin = pins.map(|pins| pins.state.join(name));
        let max_entries = info.max_entries;
        plans.insert(name, MapPlan { max_entries, pin });
    }
    let switches = [
        ("HAS_SET_RETVAL", u32::from(has_set_retval)),
        ("PEER_MASK", state.peers - 1),
    ];
    let is_of_a_cgroup = |name: &str| !OTHERS.contains(&name);
    let object = Object::new(&object()?, is_of_a_cgroup, &switches, &plans)?;
    let mut programs = Vec::with_capacity(ON_CGROUP.len());
    let mut sizes = Vec::with_capacity(ON_CGROUP.len());
    for (name, attach_type) in ON_CGROUP {
        let program_type = sys::PROG_TYPE_CGROUP_SOCK_ADDR;
        let (program, size) = load_program(&object, name, program_type, attach_type)?;
        programs.push(program);
        sizes.push(size);
    }
    Ok((programs, sizes))
}

/// Loads the guard against the maps that are pinned in a directory; makes and pins those that are not.
pub(in crate::dataplane) fn load_guard(
    pins: Option<&Path>,
) -> Result<(LoadedProgram, ProgramSize), DataplaneError> {
    let mut plans = pinned_in(pins, &guard_maps());
    // The program's own.
    let claims = MapPlan {
        max_entries: 1,
        pin: None,
    };
    plans.insert("yurt_claims", claims);
    let object = with_only(&[GUARD], &plans)?;
    load_program(&object, GUARD, sys::PROG_TYPE_SCHED_CLS, 0)
}

/// Loads translation likewise: to the Pod, and from it.
pub(in crate::dataplane) fn load_translate(
    pins: Option<&Path>,
) -> Result<[(LoadedProgram, ProgramSize); 2], DataplaneError> {
    let object = with_only(&TRANSLATE, &pinned_in(pins, &translate_maps()))?;
    let load = |name| load_program(&object, name, sys::PROG_TYPE_SCHED_CLS, 0);
    let [to_pod, from_pod] = TRANSLATE;
    Ok([load(to_pod)?, load(from_pod)?])
}

/// Loads the program that listens, and makes its map, which is nobody else's.
pub(in crate::dataplane) fn load_vtep()
-> Result<(OwnedFd, LoadedProgram, ProgramSize), DataplaneError> {
    let as_it_says = MapPlan {
        max_entries: 0,
        pin: None,
    };
    let mut object = with_only(&[VTEP], &BTreeMap::from([(VTEP_MAP, as_it_says)]))?;
    let (program, size) = load_program(&object, VTEP, sys::PROG_TYPE_SOCKET_FILTER, 0)?;
    let map = object.take_map(VTEP_MAP);
    Ok((
        map.ok_or(DataplaneError::Missing { name: VTEP_MAP })?,
        program,
        size,
    ))
}

fn pinned_in<'a>(pins: Option<&Path>, maps: &[(&'a str, MapInfo)]) -> BTreeMap<&'a str, MapPlan> {
    let plans = maps.iter().map(|&(name, MapInfo { max_entries, .. })| {
        let pin = pins.map(|pins| pins.join(name));
        (name, MapPlan { max_entries, pin })
    });
    plans.collect()
}

/// The object with these programs only. Each is one function, apart from what the compiler calls.
fn with_only(programs: &[&str], plans: &BTreeMap<&str, MapPlan>) -> Result<Object, DataplaneError> {
    let is_wanted = |name: &str| programs.contains(&name) || COMPILER_CALLS.contains(&name);
    Object::new(&object()?, is_wanted, &[], plans)
}

fn load_program(
    object: &Object,
    name: &'static str,
    program_type: u32,
    attach_type: u32,
) -> Result<(LoadedProgram, ProgramSize), DataplaneError> {
    let loaded = object.load(name, program_type, attach_type);
    let fd = loaded.ok_or(DataplaneError::Missing { name })?;
    let fd = fd.map_err(|source| DataplaneError::Program {
        program: name,
        source: Box::new(source),
    })?;
    let info = sys::program_info(fd.as_fd()).map_err(|source| DataplaneError::Link {
        operation: "inspect",
        program: name,
        source,
    })?;
    let size = ProgramSize {
        name,
        verified: info.verified,
        translated: info.translated,
    };
    let program = LoadedProgram {
        name,
        attach_type,
        fd,
        id: info.id,
    };
    Ok((program, size))
}
