//! The maps that Services are served from, and the programs that read them.
//!
//! Maps, programs and links are pinned, so that they outlive the agent:
//!
//! ```text
//! <bpffs>/yurt-net/           locked (flock) by the agent, which also claims it (`claim`)
//!     v2/                     table maps, by table ABI
//!     v2-next/                table maps that are being filled, before anything uses them
//!     state-v1/               state maps, by state ABI
//!     links/                  one link for each program on sockets
//!     guard-v1/               maps and program of the guard, by guard ABI
//!     translate-v1/           maps and programs of translation, by its ABI
//!     packet-v2/              maps and programs of the packet path, by its ABI
//!     tc/                     one pin for each program on a device
//! ```
//!
//! `open` adopts table maps that are complete, of this ABI and of the wanted capacities. Otherwise it makes new ones.
//! They replace the old ones in `activate`, after the first plan was applied; until then the old ones serve clients.
//! Programs are always those of this binary: they are loaded against the maps, and replace the old ones without a gap.
#![expect(
    unsafe_code,
    reason = "entries that the programs read while they are written"
)]

pub mod clients;
mod decode;
mod edition;
mod encode;
pub mod grace;
pub mod in_force;
pub mod memory;
pub mod sockets;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use yurt_ebpf::abi;

use self::clients::Look;
use self::decode::decode;
use self::encode::MapWriter as _;
use self::sockets::SocketMaps;
use self::table::Table;
use super::attach::bpffs::{check_bpffs, create_dir, is_pinned_as, lock, open_map, remove_dir};
use super::attach::cgroup::{CgroupLinks, Mended};
use super::attach::kept::KeptPins;
use super::counts::Counts;
use super::error::{at, on_map};
use super::load::maps::{StateCapacity, state_maps, table_maps};
use super::load::{Pins, ProgramSize, has_object, load_either};
use super::sys::{self, possible_cpus};
use super::{ApplyError, Dataplane, DataplaneError};
use crate::host::netns;
use crate::plan::{Capacity, MapImage, Op, Plan};
use crate::table::edition::{Edition, SaidBy};

/// How the dataplane is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mount point of a bpf file system.
    pub bpffs: PathBuf,
    /// cgroup v2 directory; its processes, and those below, are served.
    pub cgroup: PathBuf,
    /// Entries of the table maps.
    pub capacity: Capacity,
    /// How many TCP sockets have an entry from which `getpeername` shows the Service; rounded up to a power of two.
    pub tcp_peers: u32,
    /// How many clients of Services with session affinity are remembered, for each family.
    pub affinity: u32,
    /// The processes whose sockets are served.
    pub socket_lb: SocketLb,
    /// An earlier agent has left the packet path on devices, and it stays there: Pods whose sockets are left alone are
    /// served by it.
    pub serves_packets: bool,
}

/// The processes whose sockets are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketLb {
    /// Every process of the node and its Pods.
    #[default]
    All,
    /// Only processes in the node's own network namespace: for meshes and VM Pods. Pods then have no Services, and no
    /// DNS, unless the packet path or something else serves them.
    Host,
    /// No process.
    Off,
}

/// The result of repairing links and pins.
#[derive(Debug, Default)]
pub struct Repair {
    /// Programs that were detached or replaced, or whose link was not pinned.
    pub programs: Vec<&'static str>,
    /// Maps that were not pinned.
    pub pins: Vec<&'static str>,
    /// What could not be repaired.
    pub failures: Vec<DataplaneError>,
}

/// The kernel's side of the agent.
pub struct BpfDataplane {
    options: Options,
    root: PathBuf,
    _lock: File,
    table: Table,
    counts: Counts,
    netns: OwnedFd,
    links: CgroupLinks,
    table_pins: KeptPins,
    state_pins: KeptPins,
    sizes: Vec<ProgramSize>,
    has_set_retval: bool,
    /// The table is still in `v2-next`.
    is_staged: bool,
    was_serving: bool,
    edition: OwnedFd,
    /// What the maps recorded at the start.
    found: Option<edition::Found>,
}

