//! Links and pins as they should be, and how they are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::load::HOOKS;
use super::{BpfDataplane, LoadedProgram, at};
use crate::dataplane::DataplaneError;
use crate::dataplane::kept::{is_pinned, keep_pin};
use crate::dataplane::pinned::on_program;
use crate::dataplane::sys;

/// What a look at links and pins has come to.
#[derive(Debug, Default)]
pub struct Repair {
    /// Programs that were detached or replaced, or whose link was not pinned.
    pub programs: Vec<&'static str>,
    /// Maps that were not pinned.
    pub pins: Vec<&'static str>,
    /// What could not be mended.
    pub failures: Vec<DataplaneError>,
}

enum LinkRepair {
    Nothing,
    /// The link has our program now.
    Swapped,
    /// There was none on this cgroup.
    Made(OwnedFd),
}

/// Sees to it that a link has the program on the cgroup.
fn repair_link(
    program: &LoadedProgram,
    found: Option<&OwnedFd>,
    cgroup: BorrowedFd<'_>,
    cgroup_id: u64,
) -> Result<LinkRepair, DataplaneError> {
    let failed = |operation| on_program(operation, program.name);
    if let Some(link) = found {
        let info = sys::link_info(link.as_fd()).map_err(failed("inspect link of"))?;
        let is_in_place = info.link_type == sys::LINK_TYPE_CGROUP
            && info.attach_type == program.attach_type
            && info.cgroup_id == cgroup_id;
        if is_in_place && info.prog_id == program.id {
            return Ok(LinkRepair::Nothing);
        }
        if is_in_place {
            sys::link_update(link.as_fd(), program.fd.as_fd()).map_err(failed("swap"))?;
            return Ok(LinkRepair::Swapped);
        }
    }
    let link = sys::link_create(program.fd.as_fd(), cgroup, program.attach_type);
    link.map(LinkRepair::Made).map_err(failed("attach"))
}

/// Takes programs of ours off a cgroup whose links are not among those that are wanted. An agent before this one has pinned them in
/// another bpf file system, or in one that another was mounted over: they run first, and decide by a table that nobody keeps. A
/// cgroup has one agent, by its claim, so none of them is a running agent's. Programs that were taken off, and failures.
fn detach_others(
    cgroup: &Path,
    cgroup_id: u64,
    is_wanted: impl Fn(&str, u32) -> bool,
) -> (Vec<&'static str>, Vec<DataplaneError>) {
    let links = match sys::links_on_cgroup(cgroup_id) {
        Ok(links) => links,
        Err(error) => return (Vec::new(), vec![at("look for links on", cgroup)(error)]),
    };
    let (mut detached, mut failures) = (Vec::new(), Vec::new());
    for (info, link) in links {
        let Some((name, _)) = HOOKS.iter().find(|(_, hook)| *hook == info.attach_type) else {
            continue;
        };
        if is_wanted(name, info.id) || !is_called(info.prog_id, name) {
            continue;
        }
        match sys::link_detach(link.as_fd()) {
            Ok(()) => detached.push(*name),
            Err(error) => failures.push(on_program("detach what is left of", name)(error)),
        }
    }
    (detached, failures)
}

/// Whether a program has this name of ours.
fn is_called(id: u32, name: &str) -> bool {
    let info = sys::program_by_id(id).and_then(|program| sys::program_info(program.as_fd()));
    info.is_ok_and(|info| info.name == sys::name_of(name))
}

/// Takes every program of ours off a cgroup, wherever its link is pinned; true when there was one. To be called by whoever has
/// claimed it.
pub fn detach_all(cgroup: &Path) -> Result<bool, DataplaneError> {
    let id = match cgroup.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        metadata => metadata.map_err(at("stat", cgroup))?.st_ino(),
    };
    let (detached, failures) = detach_others(cgroup, id, |_, _| false);
    match failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(!detached.is_empty()),
    }
}

