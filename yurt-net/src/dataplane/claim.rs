//! What one agent owns on a machine. A second agent that would own some of it is refused.
//!
//! A claim is a map that is not pinned: it lives as long as its process, and does not go with a directory that is
//! removed or mounted over. The kernel wants `CAP_BPF` for an LPM trie, so no tenant can make a claim to keep an agent
//! from starting. Decision 21 has the alternatives.
#![expect(
    unsafe_code,
    reason = "a value of a map is read as what an agent wrote"
)]

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::DataplaneError;
use super::sys::{self, MapInfo};
use crate::host::disk::errand::once;

const NAME: &str = "yurt_claim";
/// `BPF_MAP_TYPE_LPM_TRIE`.
const LPM_TRIE: u32 = 11;
const BPF_F_NO_PREALLOC: u32 = 1;
/// The one key: a prefix of no bits.
const KEY: [u32; 2] = [0; 2];
/// How long a claim may exist before it has its row.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file, by device and inode number; zero where there is none.
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

/// What an agent owns: each of these has one agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Owned {
    cgroup: File,
    pins: File,
    state: File,
    /// The network namespace, whose devices it looks after.
    netns: File,
}

impl Owned {
    /// With these flags, in this network namespace. A state directory whose disk does not answer is left out: the rest
    /// still tells two agents apart.
    pub async fn found(cgroup: &Path, bpffs: &Path, state_dir: &Path) -> Self {
        let paths = [cgroup, bpffs, state_dir].map(Path::to_owned);
        let all = once(move || {
            let [cgroup, bpffs, state_dir] = &paths;
            Self::of(cgroup, bpffs, Some(state_dir))
        });
        let all = all.await;
        all.unwrap_or_else(|| Self::of(cgroup, bpffs, None))
    }

    /// The same, where the state directory is known not to answer, or to do so.
    pub fn of(cgroup: &Path, bpffs: &Path, state_dir: Option<&Path>) -> Self {
        Self {
            cgroup: File::of(cgroup),
            // Not the directory in it, which can go.
            pins: File::of(bpffs),
            state: state_dir.map_or_else(File::default, File::of),
            netns: File::of(Path::new("/proc/self/ns/net")),
        }
    }

    /// The first thing that two claims share.
    fn common(&self, other: &Self) -> Option<&'static str> {
        let things = [
            (self.cgroup, other.cgroup, "the cgroup"),
            (self.pins, other.pins, "the bpf file system"),
            (self.state, other.state, "the state directory"),
            (self.netns, other.netns, "the network namespace"),
        ];
        let mut things = things.into_iter();
        things.find_map(|(a, b, what)| a.is_also(b).then_some(what))
    }
}

/// The value of the map. Agents of other versions read it: fields are added at the end only.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Row {
    owned: Owned,
    /// In the process' own pid namespace.
    pid: u32,
    /// 0 until the agent has found nobody else.
    is_settled: u32,
    pid_namespace: File,
}

/// A claim that holds for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    _map: OwnedFd,
}

impl Claim {
    /// Claims all of it, or fails with the process that has some of it.
    pub fn take(owned: Owned) -> Result<Self, DataplaneError> {
        let failed = DataplaneError::Claim;
        let info = MapInfo {
            map_type: LPM_TRIE,
            id: 0,
            key_size: bytes(size_of_val(&KEY)),
            value_size: bytes(size_of::<Row>()),
            max_entries: 1,
            map_flags: BPF_F_NO_PREALLOC,
        };
        sys::raise_memlock();
        let map = sys::map_create(NAME, &info).map_err(failed)?;
        let mut row = Row {
            owned,
            pid: std::process::id(),
            is_settled: 0,
            pid_namespace: pid_namespace(),
        };
        sys::map_update(map.as_fd(), &KEY, &row).map_err(failed)?;
        // Of two that start at once, each sees the other: the one with the lower number goes on.
        let id = sys::map_info(map.as_fd()).map_err(failed)?.id;
        refuse(&owned, |other, other_id| {
            other_id != id && (other.is_settled != 0 || other_id < id)
        })?;
        row.is_settled = 1;
        sys::map_update(map.as_fd(), &KEY, &row).map_err(failed)?;
        Ok(Self { _map: map })
    }
}

/// Fails if another claim shares something, and `counts` says that it stands; the error names the process.
fn refuse(owned: &Owned, counts: impl Fn(&Row, u32) -> bool) -> Result<(), DataplaneError> {
    let found = sys::maps_named(NAME).map_err(DataplaneError::Claim)?;
    for (id, map) in found {
        let row = match read(map.as_fd()) {
            // Anybody may give a map this name.
            Err(error) if sys::is_passed_over(&error) => None,
            row => row.map_err(DataplaneError::Claim)?,
        };
        if let Some(row) = row
            && let Some(what) = owned.common(&row.owned)
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

/// The row of a claim. A map without a row is one that is being made, and belongs to no running agent.
fn read(map: BorrowedFd<'_>) -> io::Result<Option<Row>> {
    let info = sys::map_info(map)?;
    if info.map_type != LPM_TRIE || info.key_size as usize != size_of_val(&KEY) {
        return Ok(None);
    }
    // A later version's is longer, an earlier one's shorter.
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

/// The process that made a claim, by its number in our pid namespace where it has one.
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

    fn owned(cgroup: u64, pins: u64, state: u64, netns: u64) -> Owned {
        let file = |inode| File {
            device: u64::from(inode != 0),
            inode,
        };
        Owned {
            cgroup: file(cgroup),
            pins: file(pins),
            state: file(state),
            netns: file(netns),
        }
    }

    #[test]
    fn each_thing_alone_is_reason_enough_and_what_is_not_there_is_nobodys() {
        let ours = owned(1, 2, 0, 4);
        for (theirs, common) in [
            (owned(1, 12, 13, 14), Some("the cgroup")),
            (owned(11, 2, 13, 14), Some("the bpf file system")),
            (owned(11, 12, 13, 4), Some("the network namespace")),
            (owned(11, 12, 0, 14), None),
            (owned(2, 1, 4, 11), None),
        ] {
            assert_eq!(ours.common(&theirs), common, "{theirs:?}");
        }
        let with_state = owned(1, 2, 3, 4);
        let theirs = owned(11, 12, 3, 14);
        assert_eq!(with_state.common(&theirs), Some("the state directory"));
    }
}