impl BpfDataplane {
    /// Takes the node over: lock, maps, programs. Clients are served as before.
    pub fn open(options: Options) -> Result<Self, DataplaneError> {
        has_object()?;
        sys::raise_memlock();
        sys::raise_open_files();
        check_bpffs(&options.bpffs)?;
        let root = root_in(&options.bpffs);
        create_dir(&root)?;
        // Anybody who can open a directory can lock it.
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&root, private).map_err(at("restrict", &root))?;
        let lock = lock(&root)?;
        check_abi(&root)?;
        let link_pins = root.join("links");
        let state = root.join(format!("state-v{}", abi::STATE_ABI));
        let [current, next] = tables(&root);
        for dir in [&link_pins, &state] {
            create_dir(dir)?;
        }
        let was_serving = is_serving(&root)?;
        let cpus = possible_cpus()?;
        remove_dir(&next)?;
        let state_capacity = StateCapacity {
            tcp_peers: options.tcp_peers.max(1).next_power_of_two(),
            affinity: options.affinity.max(1).saturating_add(lru_reserve(cpus)),
        };
        let wanted = table_maps(&options.capacity);
        let is_adopted = wanted
            .iter()
            .all(|(name, info)| is_pinned_as(&current.join(name), info));
        let dir = if is_adopted { &current } else { &next };
        create_dir(dir)?;
        for (name, info) in state_maps(state_capacity) {
            // State maps that cannot be kept may be lost: old sockets then show their backend, and clients with
            // affinity choose again.
            let path = state.join(name);
            if !is_pinned_as(&path, &info) && path.exists() {
                fs::remove_file(&path).map_err(at("remove", &path))?;
            }
        }
        let pins = Pins {
            table: dir.clone(),
            state: state.clone(),
        };
        let (programs, sizes, has_set_retval) =
            load_either(&options.capacity, state_capacity, Some(&pins))?;
        let table = Table::open(options.capacity, dir)?;
        let state_names = state_maps(state_capacity).map(|(name, _)| name);
        // Read first: a map that is made below has no edition yet.
        let found = edition::read(&current);
        let edition = edition::open(dir)?;
        let table_names = wanted.iter().map(|(name, _)| *name);
        let table_pins = KeptPins::open(dir, table_names.chain([edition::NAME]))?;
        let state_pins = KeptPins::open(&state, state_names)?;
        let count = open_map(&state, "yurt_count")?;
        let netns = open_map(&state, "yurt_netns")?;
        let netns_cookie = netns::cookie().map_err(DataplaneError::NetnsCookie)?;
        let links = CgroupLinks::new(link_pins, options.cgroup.clone(), netns_cookie, programs);
        let is_staged = !is_adopted;
        let mut dataplane = Self {
            options,
            root,
            _lock: lock,
            table,
            counts: Counts::new(count, "yurt_count", &abi::COUNTER_NAMES)?,
            netns,
            links,
            table_pins,
            state_pins,
            sizes,
            has_set_retval,
            is_staged,
            was_serving,
            edition,
            found,
        };
        if !dataplane.options.serves_packets {
            // They would be served nowhere.
            dataplane.leave_nobody_alone()?;
        }
        if is_adopted && was_serving {
            // Before a source is asked, because programs of an older version may translate the agent's own sockets.
            // What fails here is tried again, and reported, once the table is in force.
            let _tried_again = dataplane.repair();
        }
        Ok(dataplane)
    }

    /// Whether what is pinned in a bpf file system serves clients. Opens and changes nothing.
    pub fn serves(bpffs: &Path) -> Result<bool, DataplaneError> {
        is_serving(&root_in(bpffs))
    }

    /// Whether the pins of an earlier agent were taken over.
    pub fn is_adopted(&self) -> bool {
        !self.is_staged
    }

    /// Whether clients are served already by what an earlier agent left: these maps, or those that they replace.
    pub fn was_serving(&self) -> bool {
        self.was_serving
    }

    /// The edition that the maps in use held at the start; `None` if there were no maps, or they do not record it.
    pub fn found_edition(&self) -> Option<Edition> {
        self.found().map(|found| found.edition)
    }

    fn found(&self) -> Option<edition::Found> {
        self.found.filter(|_| self.was_serving)
    }

    /// Whether they hold what the checkpoint said when this node started, as `load` wrote it.
    pub fn was_loaded(&self) -> bool {
        self.found().is_some_and(|found| found.is_loaded)
    }

    /// The source of that edition.
    pub fn found_said_by(&self) -> SaidBy {
        self.found().map_or(SaidBy::UNKNOWN, |found| found.said_by)
    }

    /// Records the edition and the source of the table. Called before the table is written, so that the maps are never
    /// newer than they say.
    pub fn set_edition(&self, edition: Edition, said_by: SaidBy) -> Result<(), DataplaneError> {
        let written = edition::write(self.edition.as_fd(), edition, said_by);
        written.map_err(on_map("write", edition::NAME))
    }

    /// Records that the table is what the checkpoint says, and nothing newer, until an agent writes.
    pub fn mark_loaded(&self) -> Result<(), DataplaneError> {
        edition::mark_loaded(self.edition.as_fd()).map_err(on_map("write", edition::NAME))
    }

    /// Whether a refused connect fails with `ECONNREFUSED`; otherwise with `EPERM`, because this kernel lacks
    /// `bpf_set_retval` in these hooks.
    pub fn has_set_retval(&self) -> bool {
        self.has_set_retval
    }

    /// The verifier's results for the programs.
    pub fn programs(&self) -> &[ProgramSize] {
        &self.sizes
    }

    /// Puts the programs and the table into service. Call it once the table is written.
    pub fn activate(&mut self) -> Result<(), DataplaneError> {
        let repair = self.repair();
        if let Some(failure) = repair.failures.into_iter().next() {
            return Err(failure);
        }
        if self.is_staged {
            let [current, next] = tables(&self.root);
            remove_dir(&current)?;
            fs::rename(&next, &current).map_err(at("rename", &next))?;
            self.table_pins.dir = current;
            self.is_staged = false;
        }
        // An agent that was killed here may have left them.
        for older in older_tables(&self.root)? {
            remove_dir(&older)?;
        }
        Ok(())
    }

    /// Verdicts so far, summed over the CPUs, in the order of [`abi::COUNTER_NAMES`].
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, DataplaneError> {
        self.counts.read()
    }

    /// Writes the addresses of this node's clients, and whose sockets are left alone. A client that cannot be written
    /// is left unknown, and the error is returned at the end.
    pub fn set_clients(&self, found: &Look) -> Result<(), DataplaneError> {
        let failed = |operation| on_map(operation, "yurt_netns");
        let map = self.netns.as_fd();
        let present = self.client_rows()?;
        let stays_alone = |cookie: &u64| {
            let row = present.get(cookie);
            found.untold.contains(cookie) && row.is_some_and(is_left_alone)
        };
        let mut result = Ok(());
        for cookie in present.keys() {
            let is_known =
                found.clients.contains_key(cookie) || found.left_alone.contains_key(cookie);
            // A namespace that could not be entered may still exist.
            if found.is_complete() && !is_known && !stays_alone(cookie) {
                let deleted = sys::map_delete(map, cookie).map_err(failed("delete from"));
                result = result.and(deleted);
            }
        }
        let cookies: BTreeSet<&u64> = found
            .clients
            .keys()
            .chain(found.left_alone.keys())
            .collect();
        for cookie in cookies {
            let addresses = found.clients.get(cookie).copied().unwrap_or_default();
            let row = abi::NetnsRow {
                class: match found.left_alone.contains_key(cookie) || stays_alone(cookie) {
                    true => abi::NETNS_OPT_OUT,
                    false => 0,
                },
                addr4: addresses.v4.map(|addr| addr.octets()).unwrap_or_default(),
                addr6: addresses.v6.map(|addr| addr.octets()).unwrap_or_default(),
            };
            if present.get(cookie) != Some(&row) {
                let written = sys::map_update(map, cookie, &row).map_err(failed("write"));
                if written.is_err() && present.contains_key(cookie) {
                    // An unknown client is refused, which is better than one with an old address.
                    let _ = sys::map_delete(map, cookie);
                }
                result = result.and(written);
            }
        }
        result.and(self.write_switches())
    }

    /// Whether the sockets of a Pod are left alone.
    pub fn leaves_clients_alone(&self) -> Result<bool, DataplaneError> {
        let conf = self.table.conf_entry()?;
        // SAFETY: a valid entry of our mapping; the field is one aligned word.
        let rows = unsafe { AtomicU32::from_ptr(&raw mut (*conf).netns_rows) };
        Ok(rows.load(Ordering::Acquire) != 0)
    }

    fn leave_nobody_alone(&self) -> Result<(), DataplaneError> {
        for (cookie, row) in self.client_rows()? {
            if is_left_alone(&row) {
                let deleted = sys::map_delete(self.netns.as_fd(), &cookie);
                deleted.map_err(on_map("delete from", "yurt_netns"))?;
            }
        }
        Ok(())
    }

    fn client_rows(&self) -> Result<BTreeMap<u64, abi::NetnsRow>, DataplaneError> {
        let rows: Vec<(u64, abi::NetnsRow)> =
            sys::map_entries(self.netns.as_fd()).map_err(on_map("read", "yurt_netns"))?;
        Ok(rows.into_iter().collect())
    }

    /// The maps that tell which Service a socket dialled.
    pub fn socket_maps(&self) -> Result<SocketMaps, DataplaneError> {
        let state = self.root.join(format!("state-v{}", abi::STATE_ABI));
        Ok(SocketMaps {
            udp: open_map(&state, "yurt_revsk")?,
            tcp: open_map(&state, "yurt_peer")?,
            tcp_entries: self.options.tcp_peers.max(1).next_power_of_two(),
        })
    }

    /// Attaches missing programs, replaces those that are not ours, makes missing pins, and sets the switches again. A
    /// failure stops nothing else.
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
        let Mended { programs, failures } = self.links.mend();
        repair.programs = programs;
        repair.failures.extend(failures);
        repair
    }

    /// Programs that are attached to no cgroup.
    pub fn detached(&self) -> Vec<&'static str> {
        // Until the new table is complete, the programs of the earlier agent serve.
        self.links.detached(self.is_staged)
    }

    /// The first missing pin, and the number of missing pins: an object without a pin ends with this process.
    pub fn unpinned(&self) -> Result<Option<(PathBuf, usize)>, DataplaneError> {
        let maps = self.table_pins.missing().chain(self.state_pins.missing());
        let missing = maps
            .chain(self.links.missing())
            .collect::<Result<Vec<_>, _>>()?;
        let count = missing.len();
        Ok(missing.into_iter().next().map(|first| (first, count)))
    }

    fn write_switches(&self) -> Result<(), DataplaneError> {
        let cookie = netns::cookie().map_err(DataplaneError::NetnsCookie)?;
        // Kernels without SO_NETNS_COOKIE number namespaces from 1, and the node's own namespace is the first one.
        let cookie = cookie.unwrap_or(1);
        let socket_lb = match self.options.socket_lb {
            SocketLb::All => abi::SOCKET_LB_ALL,
            SocketLb::Host => abi::SOCKET_LB_HOST,
            SocketLb::Off => abi::SOCKET_LB_OFF,
        };
        let rows = self.client_rows()?.into_values();
        let rows = u32::try_from(rows.filter(is_left_alone).count()).unwrap_or(u32::MAX);
        let conf = self.table.conf_entry()?;
        // SAFETY: a valid entry of our mapping; each field is one aligned word.
        unsafe {
            AtomicU64::from_ptr(&raw mut (*conf).node_netns).store(cookie, Ordering::Release);
            AtomicU32::from_ptr(&raw mut (*conf).socket_lb).store(socket_lb, Ordering::Release);
            AtomicU32::from_ptr(&raw mut (*conf).netns_rows).store(rows, Ordering::Release);
        }
        Ok(())
    }
}

