//! From the embedded object to programs in the kernel, with the maps that they use.

pub(super) mod hooks;
pub(super) mod maps;
mod object;
mod said;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use self::hooks::ON_CGROUP;
use self::maps::{
    EVENT_MAPS, FlowCapacity, StateCapacity, VTEP_MAP, all_maps, guard_maps, packet_maps,
    state_maps, table_maps, translate_maps,
};
pub(super) use self::object::LoadedProgram;
pub use self::object::ProgramSize;
use self::object::{MapPlan, Object};
pub use self::said::load_from;
use super::DataplaneError;
use super::error::at;
use super::sys::{self, MapInfo};
use crate::plan::Capacity;

/// The programs, or nothing in a debug build without the BPF tools. Compressed, because they are read only a few times,
/// and every page of a file that was read once counts as the agent's memory.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/yurt-ebpf.o.lz4"));

/// Fails if this binary has no programs.
pub(in crate::dataplane) fn has_object() -> Result<(), DataplaneError> {
    match OBJECT {
        [] if said::object_path().is_none() => Err(DataplaneError::NoPrograms),
        _ => Ok(()),
    }
}

/// The object, unpacked. Memory from the allocator is aligned for every ELF header.
fn object() -> Result<Vec<u8>, DataplaneError> {
    has_object()?;
    if let Some(object) = said::object() {
        return object;
    }
    // build.rs has packed it: an object that cannot be unpacked is as good as none.
    lz4_flex::decompress_size_prepended(OBJECT).map_err(|_damaged| DataplaneError::NoPrograms)
}

/// The guard: at the ingress of Pods' devices.
const GUARD: &str = hooks::GUARD.0;
/// Translation: at the egress to a Pod, and at the ingress from it.
const TRANSLATE: [&str; 2] = [hooks::TRANSLATE[0].0, hooks::TRANSLATE[1].0];

/// Bytes of an Ethernet header, which layer-3 devices do not have.
const ETHERNET_HEADER: u32 = 14;

/// The listener to peers' tunnels: a filter of packet sockets.
const VTEP: &str = "yurt_vtep_in";
/// The result of loading the programs on this kernel.
#[derive(Debug)]
pub struct Trial {
    /// The programs on sockets.
    pub sockets: Vec<ProgramSize>,
    /// Whether a refused connect fails with `ECONNREFUSED`.
    pub has_set_retval: bool,
    /// The guard; Services do not need it.
    pub guard: Result<ProgramSize, DataplaneError>,
    /// Translation, likewise.
    pub translate: Result<[ProgramSize; 2], DataplaneError>,
    /// Listening to peers' tunnels, likewise.
    pub vtep: Result<ProgramSize, DataplaneError>,
    /// The packet path, likewise.
    pub packet: Result<Vec<ProgramSize>, DataplaneError>,
}

/// Loads the programs against maps of their own, and drops both: this shows whether the kernel can run them.
pub fn trial() -> Result<Trial, DataplaneError> {
    sys::raise_memlock();
    let (_, sockets, has_set_retval) = load_either(&TRIAL_CAPACITY, TRIAL_STATE, None)?;
    Ok(Trial {
        sockets,
        has_set_retval,
        guard: load_guard(None).map(|(_, size)| size),
        translate: load_translate(None).map(|programs| programs.map(|(_, size)| size)),
        vtep: load_vtep().map(|(_, _, size)| size),
        packet: load_packet(None, FlowCapacity { v4: 1, v6: 1 }, (12000, 18000), true)
            .map(|(_, sizes)| sizes),
    })
}

/// Like [`trial`] for the programs on sockets, but with or without `bpf_set_retval` as given, whatever this kernel has.
pub fn trial_as(has_set_retval: bool) -> Result<Vec<ProgramSize>, DataplaneError> {
    sys::raise_memlock();
    load(&TRIAL_CAPACITY, TRIAL_STATE, None, has_set_retval).map(|(_, sizes)| sizes)
}

const TRIAL_STATE: StateCapacity = StateCapacity {
    tcp_peers: 512,
    affinity: 1,
};
const TRIAL_CAPACITY: Capacity = Capacity {
    frontends4: 1,
    frontends6: 1,
    services: 1,
    slots4: 512,
    slots6: 512,
};

