//! Claims: each of these things on a machine belongs to at most one agent. A second agent that would own one of them is
//! refused.
//!
//! A claim is a map that is not pinned: it lives as long as its process, and does not disappear with a directory that
//! is removed or mounted over. The kernel requires `CAP_BPF` for an LPM trie, so no tenant can make a claim to keep an
//! agent from starting. Decision 21 has the alternatives.
#![expect(
    unsafe_code,
    reason = "a value of a map is read as what an agent wrote"
)]

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::DataplaneError;
use super::sys::{self, MapInfo};

const NAME: &str = "yurt_claim";
/// `BPF_MAP_TYPE_LPM_TRIE`.
const LPM_TRIE: u32 = 11;
const BPF_F_NO_PREALLOC: u32 = 1;
/// The one key: a prefix of no bits.
const KEY: [u32; 2] = [0; 2];
/// How long a claim may exist before it has its row.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file, by device and inode number; zero if it cannot be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct File {
    device: u64,
    inode: u64,
}

impl File {
    fn of(path: &Path) -> Self {
        let metadata = fs::metadata(path);
        metadata.map_or(Self::default(), |metadata| Self {
            device: metadata.st_dev(),
            inode: metadata.st_ino(),
        })
    }

    fn is_also(self, other: Self) -> bool {
        self == other && self != Self::default()
    }
}

/// The paths of the things that belong to one agent each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Things {
    /// The cgroup whose processes are served.
    pub cgroup: PathBuf,
    /// The mount point of the pins, and not the directory in it, which can be removed.
    pub bpffs: PathBuf,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The directory of the ledger in memory.
    pub memory: PathBuf,
}

/// The things that an agent owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    cgroup: File,
    pins: File,
    state: File,
    /// The network namespace whose devices it looks after.
    netns: File,
    memory: File,
}

impl Owned {
    /// Looks at all of them, in this network namespace. Waits for the disk.
    pub fn of(things: &Things) -> Self {
        Self {
            state: File::of(&things.state_dir),
            memory: File::of(&things.memory),
            ..Self::without_a_disk(things)
        }
    }

    /// The same, where the disk does not answer: the rest still tells two agents apart.
    pub fn without_a_disk(things: &Things) -> Self {
        Self {
            cgroup: File::of(&things.cgroup),
            pins: File::of(&things.bpffs),
            netns: File::of(Path::new("/proc/self/ns/net")),
            ..Self::default()
        }
    }

    /// With what was seen before in place of what cannot be seen now.
    fn or(self, before: Self) -> Self {
        let either = |now: File, before: File| match now == File::default() {
            true => before,
            false => now,
        };
        Self {
            cgroup: either(self.cgroup, before.cgroup),
            pins: either(self.pins, before.pins),
            state: either(self.state, before.state),
            netns: either(self.netns, before.netns),
            memory: either(self.memory, before.memory),
        }
    }

    /// The first thing that two claims share.
    fn common(&self, other: &Self) -> Option<&'static str> {
        let things = [
            (self.cgroup, other.cgroup, "the cgroup"),
            (self.pins, other.pins, "the bpf file system"),
            (self.state, other.state, "the state directory"),
            (self.netns, other.netns, "the network namespace"),
            (self.memory, other.memory, "the ledger's run directory"),
        ];
        let mut things = things.into_iter();
        things.find_map(|(a, b, what)| a.is_also(b).then_some(what))
    }
}

/// The value of the map. Agents of other versions read it: fields are added at the end only.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Row {
    cgroup: File,
    pins: File,
    state: File,
    netns: File,
    /// The process, in its own pid namespace.
    pid: u32,
    /// 0 until the agent knows that it is the only one.
    is_settled: u32,
    pid_namespace: File,
    memory: File,
}

impl Row {
    fn owned(&self) -> Owned {
        Owned {
            cgroup: self.cgroup,
            pins: self.pins,
            state: self.state,
            netns: self.netns,
            memory: self.memory,
        }
    }

    fn with(self, owned: Owned) -> Self {
        let Owned {
            cgroup,
            pins,
            state,
            netns,
            memory,
        } = owned;
        Self {
            cgroup,
            pins,
            state,
            netns,
            memory,
            ..self
        }
    }
}

/// A claim that holds for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    map: OwnedFd,
    id: u32,
    row: Row,
}

impl Claim {
    /// Claims all of it. Fails if another process has some of it, and names that process.
    pub fn take(owned: Owned) -> Result<Self, DataplaneError> {
        let failed = DataplaneError::Claim;
        let info = MapInfo {
            map_type: LPM_TRIE,
            id: 0,
            key_size: bytes(size_of_val(&KEY)),
            value_size: bytes(size_of::<Row>()),
            // One entry, which is rewritten: before Linux 6.13 a rewrite needs room for two (532d6b36b2bf).
            max_entries: 2,
            map_flags: BPF_F_NO_PREALLOC,
        };
        sys::raise_memlock();
        let map = sys::map_create(NAME, &info).map_err(failed)?;
        let id = sys::map_info(map.as_fd()).map_err(failed)?.id;
        let row = Row {
            pid: std::process::id(),
            is_settled: 0,
            pid_namespace: pid_namespace(),
            ..Row::default()
        };
        let mut claim = Self { map, id, row };
        claim.write(row.with(owned))?;
        // Two agents that start at the same time see each other: the one with the lower number goes on.
        refuse(&owned, |other, other_id| {
            other_id != id && (other.is_settled != 0 || other_id < id)
        })?;
        claim.write(Row {
            is_settled: 1,
            ..claim.row
        })?;
        Ok(claim)
    }