fn is_left_alone(row: &abi::NetnsRow) -> bool {
    row.class == abi::NETNS_OPT_OUT
}

/// Table maps of older ABIs, complete or not. The programs that read them have been replaced.
fn older_tables(root: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let mut older = Vec::new();
    for entry in fs::read_dir(root).map_err(at("read", root))? {
        let entry = entry.map_err(at("read", root))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let version = name
            .strip_prefix('v')
            .map(|name| name.trim_end_matches("-next"));
        let version = version.and_then(|version| version.parse::<u32>().ok());
        if version.is_some_and(|version| version < abi::TABLE_ABI) {
            older.push(entry.path());
        }
    }
    Ok(older)
}

/// The directory of the pins.
fn root_in(bpffs: &Path) -> PathBuf {
    bpffs.join("yurt-net")
}

/// Where the table in force is pinned, and one that is still being written.
fn tables(root: &Path) -> [PathBuf; 2] {
    ["", "-next"].map(|end| root.join(format!("v{}{end}", abi::TABLE_ABI)))
}

/// Whether the pins below this directory serve clients. Changes nothing.
fn is_serving(root: &Path) -> Result<bool, DataplaneError> {
    let has_links = fs::read_dir(root.join("links")).is_ok_and(|mut pins| pins.next().is_some());
    if !has_links {
        return Ok(false);
    }
    // A process that was killed during the first start has attached some programs, and served nobody.
    let [current, next] = tables(root);
    let is_first = !current.exists() && older_tables(root)?.is_empty();
    Ok(!(is_first && next.exists()))
}