impl BpfDataplane {
    /// Attaches what is not attached, swaps in what is not ours, pins what is not pinned, sets the switches again. What
    /// cannot be done keeps nothing else from being done.
    pub fn repair(&mut self) -> Repair {
        let mut repair = Repair::default();
        repair.failures.extend(self.write_switches().err());
        let pins = self.table_pins.keep().into_iter();
        for pin in pins.chain(self.state_pins.keep()) {
            match pin {
                Ok(name) => repair.pins.push(name),
                Err(error) => repair.failures.push(error),
            }
        }
        let path = &self.options.cgroup;
        let cgroup = File::open(path).and_then(|cgroup| {
            let id = cgroup.metadata()?.st_ino();
            Ok((cgroup, id))
        });
        match cgroup {
            Ok((cgroup, id)) => self.repair_links(cgroup.as_fd(), id, &mut repair),
            Err(error) => repair.failures.push(at("open cgroup", path)(error)),
        }
        repair
    }

    fn repair_links(&mut self, cgroup: BorrowedFd<'_>, cgroup_id: u64, repair: &mut Repair) {
        let links = self.root.join("links");
        for program in &self.programs {
            let pin = links.join(program.name);
            // Ours, or what an earlier agent has left.
            let held = self.links.remove(program.name);
            let found = held.or_else(|| sys::object_get(&pin).ok());
            let repaired = repair_link(program, found.as_ref(), cgroup, cgroup_id);
            let is_repaired = matches!(repaired, Ok(LinkRepair::Swapped | LinkRepair::Made(_)));
            // The old one goes last: two programs translate no worse than one, and none would not translate at all.
            let link = match repaired {
                Ok(LinkRepair::Made(link)) => Some(link),
                Ok(LinkRepair::Nothing | LinkRepair::Swapped) => found,
                Err(error) => {
                    repair.failures.push(error);
                    found
                }
            };
            let Some(link) = link else { continue };
            let pinned = keep_pin(link.as_fd(), &pin);
            self.links.insert(program.name, link);
            if is_repaired || matches!(pinned, Ok(true)) {
                repair.programs.push(program.name);
            }
            repair.failures.extend(pinned.err());
        }
        // Where this agent has none, what there is serves better than nothing.
        let ours = |name: &str, id| match self.links.get(name) {
            Some(link) => !sys::object_id(link.as_fd()).is_ok_and(|[_, ours]| ours != id),
            None => true,
        };
        let (detached, failures) = detach_others(&self.options.cgroup, cgroup_id, ours);
        if !detached.is_empty() {
            warn!(
                programs = detached.join(","),
                "programs of an earlier agent, pinned in another bpf file system, were taken off the cgroup"
            );
        }
        repair.failures.extend(failures);
    }

    /// Programs that serve nobody just now.
    pub fn detached(&self) -> Vec<&'static str> {
        let is_attached = |program: &&LoadedProgram| {
            // A link whose cgroup is gone has none.
            match self.links.get(program.name) {
                Some(link) => sys::link_info(link.as_fd())
                    .is_ok_and(|info| info.prog_id == program.id && info.cgroup_id != 0),
                // Until the new table is whole, those of the agent before serve.
                None if self.is_staged => {
                    sys::object_get(&self.root.join("links").join(program.name))
                        .and_then(|link| sys::link_info(link.as_fd()))
                        .is_ok_and(|info| info.cgroup_id != 0)
                }
                None => false,
            }
        };
        let programs = self.programs.iter();
        let detached = programs.filter(|program| !is_attached(program));
        detached.map(|program| program.name).collect()
    }

    /// The first pin that is not there, and how many there are of such: what it is of ends with this process.
    pub fn unpinned(&self) -> Option<(PathBuf, usize)> {
        let links = self.links.iter();
        let links = links.map(|(name, link)| (self.root.join("links").join(name), link));
        let links = links.filter(|(path, link)| !is_pinned(link.as_fd(), path));
        let maps = self.table_pins.missing().chain(self.state_pins.missing());
        let mut missing = maps.chain(links.map(|(path, _)| path));
        let first = missing.next()?;
        Some((first, 1 + missing.count()))
    }
}
