//! Strays: programs of ours, on a cgroup or on devices, that read maps which no agent maintains.
//!
//! An agent that is started with another `--bpffs`, or after another bpf file system was mounted over its pins, does
//! not find what an earlier agent pinned. Those programs live on by hidden pins. They run first, and read a table that
//! is never written again. So the kernel is asked what is attached to the cgroup and to each device, and strays are
//! known by their names. A cgroup and a network namespace belong to one agent (`claim`), so a program there that the
//! asking agent does not keep belongs to no agent. The same holds for a program on any other cgroup (above, below,
//! beside) whose table was written for this network namespace: an agent with another `--cgroup` left it. A table for
//! another network namespace belongs to another node (kind runs several on one machine), whose agent may be away for a
//! moment. One exception: a program on a device that reads one of the agent's maps is no stray, because a plugin may be
//! attaching it just now.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::dataplane::DataplaneError;
use crate::dataplane::error::{on_device, on_program};
use crate::dataplane::load::hooks::{DeviceProgram, ON_CGROUP, ON_DEVICES};
use crate::dataplane::sys::tc::{Device, Filter, Filters, devices};
use crate::dataplane::sys::{self, Hook, tcx_links};
use crate::host::netns;

/// A program that no agent keeps, and where it is attached.
#[derive(Debug)]
pub struct Stray {
    program: &'static str,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Cgroup(PathBuf, OwnedFd),
    Link(Device, OwnedFd),
    Filter(Device, Hook, Filter),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path, _) => write!(f, "cgroup {}", path.display()),
            Self::Link(device, _) | Self::Filter(device, ..) => write!(f, "device {}", device.name),
        }
    }
}

impl Stray {
    fn ifindex(&self) -> Option<u32> {
        match &self.place {
            Place::Cgroup(..) => None,
            Place::Link(device, _) | Place::Filter(device, ..) => Some(device.ifindex),
        }
    }

    fn take_off(&self) -> Result<(), DataplaneError> {
        const OPERATION: &str = "detach what an earlier agent has left of";
        match &self.place {
            Place::Cgroup(_, link) => {
                sys::link_detach(link.as_fd()).map_err(on_program(OPERATION, self.program))
            }
            Place::Link(device, link) => sys::link_detach(link.as_fd()).map_err(on_device(
                OPERATION,
                self.program,
                device.ifindex,
            )),
            Place::Filter(device, hook, filter) => Filters::open()
                .and_then(|mut filters| filters.remove(*hook, device.ifindex, *filter))
                .or_else(unless_gone)
                .map_err(on_device(OPERATION, self.program, device.ifindex)),
        }
    }
}

/// A program of ours on some cgroup.
struct OnCgroup {
    name: &'static str,
    link: OwnedFd,
    /// The numbers of the maps that it reads.
    maps: Vec<u32>,
}

/// The result of a search, and the places that it could not search.
#[derive(Debug, Default)]
pub struct Strays {
    /// The strays.
    pub found: Vec<Stray>,
    /// Failures; everything else was searched.
    pub failures: Vec<DataplaneError>,
}

impl Strays {
    /// All programs of ours on a cgroup and on the devices of this network namespace that no pin below `bpffs` holds.
    pub fn out_of_sight(bpffs: &Path, cgroup: &Path) -> Self {
        let root = bpffs.join("yurt-net");
        let ids = |paths: Vec<PathBuf>| -> BTreeSet<u32> {
            let objects = paths.iter().filter_map(|path| sys::object_get(path).ok());
            objects.filter_map(|object| id(object.as_fd())).collect()
        };
        let links = ids(entries(&root.join("links")));
        let mut strays = Self::on_any_cgroup(cgroup, |_, link| links.contains(&link));
        let maps = entries(&root).into_iter().flat_map(|directory| {
            let maps = ON_DEVICES.iter().map(|(_, _, map)| directory.join(map));
            maps.collect::<Vec<_>>()
        });
        strays.add(Self::on_devices(&ON_DEVICES, &ids(maps.collect())));
        strays
    }

    /// All programs of ours on a cgroup and on the devices of this network namespace, whichever process holds them.
    pub fn all(cgroup: &Path) -> Self {
        let mut strays = Self::on_any_cgroup(cgroup, |_, _| false);
        strays.add(Self::on_devices(&ON_DEVICES, &BTreeSet::new()));
        strays
    }

    fn add(&mut self, other: Self) {
        self.found.extend(other.found);
        self.failures.extend(other.failures);
    }