/// Every kind of directory that has an ABI of its own, and the newest ABI that this agent knows.
const ABIS: [(&str, u32); 5] = [
    ("v", abi::TABLE_ABI),
    ("state-v", abi::STATE_ABI),
    ("guard-v", abi::GUARD_ABI),
    ("translate-v", abi::TRANSLATE_ABI),
    ("packet-v", abi::PACKET_ABI),
];

/// Refuses pins of a newer agent. Tables of an older one serve until [`BpfDataplane::activate`] has replaced them.
fn check_abi(root: &Path) -> Result<(), DataplaneError> {
    for entry in fs::read_dir(root).map_err(at("read", root))? {
        let entry = entry.map_err(at("read", root))?;
        if is_of_newer(&entry.file_name().to_string_lossy()) {
            return Err(DataplaneError::UnknownAbi { path: entry.path() });
        }
    }
    Ok(())
}

/// Whether a newer agent has made a directory: by its number, or because its kind is unknown.
fn is_of_newer(name: &str) -> bool {
    let name = name.strip_suffix("-next").unwrap_or(name);
    let (kind, version) = name.split_at(name.trim_end_matches(|c: char| c.is_ascii_digit()).len());
    if !(kind == "v" || kind.ends_with("-v")) || version.is_empty() {
        return false;
    }
    let known = ABIS.into_iter().find(|(known, _)| *known == kind);
    // No agent has had a number that does not fit into 32 bits.
    known.is_none_or(|(_, newest)| version.parse().is_ok_and(|version: u32| version > newest))
}

