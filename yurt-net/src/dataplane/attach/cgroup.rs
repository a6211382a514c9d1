//! Programs on a cgroup: each has one link, which is pinned below `links/` and held.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::PathBuf;

use super::kept::{keep_pin, missing};
use super::strays::Strays;
use crate::dataplane::DataplaneError;
use crate::dataplane::error::{at, on_program};
use crate::dataplane::load::LoadedProgram;
use crate::dataplane::sys;

/// The links of the programs of one agent.
pub(in crate::dataplane) struct CgroupLinks {
    /// The directory of their pins.
    dir: PathBuf,
    cgroup: PathBuf,
    /// Cookie of the node's network namespace, if the kernel tells it.
    netns: Option<u64>,
    programs: Vec<LoadedProgram>,
    /// Held, so that a program stays attached when the pin of its link goes.
    links: BTreeMap<&'static str, OwnedFd>,
}

/// The result of repairing the links.
#[derive(Debug, Default)]
pub(in crate::dataplane) struct Mended {
    /// Programs that were detached or replaced, or whose link was not pinned.
    pub(in crate::dataplane) programs: Vec<&'static str>,
    /// The programs that could not be repaired.
    pub(in crate::dataplane) failures: Vec<DataplaneError>,
}

enum LinkRepair {
    Nothing,
    /// The link had another program, and has ours now.
    Swapped,
    /// No link of the program was on this cgroup.
    Made(OwnedFd),
}

/// Makes sure that a link has the program on the cgroup.
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

impl CgroupLinks {
    /// Takes the programs that belong on a cgroup. [`Self::mend`] attaches them.
    pub(in crate::dataplane) fn new(
        dir: PathBuf,
        cgroup: PathBuf,
        netns: Option<u64>,
        programs: Vec<LoadedProgram>,
    ) -> Self {
        Self {
            dir,
            cgroup,
            netns,
            programs,
            links: BTreeMap::new(),
        }
    }

    /// Attaches missing programs, replaces those that are not ours, pins unpinned links, and removes what an earlier
    /// agent has left. A failure stops nothing else.
    pub(in crate::dataplane) fn mend(&mut self) -> Mended {
        let mut mended = Mended::default();
        let cgroup = File::open(&self.cgroup).and_then(|cgroup| {
            let id = cgroup.metadata()?.st_ino();
            Ok((cgroup, id))
        });
        match cgroup {
            Ok((cgroup, id)) => self.mend_links(cgroup.as_fd(), id, &mut mended),
            Err(error) => {
                let failed = at("open cgroup", &self.cgroup);
                mended.failures.push(failed(error));
            }
        }
        mended
    }

    fn mend_links(&mut self, cgroup: BorrowedFd<'_>, cgroup_id: u64, mended: &mut Mended) {
        for program in &self.programs {
            let pin = self.dir.join(program.name);
            // Our link, or that of an earlier agent.
            let held = self.links.remove(program.name);
            let found = held.or_else(|| sys::object_get(&pin).ok());
            let repaired = repair_link(program, found.as_ref(), cgroup, cgroup_id);
            let is_repaired = matches!(repaired, Ok(LinkRepair::Swapped | LinkRepair::Made(_)));
            // The old link is removed last: with two programs clients are translated as with one, with none not at all.
            let link = match repaired {
                Ok(LinkRepair::Made(link)) => Some(link),
                Ok(LinkRepair::Nothing | LinkRepair::Swapped) => found,
                Err(error) => {
                    mended.failures.push(error);
                    found
                }
            };
            let Some(link) = link else { continue };
            let pinned = keep_pin(link.as_fd(), &pin);
            self.links.insert(program.name, link);
            if is_repaired || matches!(pinned, Ok(true)) {
                mended.programs.push(program.name);
            }
            mended.failures.extend(pinned.err());
        }
        // If this agent has no link for a program, that of an earlier agent serves better than none.
        let ours = |name: &str, id| match self.links.get(name) {
            Some(link) => !sys::object_id(link.as_fd()).is_ok_and(|[_, ours]| ours != id),
            None => true,
        };
        let strays = Strays::on_cgroups(&self.cgroup, self.netns, ours);
        mended.failures.extend(strays.mend());
    }

    /// Programs that do not serve at the moment. `with_pinned`: a link that an earlier agent has pinned counts, too.
    pub(in crate::dataplane) fn detached(&self, with_pinned: bool) -> Vec<&'static str> {
        let is_attached = |program: &&LoadedProgram| {
            // A link whose cgroup is gone has no cgroup number.
            match self.links.get(program.name) {
                Some(link) => sys::link_info(link.as_fd())
                    .is_ok_and(|info| info.prog_id == program.id && info.cgroup_id != 0),
                None if with_pinned => sys::object_get(&self.dir.join(program.name))
                    .and_then(|link| sys::link_info(link.as_fd()))
                    .is_ok_and(|info| info.cgroup_id != 0),
                None => false,
            }
        };
        let programs = self.programs.iter();
        let detached = programs.filter(|program| !is_attached(program));
        detached.map(|program| program.name).collect()
    }

    /// Pins of links that are missing or of another object, and errors where that cannot be told.
    pub(in crate::dataplane) fn missing(
        &self,
    ) -> impl Iterator<Item = Result<PathBuf, DataplaneError>> {
        let links = self.links.iter();
        links.filter_map(|(name, link)| missing(link.as_fd(), self.dir.join(name)))
    }
}