    /// Like [`Self::on_cgroups`], for the network namespace of this thread.
    fn on_any_cgroup(cgroup: &Path, is_kept: impl Fn(&str, u32) -> bool) -> Self {
        match netns::cookie() {
            Ok(netns) => Self::on_cgroups(cgroup, netns, is_kept),
            Err(error) => {
                let mut strays = Self::on_cgroups(cgroup, None, is_kept);
                strays.failures.push(DataplaneError::NetnsCookie(error));
                strays
            }
        }
    }

    /// Programs of ours on a cgroup, and those on other cgroups whose table was written for the network namespace with
    /// this cookie, if the kernel tells it. Leaves out the links that `is_kept` names by program and number.
    pub(in crate::dataplane) fn on_cgroups(
        cgroup: &Path,
        netns: Option<u64>,
        is_kept: impl Fn(&str, u32) -> bool,
    ) -> Self {
        let mut strays = Self::default();
        let failed = |source| DataplaneError::Path {
            operation: "look for links on",
            path: cgroup.to_owned(),
            source,
        };
        let own = match cgroup.metadata() {
            Ok(metadata) => Some(metadata.st_ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                strays.failures.push(failed(error));
                None
            }
        };
        let links = match sys::cgroup_links() {
            Ok(links) => links,
            Err(error) => {
                strays.failures.push(failed(error));
                return strays;
            }
        };
        let mut by_cgroup: BTreeMap<u64, Vec<OnCgroup>> = BTreeMap::new();
        for (info, link) in links {
            let hook = ON_CGROUP.iter().find(|(_, hook)| *hook == info.attach_type);
            let Some((name, _)) = hook else { continue };
            if is_kept(name, info.id) {
                continue;
            }
            if let Some(maps) = maps_of(info.prog_id, name) {
                let programs = by_cgroup.entry(info.cgroup_id).or_default();
                programs.push(OnCgroup { name, link, maps });
            }
        }
        if by_cgroup.keys().any(|id| Some(*id) != own) {
            let tables = netns.map_or_else(|| Ok(BTreeSet::new()), tables_for);
            let tables = tables.unwrap_or_else(|error| {
                strays.failures.push(failed(error));
                BTreeSet::new()
            });
            // Only some programs read the map with the cookie, but all programs of one agent are on one cgroup.
            let is_for_us =
                |program: &OnCgroup| program.maps.iter().any(|map| tables.contains(map));
            by_cgroup.retain(|id, programs| Some(*id) == own || programs.iter().any(is_for_us));
        }
        for (id, programs) in by_cgroup {
            let path = match Some(id) == own {
                true => cgroup.to_owned(),
                false => path_of(id, cgroup).unwrap_or_else(|| format!("with inode {id}").into()),
            };
            strays
                .found
                .extend(programs.into_iter().map(|program| Stray {
                    program: program.name,
                    place: Place::Cgroup(path.clone(), program.link),
                }));
        }
        strays
    }

    /// Programs of ours on the devices of this network namespace that read none of the maps in `kept`.
    pub(in crate::dataplane) fn on_devices(
        programs: &[DeviceProgram],
        kept: &BTreeSet<u32>,
    ) -> Self {
        let mut strays = Self::default();
        let look = Filters::open().and_then(|filters| Ok((filters, devices()?)));
        let (mut filters, devices) = match (look, programs) {
            (Ok(look), _) => look,
            (Err(_), []) => return strays,
            (Err(error), [(program, ..), ..]) => {
                let failed = on_program("list the devices that may have", program);
                strays.failures.push(failed(error));
                return strays;
            }
        };
        for device in devices {
            for (program, hook, _) in programs {
                let found = on_one_device(&mut filters, program, *hook, &device, kept);
                match found.or_else(unless_gone) {
                    Ok(found) => strays.found.extend(found),
                    Err(error) => {
                        let failed = on_device("look for", program, device.ifindex);
                        strays.failures.push(failed(error));
                    }
                }
            }
        }
        strays
    }

    /// The devices that have strays.
    pub fn devices(&self) -> BTreeSet<u32> {
        self.found.iter().filter_map(Stray::ifindex).collect()
    }

    /// Keeps the strays on some devices attached, because an old program serves better than none.
    pub fn spare(mut self, is_spared: impl Fn(u32) -> bool) -> Self {
        self.found
            .retain(|stray| !stray.ifindex().is_some_and(&is_spared));
        self
    }

    /// Detaches all. Returns what failed, in the search as well.
    pub fn take_off(self) -> Vec<DataplaneError> {
        let Self {
            found,
            mut failures,
        } = self;
        failures.extend(found.iter().filter_map(|stray| stray.take_off().err()));
        failures
    }