/// Entries of an LRU map that may lie unused, because each CPU takes 128 at once (`LOCAL_FREE_TARGET`,
/// kernel/bpf/bpf_lru_list.c).
fn lru_reserve(cpus: usize) -> u32 {
    u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(128)
}

impl Dataplane for BpfDataplane {
    fn observe(&self) -> Result<MapImage, DataplaneError> {
        let rows = self.table.rows()?;
        let first_generation = self.table.first_generation;
        if self.is_staged && rows.0.is_empty() && rows.1.is_empty() {
            // No program reads these maps yet, so no grace period is needed before they are written.
            return Ok(MapImage::empty(self.table.capacity).counting_from(first_generation));
        }
        let image = decode(self.table.capacity, &rows, &self.table.mapped()?);
        Ok(image.counting_from(first_generation))
    }

    fn holds(&self, image: &MapImage) -> Result<bool, DataplaneError> {
        Ok(decode::holds(
            image,
            &self.table.rows()?,
            &self.table.mapped()?,
        ))
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        let total = plan.ops.len();
        let mut applied = 0;
        if total == 0 {
            return Ok(());
        }
        let failed = |applied| {
            move |source| ApplyError {
                applied,
                total,
                source,
            }
        };
        let mut table = self.table.writer();
        for run in plan
            .ops
            .chunk_by(|a, b| matches!((a, b), (Op::PutFrontend(..), Op::PutFrontend(..))))
        {
            let result = match run {
                [op] => table.write(op),
                run => table.put_all(run),
            };
            result.map_err(failed(applied))?;
            applied += run.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_every_kind_are_refused_where_a_newer_agent_has_made_them() {
        for (kind, newest) in ABIS {
            for older in 1..=newest {
                assert!(!is_of_newer(&format!("{kind}{older}")), "{kind}{older}");
            }
            assert!(is_of_newer(&format!("{kind}{}", newest + 1)), "{kind}");
        }
        for (name, is_newer) in [
            ("v2-next", false),
            ("v3-next", true),
            ("flow-v1", true),
            ("links", false),
            ("tc", false),
            ("v", false),
            ("node-v", false),
        ] {
            assert_eq!(is_of_newer(name), is_newer, "{name}");
        }
    }
}