#[derive(Debug)]
pub(in crate::dataplane) struct Pins {
    pub(in crate::dataplane) table: PathBuf,
    pub(in crate::dataplane) state: PathBuf,
}

type Loaded = (Vec<LoadedProgram>, Vec<ProgramSize>);

/// Loads the programs on sockets with `bpf_set_retval`, or without it if the verifier refuses it in these hooks, as
/// before about Linux 6.1. The last value says which.
pub(in crate::dataplane) fn load_either(
    capacity: &Capacity,
    state: StateCapacity,
    pins: Option<&Pins>,
) -> Result<(Vec<LoadedProgram>, Vec<ProgramSize>, bool), DataplaneError> {
    match load(capacity, state, pins, true) {
        Ok((programs, sizes)) => Ok((programs, sizes, true)),
        // If `bpf_set_retval` was not the reason, the second error names the real one.
        Err(DataplaneError::Program { .. }) => {
            load(capacity, state, pins, false).map(|(programs, sizes)| (programs, sizes, false))
        }
        Err(error) => Err(error),
    }
}

/// Loads the programs against the pinned maps, and makes and pins those that are missing.
fn load(
    capacity: &Capacity,
    state: StateCapacity,
    pins: Option<&Pins>,
    has_set_retval: bool,
) -> Result<Loaded, DataplaneError> {
    let table = pins.map(|pins| pins.table.as_path());
    let kept = pins.map(|pins| pins.state.as_path());
    let mut plans = plans_for(table, table_maps(capacity));
    plans.extend(pinned_in(kept, state_maps(state)));
    let switches = [
        ("HAS_SET_RETVAL", u32::from(has_set_retval)),
        ("PEER_MASK", state.tcp_peers - 1),
    ];
    let mut object = Object::new(&object()?, &switches, &plans)?;
    Ok(object.load_all(ON_CGROUP)?.into_iter().unzip())
}

/// Loads the guard against the maps that are pinned in a directory, and makes and pins those that are missing.
pub(in crate::dataplane) fn load_guard(
    pins: Option<&Path>,
) -> Result<(LoadedProgram, ProgramSize), DataplaneError> {
    Object::new(&object()?, &[], &plans_for(pins, guard_maps()))?.load(GUARD, 0)
}

/// Loads translation likewise: to the Pod, and from it.
pub(in crate::dataplane) fn load_translate(
    pins: Option<&Path>,
) -> Result<[(LoadedProgram, ProgramSize); 2], DataplaneError> {
    let plans = plans_for(pins, translate_maps());
    let mut object = Object::new(&object()?, &[], &plans)?;
    let [to_pod, from_pod] = TRANSLATE;
    Ok([object.load(to_pod, 0)?, object.load(from_pod, 0)?])
}

/// The parameters of the packet path's programs.
#[derive(Clone, Copy, Debug)]
pub(in crate::dataplane) struct PacketPins<'a> {
    /// Where the maps of Services are pinned.
    pub(in crate::dataplane) services: &'a Pins,
    /// Where the maps of the packet path are pinned.
    pub(in crate::dataplane) own: &'a Path,
}

/// Loads the programs of the packet path against the maps that are pinned; makes and pins those of their own that are
/// not. `ports` are the first one to masquerade with, and how many there are; without `has_fast_path` no packet is ever
/// led past the stack. Programs that others go on with come first, as in [`hooks`].
pub(in crate::dataplane) fn load_packet(
    pins: Option<PacketPins<'_>>,
    capacity: FlowCapacity,
    ports: (u16, u16),
    has_fast_path: bool,
) -> Result<Loaded, DataplaneError> {
    const COUNT: usize = hooks::PACKET_STAGES.len() + hooks::PACKET.len();
    let stages = hooks::PACKET_STAGES.map(|(name, _)| name).into_iter();
    let mut names = stages.chain(hooks::PACKET.map(|(name, ..)| name));
    let programs = [(); COUNT].map(|()| (names.next().unwrap_or_default(), 0));
    let plans = packet_plans(pins, capacity)?;
    let mut object = Object::new(
        &object()?,
        &packet_switches(ports, 0, has_fast_path),
        &plans,
    )?;
    Ok(object.load_all(programs)?.into_iter().unzip())
}