    /// The same for an agent: logs what it detached.
    pub fn mend(self) -> Vec<DataplaneError> {
        if !self.found.is_empty() {
            warn!(
                programs = shown(&self.found),
                "programs of an earlier agent, pinned in another bpf file system, read a table that no agent keeps: detached"
            );
        }
        self.take_off()
    }
}

/// For people: the strays of the first few places, and the number of the other places.
pub fn shown(strays: &[Stray]) -> String {
    const SHOWN: usize = 4;
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for Stray { program, place } in strays {
        places.entry(place.to_string()).or_default().push(program);
    }
    let shown = places.iter().take(SHOWN).map(|(place, programs)| {
        let first = programs.first().copied().unwrap_or_default();
        match programs.len() {
            ..=1 => format!("{first} on {place}"),
            several => format!("{first} and {} more on {place}", several - 1),
        }
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    match places.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}, and in {more} more places"),
    }
}

fn on_one_device(
    filters: &mut Filters,
    program: &'static str,
    hook: Hook,
    device: &Device,
    kept: &BTreeSet<u32>,
) -> io::Result<Vec<Stray>> {
    let mut places = Vec::new();
    for (program_id, link_id) in tcx_links(hook, device.ifindex)? {
        // A link that is just being made or removed cannot be opened, and is no stray.
        if is_stray(program_id, program, kept)
            && let Ok(link) = sys::link_by_id(link_id)
        {
            places.push(Place::Link(device.clone(), link));
        }
    }
    if let Some(filter) = filters.find(program, hook, device.ifindex)?
        && is_stray(filter.program_id, program, kept)
    {
        places.push(Place::Filter(device.clone(), hook, filter));
    }
    let places = places.into_iter();
    Ok(places.map(|place| Stray { program, place }).collect())
}

/// Whether a program has this name, and reads none of these maps. A program that is gone is no stray.
fn is_stray(id: u32, name: &str, kept: &BTreeSet<u32>) -> bool {
    maps_of(id, name).is_some_and(|maps| !maps.iter().any(|map| kept.contains(map)))
}

/// The numbers of the maps that a program reads, if it has this name. `None` also for a program that is gone.
fn maps_of(id: u32, name: &str) -> Option<Vec<u32>> {
    let program = sys::program_by_id(id).ok()?;
    let is_ours = sys::program_name(program.as_fd()).ok()? == sys::name_of(name);
    is_ours.then(|| sys::program_maps(program.as_fd()).ok())?
}

/// The numbers of all maps `yurt_conf` in the kernel that were written for a network namespace. Its cookie is the first
/// word of the entry in every version.
fn tables_for(netns: u64) -> io::Result<BTreeSet<u32>> {
    /// `BPF_MAP_TYPE_ARRAY`.
    const ARRAY: u32 = 2;
    let mut tables = BTreeSet::new();
    for (id, map) in sys::maps_named("yurt_conf")? {
        let is_for_us = || -> io::Result<bool> {
            let info = sys::map_info(map.as_fd())?;
            // Any process may give a map this name.
            if info.map_type != ARRAY || info.key_size as usize != size_of::<u32>() {
                return Ok(false);
            }
            let mut words = vec![0u64; (info.value_size as usize).div_ceil(8).max(1)];
            let is_there = sys::map_lookup(map.as_fd(), &0u32, &mut words)?;
            Ok(is_there && words.first() == Some(&netns))
        };
        if is_for_us().unwrap_or_default() {
            tables.insert(id);
        }
    }
    Ok(tables)
}

/// The path of a cgroup, searched for in the whole hierarchy that is visible from `near`.
fn path_of(id: u64, near: &Path) -> Option<PathBuf> {
    let near = near.canonicalize().ok()?;
    let device = near.metadata().ok()?.st_dev();
    let is_cgroup = |path: &Path| {
        path.metadata()
            .is_ok_and(|it| it.is_dir() && it.st_dev() == device)
    };
    let top = near.ancestors().take_while(|path| is_cgroup(path)).last()?;
    let mut to_look_at = vec![top.to_owned()];
    while let Some(path) = to_look_at.pop() {
        if path.metadata().is_ok_and(|it| it.st_ino() == id) {
            return Some(path);
        }
        to_look_at.extend(entries(&path).into_iter().filter(|path| is_cgroup(path)));
    }
    None
}

/// The number of an object.
pub(in crate::dataplane) fn id(object: BorrowedFd<'_>) -> Option<u32> {
    sys::object_id(object).ok().map(|[_, id]| id)
}

/// The paths in a directory; none if it is missing.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

fn unless_gone<T: Default>(error: io::Error) -> io::Result<T> {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENOENT) => Ok(T::default()),
        _ => Err(error),
    }
}
