//! Strays: programs of ours, on a cgroup or on devices, that decide by maps nobody keeps.
//!
//! An agent that is started with another `--bpffs`, or after another bpf file system was mounted over its pins, finds no pin of what was
//! there before. The programs live on by pins that nobody sees, run first, and go by a table that is never written again. So they are
//! asked for where they are attached, and known by their names. A cgroup and a network namespace have one agent, by its claim: what
//! is not kept by the agent that asks is nobody's. A program on a device that reads a map that is kept is no stray, whoever has
//! attached it: a plugin may be doing that just now.

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
use crate::dataplane::load::hooks::{DeviceProgram, GUARD, ON_CGROUP, TRANSLATE};
use crate::dataplane::sys;
use crate::dataplane::sys::tc::{Device, Filter, Filters, Hook, devices, tcx_links};

/// One of them.
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

/// What a look has found, and where nobody could look.
#[derive(Debug, Default)]
pub struct Strays {
    /// Them.
    pub found: Vec<Stray>,
    /// What failed; nothing else is held up by it.
    pub failures: Vec<DataplaneError>,
}

impl Strays {
    /// All programs of ours on a cgroup and on the devices of this network namespace that no pin below `bpffs` keeps.
    pub fn out_of_sight(bpffs: &Path, cgroup: &Path) -> Self {
        let root = bpffs.join("yurt-net");
        let ids = |paths: Vec<PathBuf>| -> BTreeSet<u32> {
            let objects = paths.iter().filter_map(|path| sys::object_get(path).ok());
            objects.filter_map(|object| id(object.as_fd())).collect()
        };
        let links = ids(entries(&root.join("links")));
        let mut strays = Self::on_cgroup(cgroup, |_, link| links.contains(&link));
        let directories = entries(&root);
        for program in [GUARD].into_iter().chain(TRANSLATE) {
            let maps = directories
                .iter()
                .map(|directory| directory.join(program.2));
            let maps = ids(maps.collect());
            strays.add(Self::on_devices(&[program], &maps));
        }
        strays
    }

    /// All programs of ours on a cgroup and on the devices of this network namespace, whoever keeps them.
    pub fn all(cgroup: &Path) -> Self {
        let mut strays = Self::on_cgroup(cgroup, |_, _| false);
        let programs = [GUARD, TRANSLATE[0], TRANSLATE[1]];
        strays.add(Self::on_devices(&programs, &BTreeSet::new()));
        strays
    }

    fn add(&mut self, other: Self) {
        self.found.extend(other.found);
        self.failures.extend(other.failures);
    }

    /// Programs of ours on a cgroup, but for links of which `is_kept` says so by program and number.
    pub(in crate::dataplane) fn on_cgroup(
        cgroup: &Path,
        is_kept: impl Fn(&str, u32) -> bool,
    ) -> Self {
        let mut strays = Self::default();
        let links = match cgroup.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return strays,
            metadata => metadata.and_then(|it| sys::links_on_cgroup(it.st_ino())),
        };
        let links = match links {
            Ok(links) => links,
            Err(error) => {
                strays.failures.push(DataplaneError::Path {
                    operation: "look for links on",
                    path: cgroup.to_owned(),
                    source: error,
                });
                return strays;
            }
        };
        for (info, link) in links {
            let hook = ON_CGROUP.iter().find(|(_, hook)| *hook == info.attach_type);
            let Some((program, _)) = hook else { continue };
            if !is_kept(program, info.id) && is_stray(info.prog_id, program, &BTreeSet::new()) {
                strays.found.push(Stray {
                    program,
                    place: Place::Cgroup(cgroup.to_owned(), link),
                });
            }
        }
        strays
    }

    /// Some programs of ours on the devices of this network namespace, but for those that read one of these maps.
    pub(in crate::dataplane) fn on_devices(
        programs: &[DeviceProgram],
        kept: &BTreeSet<u32>,
    ) -> Self {
        let mut strays = Self::default();
        for (program, hook, _) in programs {
            let look = Filters::open().and_then(|filters| Ok((filters, devices()?)));
            let (mut filters, devices) = match look {
                Ok(look) => look,
                Err(error) => {
                    let failed = on_program("list the devices that may have", program);
                    strays.failures.push(failed(error));
                    continue;
                }
            };
            for device in devices {
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

    /// The devices that they are on.
    pub fn devices(&self) -> BTreeSet<u32> {
        self.found.iter().filter_map(Stray::ifindex).collect()
    }

    /// Leaves those on some devices where they are: what there is serves better than nothing.
    pub fn spare(mut self, is_spared: impl Fn(u32) -> bool) -> Self {
        self.found
            .retain(|stray| !stray.ifindex().is_some_and(&is_spared));
        self
    }

    /// Takes them off; what failed, of the look as well.
    pub fn take_off(self) -> Vec<DataplaneError> {
        let Self {
            found,
            mut failures,
        } = self;
        failures.extend(found.iter().filter_map(|stray| stray.take_off().err()));
        failures
    }

    /// The same for an agent, which tells of it.
    pub fn mend(self) -> Vec<DataplaneError> {
        if !self.found.is_empty() {
            warn!(
                programs = shown(&self.found),
                "programs of an earlier agent, pinned in another bpf file system, go by a table that nobody keeps: taken off"
            );
        }
        self.take_off()
    }
}

/// Those in the first few places, and in how many more places there are some.
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
        // One that goes or is being made in this moment is nobody's yet, or no more.
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

/// Whether a program has this name of ours, and reads none of these maps. One that is gone is none.
fn is_stray(id: u32, name: &str, kept: &BTreeSet<u32>) -> bool {
    let is_stray = || -> io::Result<bool> {
        let program = sys::program_by_id(id)?;
        let is_ours = sys::program_info(program.as_fd())?.name == sys::name_of(name);
        let maps = sys::program_maps(program.as_fd())?;
        Ok(is_ours && !maps.iter().any(|map| kept.contains(map)))
    };
    is_stray().unwrap_or_default()
}

/// The number of an object.
pub(in crate::dataplane) fn id(object: BorrowedFd<'_>) -> Option<u32> {
    sys::object_id(object).ok().map(|[_, id]| id)
}

/// What is in a directory; nothing where it is not there.
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