    /// Also claims what has come since: a directory that was made or mounted over. What cannot be seen now stays
    /// claimed as before. If another process has some of it, nothing changes, and the error names that process.
    pub fn renew(&mut self, found: Owned) -> Result<(), DataplaneError> {
        let before = self.row;
        let owned = found.or(before.owned());
        if owned == before.owned() {
            return Ok(());
        }
        let id = self.id;
        refuse(&owned, |_, other_id| other_id != id)?;
        self.write(before.with(owned))?;
        // Two agents may look before either has written: then both step back and try again later.
        let refused = refuse(&owned, |_, other_id| other_id != id);
        if refused.is_err() {
            self.write(before)?;
        }
        refused
    }

    fn write(&mut self, row: Row) -> Result<(), DataplaneError> {
        sys::map_update(self.map.as_fd(), &KEY, &row).map_err(DataplaneError::Claim)?;
        self.row = row;
        Ok(())
    }
}

/// Fails if another claim shares something and `counts` says that it stands. The error names the process.
fn refuse(owned: &Owned, counts: impl Fn(&Row, u32) -> bool) -> Result<(), DataplaneError> {
    let found = sys::maps_named(NAME).map_err(DataplaneError::Claim)?;
    for (id, map) in found {
        let row = match read(map.as_fd()) {
            // Any process may give a map this name.
            Err(error) if sys::is_passed_over(&error) => None,
            row => row.map_err(DataplaneError::Claim)?,
        };
        if let Some(row) = row
            && let Some(what) = owned.common(&row.owned())
            && counts(&row, id)
        {
            return Err(DataplaneError::InUse {
                what: what.to_owned(),
                pid: name(&row),
            });
        }
    }
    Ok(())
}

/// The row of a claim. A map without a row is just being made, and belongs to no running agent.
fn read(map: BorrowedFd<'_>) -> io::Result<Option<Row>> {
    let info = sys::map_info(map)?;
    if info.map_type != LPM_TRIE || info.key_size as usize != size_of_val(&KEY) {
        return Ok(None);
    }
    // A row of a later version is longer, one of an earlier version shorter.
    let mut bytes = vec![0u64; (info.value_size as usize).max(size_of::<Row>()).div_ceil(8)];
    let deadline = Instant::now() + PATIENCE;
    while !sys::map_lookup(map, &KEY, &mut bytes)? {
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: aligned, at least as long, and any bytes are a valid row.
    Ok(Some(unsafe { bytes.as_ptr().cast::<Row>().read() }))
}

fn bytes(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

fn pid_namespace() -> File {
    File::of(Path::new("/proc/self/ns/pid"))
}

/// The process that made a claim, by its number in our pid namespace if it has one there.
fn name(row: &Row) -> String {
    if row.pid_namespace == pid_namespace() {
        row.pid.to_string()
    } else {
        format!("{} in another pid namespace", row.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Things with these inode numbers, in this order.
    fn owned([cgroup, pins, state, netns, memory]: [u64; 5]) -> Owned {
        let file = |inode| File {
            device: u64::from(inode != 0),
            inode,
        };
        Owned {
            cgroup: file(cgroup),
            pins: file(pins),
            state: file(state),
            netns: file(netns),
            memory: file(memory),
        }
    }

    #[test]
    fn each_thing_alone_is_reason_enough_and_what_is_not_there_is_nobodys() {
        let ours = owned([1, 2, 0, 4, 5]);
        for (theirs, common) in [
            ([1, 12, 13, 14, 15], Some("the cgroup")),
            ([11, 2, 13, 14, 15], Some("the bpf file system")),
            ([11, 12, 13, 4, 15], Some("the network namespace")),
            ([11, 12, 13, 14, 5], Some("the ledger's run directory")),
            ([11, 12, 0, 14, 15], None),
            ([2, 1, 4, 11, 0], None),
        ] {
            assert_eq!(ours.common(&owned(theirs)), common, "{theirs:?}");
        }
        let with_state = owned([1, 2, 3, 4, 5]);
        let theirs = owned([11, 12, 3, 14, 15]);
        assert_eq!(with_state.common(&theirs), Some("the state directory"));
    }

    #[test]
    fn what_cannot_be_seen_stays_claimed_as_it_was() {
        let before = owned([1, 2, 3, 4, 5]);
        assert_eq!(owned([1, 2, 0, 4, 15]).or(before), owned([1, 2, 3, 4, 15]));
        assert_eq!(Owned::default().or(before), before);
    }

    #[test]
    fn a_claim_is_read_by_other_versions_of_the_agent_where_they_expect_it() {
        use std::mem::offset_of;
        let offsets = [
            offset_of!(Row, cgroup),
            offset_of!(Row, pins),
            offset_of!(Row, state),
            offset_of!(Row, netns),
            offset_of!(Row, pid),
            offset_of!(Row, is_settled),
            offset_of!(Row, pid_namespace),
            offset_of!(Row, memory),
        ];
        assert_eq!(offsets, [0, 16, 32, 48, 64, 68, 72, 88]);
    }
}
