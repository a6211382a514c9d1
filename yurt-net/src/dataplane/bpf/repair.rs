//! Links and pins as they should be, and how they are.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::PathBuf;

use super::{BpfDataplane, LoadedProgram, at};
use crate::dataplane::DataplaneError;
use crate::dataplane::kept::{keep_pin, missing};
use crate::dataplane::pinned::on_program;
use crate::dataplane::strays::Strays;
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
        let strays = Strays::on_cgroup(&self.options.cgroup, ours);
        repair.failures.extend(strays.mend());
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
    pub fn unpinned(&self) -> Result<Option<(PathBuf, usize)>, DataplaneError> {
        let links = self.links.iter();
        let links = links
            .filter_map(|(name, link)| missing(link.as_fd(), self.root.join("links").join(name)));
        let maps = self.table_pins.missing().chain(self.state_pins.missing());
        let missing = maps.chain(links).collect::<Result<Vec<_>, _>>()?;
        let count = missing.len();
        Ok(missing.into_iter().next().map(|first| (first, count)))
    }
}
