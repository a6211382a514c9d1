//! What the bench itself needs from the kernel: a program that does nothing, and the memory of maps.

use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use anyhow::Context;
use anyhow::Result;

use crate::bpf::load;
use crate::bpf::open;
use crate::bpf::pinned;

const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;

/// `connect4`, `sendmsg4`, `recvmsg4` and `getpeername4` of `enum bpf_attach_type`.
const HOOKS: [u32; 4] = [10, 14, 19, 29];

/// `r0 = 1; exit`: allow.
const GO_ON: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// Attaches a program that does nothing to every IPv4 hook that yurt-net uses. It is detached with its descriptors.
pub fn attach_empty_hooks(cgroup: &Path) -> Result<Vec<OwnedFd>> {
    let cgroup = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    HOOKS
        .into_iter()
        .map(|hook| {
            let program = load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, hook, &GO_ON)
                .with_context(|| format!("load an empty program for {hook}"))?;
            attach(&program, &cgroup, hook).with_context(|| format!("attach to hook {hook}"))
        })
        .collect()
}

#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

fn attach(program: &OwnedFd, cgroup: &File, hook: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: hook,
        flags: 0,
    };
    open(BPF_LINK_CREATE, &mut attr)
}

/// Bytes of kernel memory behind every map that is pinned below `dir`, by name.
pub fn map_memory(dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut maps = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            maps.extend(map_memory(&path)?);
            continue;
        }
        let pin = pinned(&path).with_context(|| path.display().to_string())?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pin.as_raw_fd()))?;
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        // Links do not have these fields.
        if let (Some(_), Some(bytes)) = (field("map_type:"), field("memlock:")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            maps.push((name.into_owned(), bytes));
        }
    }
    maps.sort();
    Ok(maps)
}

/// The publish words of a pinned `yurt_svc`, as a program sees them.
#[derive(Debug)]
pub struct PublishWords {
    rows: NonNull<ServiceRow>,
    count: usize,
}

/// A row in the maps' layout; only its word is used.
#[repr(C)]
struct ServiceRow {
    word: AtomicU64,
    _rest: u64,
}

impl PublishWords {
    /// Opens the map among the pins of an agent's table; it has `count` entries.
    pub fn open(pins: &Path, count: usize) -> Result<Self> {
        let path = pins.join("yurt_svc");
        let map = pinned(&path).with_context(|| path.display().to_string())?;
        let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        let length = count * size_of::<ServiceRow>();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let rows = unsafe {
            let null = std::ptr::null_mut();
            libc::mmap(null, length, protection, flags, map.as_raw_fd(), 0)
        };
        if rows == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("map yurt_svc into memory");
        }
        let rows = NonNull::new(rows.cast()).context("a mapping at address 0")?;
        Ok(Self { rows, count })
    }

    /// All words.
    pub fn read(&self) -> impl Iterator<Item = u64> + '_ {
        // SAFETY: the mapping has this many rows, and lives as long as `self`; others write to atomic words only.
        let rows = unsafe { std::slice::from_raw_parts(self.rows.as_ptr(), self.count) };
        rows.iter().map(|row| row.word.load(Ordering::Relaxed))
    }

    /// The word of one service index.
    pub fn at(&self, index: usize) -> u64 {
        self.read().nth(index).unwrap_or_default()
    }
}

impl Drop for PublishWords {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing borrows any more.
        unsafe {
            libc::munmap(
                self.rows.as_ptr().cast(),
                self.count * size_of::<ServiceRow>(),
            )
        };
    }
}