/// Loads once more those of its programs that are for devices which lead outside, for layer-3 devices. They go on with
/// each other: `stages` is where the array of those is pinned.
pub(in crate::dataplane) fn load_packet_l3(
    pins: PacketPins<'_>,
    stages: &Path,
    capacity: FlowCapacity,
    ports: (u16, u16),
) -> Result<Loaded, DataplaneError> {
    let mut plans = packet_plans(Some(pins), capacity)?;
    if let Some(plan) = plans.get_mut("yurt_edge_more") {
        plan.pin = Some(stages.to_owned());
    }
    let switches = packet_switches(ports, ETHERNET_HEADER, false);
    let mut object = Object::new(&object()?, &switches, &plans)?;
    let programs = hooks::PACKET_L3.map(|name| (name, 0));
    Ok(object.load_all(programs)?.into_iter().unzip())
}

fn packet_plans(
    pins: Option<PacketPins<'_>>,
    capacity: FlowCapacity,
) -> Result<BTreeMap<&'static str, MapPlan>, DataplaneError> {
    let mut plans = plans_for(pins.map(|pins| pins.own), packet_maps(capacity));
    if let Some(PacketPins { services, .. }) = pins {
        plans.extend(services_as_they_are(services)?);
    }
    Ok(plans)
}

fn packet_switches(
    (first, count): (u16, u16),
    missing_link_header: u32,
    has_fast_path: bool,
) -> [(&'static str, u32); 4] {
    [
        ("SNAT_FIRST", u32::from(first)),
        ("SNAT_COUNT", u32::from(count)),
        ("MISSING_LINK_HEADER", missing_link_header),
        ("FAST_PATH", u32::from(has_fast_path)),
    ]
}

/// The maps of Services that the packet path reads, and those that it shares with sockets, with the sizes that they
/// have. All must exist: otherwise the loader would make empty ones and pin them as the table's.
fn services_as_they_are(
    Pins { table, state }: &Pins,
) -> Result<Vec<(&'static str, MapPlan)>, DataplaneError> {
    let of_table = table_maps(&TRIAL_CAPACITY).map(|(name, _)| (name, table));
    let of_state = ["yurt_aff4", "yurt_aff6"].map(|name| (name, state));
    let of_events = EVENT_MAPS.map(|(name, _)| (name, state));
    let maps = of_table.into_iter().chain(of_state).chain(of_events);
    let plan = |(name, dir): (&'static str, &PathBuf)| {
        let pin = dir.join(name);
        sys::object_get(&pin).map_err(at("open", &pin))?;
        let plan = MapPlan {
            max_entries: 0,
            pin: Some(pin),
        };
        Ok((name, plan))
    };
    maps.map(plan).collect()
}

/// Loads the program that listens to peers, and makes its map, which no other program uses.
pub(in crate::dataplane) fn load_vtep()
-> Result<(OwnedFd, LoadedProgram, ProgramSize), DataplaneError> {
    let as_it_says = MapPlan {
        max_entries: 0,
        pin: None,
    };
    let mut plans = plans_for(None, []);
    plans.insert(VTEP_MAP, as_it_says);
    let mut object = Object::new(&object()?, &[], &plans)?;
    let (program, size) = object.load(VTEP, 0)?;
    Ok((object.take_per_cpu_hash(VTEP_MAP)?, program, size))
}

/// These maps as they should be, pinned in a directory, and all others of the object as small as possible: the loader
/// makes every map, and those that no program uses go away again.
fn plans_for(
    pins: Option<&Path>,
    maps: impl IntoIterator<Item = (&'static str, MapInfo)>,
) -> BTreeMap<&'static str, MapPlan> {
    let smallest = all_maps().map(|(name, info)| {
        let max_entries = info.max_entries.min(1);
        let pin = None;
        (name, MapPlan { max_entries, pin })
    });
    smallest.chain(pinned_in(pins, maps)).collect()
}

fn pinned_in(
    pins: Option<&Path>,
    maps: impl IntoIterator<Item = (&'static str, MapInfo)>,
) -> impl Iterator<Item = (&'static str, MapPlan)> {
    maps.into_iter().map(move |(name, info)| {
        let max_entries = info.max_entries;
        let pin = pins.map(|pins| pins.join(name));
        (name, MapPlan { max_entries, pin })
    })
}
