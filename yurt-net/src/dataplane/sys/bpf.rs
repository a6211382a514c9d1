//! The `bpf(2)` calls that the agent makes. aya's are for programs that live with the process; ours outlive it.
//!
//! Structures follow `union bpf_attr` of Linux `include/uapi/linux/bpf.h`; a shorter one than the kernel's is allowed,
//! the rest counts as zero.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_MAP_GET_NEXT_ID: libc::c_long = 12;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
pub(super) const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
pub(super) const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `BPF_LINK_TYPE_CGROUP`.
pub(in crate::dataplane) const LINK_TYPE_CGROUP: u32 = 3;

pub(super) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: every caller passes the structure of its command, and the pointers in it outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

pub(super) fn address<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<u8>().addr() as u64
}

pub(super) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned object.
pub(in crate::dataplane) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    owned(bpf(
        BPF_OBJ_GET,
        &mut ObjectAttr {
            pathname: address(path.as_c_str()),
            fd: 0,
            flags: 0,
        },
    )?)
}

/// Pins an object.
pub(in crate::dataplane) fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let pathname = address(path.as_c_str());
    bpf(
        BPF_OBJ_PIN,
        &mut ObjectAttr {
            pathname,
            fd: raw(fd),
            flags: 0,
        },
    )
    .map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

pub(super) fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    info_of(fd, T::default())
}

/// Hands over where lists are to be written to.
pub(super) fn info_of<T>(fd: BorrowedFd<'_>, mut value: T) -> io::Result<T> {
    let length = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let info = std::ptr::from_mut(&mut value).addr() as u64;
    bpf(
        BPF_OBJ_GET_INFO_BY_FD,
        &mut InfoAttr {
            fd: raw(fd),
            length,
            info,
        },
    )?;
    Ok(value)
}

/// The head of `struct bpf_map_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(in crate::dataplane) struct MapInfo {
    pub(in crate::dataplane) map_type: u32,
    pub(in crate::dataplane) id: u32,
    pub(in crate::dataplane) key_size: u32,
    pub(in crate::dataplane) value_size: u32,
    pub(in crate::dataplane) max_entries: u32,
    pub(in crate::dataplane) map_flags: u32,
}

/// Describes a map.
pub(in crate::dataplane) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

/// Kind and number of an object: the head of each description.
pub(in crate::dataplane) fn object_id(fd: BorrowedFd<'_>) -> io::Result<[u32; 2]> {
    info(fd)
}

/// As far as the name.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct NamedMapInfo {
    info: MapInfo,
    name: [u8; 16],
}

/// All maps of the kernel that have a name, with their numbers. One that may not be looked at, by the word of a security module or of
/// whoever it belongs to, is left out: it is none of ours. Needs `CAP_SYS_ADMIN`.
pub(in crate::dataplane) fn map_ids_named(name: &str) -> io::Result<Vec<(u32, OwnedFd)>> {
    let mut found = Vec::new();
    for_each(BPF_MAP_GET_NEXT_ID, BPF_MAP_GET_FD_BY_ID, |id, map| {
        let described: NamedMapInfo = info(map.as_fd())?;
        if described.name.split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
            found.push((id, map));
        }
        Ok(())
    })?;
    Ok(found)
}

/// All links of the kernel that have a program on a cgroup. Left out as above. Needs Linux 5.8 and `CAP_SYS_ADMIN`.
pub(in crate::dataplane) fn links_on_cgroup(
    cgroup_id: u64,
) -> io::Result<Vec<(LinkInfo, OwnedFd)>> {
    let mut found = Vec::new();
    for_each(BPF_LINK_GET_NEXT_ID, BPF_LINK_GET_FD_BY_ID, |_, link| {
        let described = link_info(link.as_fd())?;
        if described.link_type == LINK_TYPE_CGROUP && described.cgroup_id == cgroup_id {
            found.push((described, link));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Opens a program by its number.
pub(in crate::dataplane) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0]).and_then(owned)
}

/// Opens a link by its number.
pub(in crate::dataplane) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(BPF_LINK_GET_FD_BY_ID, &mut [id, 0, 0]).and_then(owned)
}

/// Walks through all objects of a kind; those of which one may hear nothing are passed over.
fn for_each(
    get_next_id: libc::c_long,
    get_fd_by_id: libc::c_long,
    mut look: impl FnMut(u32, OwnedFd) -> io::Result<()>,
) -> io::Result<()> {
    /// The number to start behind or to open, and the one that follows.
    type IdAttr = [u32; 3];
    let mut last = 0;
    loop {
        let mut attr: IdAttr = [last, 0, 0];
        match bpf(get_next_id, &mut attr) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            result => drop(result?),
        }
        let [_, next, _] = attr;
        last = next;
        let opened = bpf(get_fd_by_id, &mut [next, 0, 0]).and_then(owned);
        match opened.and_then(|object| look(next, object)) {
            Err(error) if is_passed_over(&error) => {}
            looked => looked?,
        }
    }
}

/// Whether one object's error says nothing of others: it went meanwhile, is a link that is being made, or is not for us to see.
pub(in crate::dataplane) fn is_passed_over(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EAGAIN | libc::EPERM | libc::EACCES)
    )
}

/// The head of `struct bpf_link_info`, for a cgroup link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(in crate::dataplane) struct LinkInfo {
    pub(in crate::dataplane) link_type: u32,
    pub(in crate::dataplane) id: u32,
    pub(in crate::dataplane) prog_id: u32,
    pad: u32,
    /// 0 once the link is detached or its cgroup is gone.
    pub(in crate::dataplane) cgroup_id: u64,
    pub(in crate::dataplane) attach_type: u32,
    tail: u32,
}

/// Describes a link.
pub(in crate::dataplane) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

#[repr(C)]
pub(super) struct LinkCreateAttr {
    pub(super) prog_fd: u32,
    pub(super) target_fd: u32,
    pub(super) attach_type: u32,
    pub(super) flags: u32,
}

/// Attaches a program to a cgroup; detached when the last reference to the link, its pin, goes.
pub(in crate::dataplane) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let (prog_fd, target_fd) = (raw(program), raw(cgroup));
    owned(bpf(
        BPF_LINK_CREATE,
        &mut LinkCreateAttr {
            prog_fd,
            target_fd,
            attach_type,
            flags: 0,
        },
    )?)
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Swaps the program of a link: no call goes without one.
pub(in crate::dataplane) fn link_update(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let (link_fd, new_prog_fd) = (raw(link), raw(program));
    bpf(
        BPF_LINK_UPDATE,
        &mut LinkUpdateAttr {
            link_fd,
            new_prog_fd,
            flags: 0,
            old_prog_fd: 0,
        },
    )
    .map(drop)
}

/// Takes a link's program off, whoever else holds the link.
pub(in crate::dataplane) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut raw(link)).map(drop)
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElementAttr {
    fn new<K>(map: BorrowedFd<'_>, key: &K) -> Self {
        Self {
            map_fd: raw(map),
            pad: 0,
            key: address(key),
            value: 0,
            flags: 0,
        }
    }
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes an entry of an array, whatever its type; `value` has the size of the map's values.
pub(in crate::dataplane) fn map_write_bytes(
    map: BorrowedFd<'_>,
    index: u32,
    value: &[u8],
) -> io::Result<()> {
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &mut ElementAttr {
            value: address(value),
            ..ElementAttr::new(map, &index)
        },
    )
    .map(drop)
}

/// Adds or overwrites entries; `keys` and `values` are of the same length. In one call where the kernel can (5.6).
///
/// The types must be those that the map was made with.
pub(in crate::dataplane) fn map_update<K, V>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    if keys.len() > 1 {
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys: address(keys),
            values: address(values),
            count: u32::try_from(keys.len().min(values.len())).map_err(io::Error::other)?,
            map_fd: raw(map),
            elem_flags: 0,
            flags: 0,
        };
        match bpf(BPF_MAP_UPDATE_BATCH, &mut attr) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return result.map(drop),
        }
    }
    for (key, value) in keys.iter().zip(values) {
        bpf(
            BPF_MAP_UPDATE_ELEM,
            &mut ElementAttr {
                value: address(value),
                ..ElementAttr::new(map, key)
            },
        )?;
    }
    Ok(())
}

/// Adds or overwrites an entry of a per-CPU map; `values` has one for each possible CPU, and `V` is a multiple of 8 bytes.
pub(in crate::dataplane) fn map_update_per_cpu<K, V>(
    map: BorrowedFd<'_>,
    key: &K,
    values: &[V],
) -> io::Result<()> {
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &mut ElementAttr {
            value: address(values),
            ..ElementAttr::new(map, key)
        },
    )
    .map(drop)
}

/// Removes an entry; one that is not there is no error.
pub(in crate::dataplane) fn map_delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    match bpf(BPF_MAP_DELETE_ELEM, &mut ElementAttr::new(map, key)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result.map(drop),
    }
}

/// Looks an entry up. `V` must have the size of the map's values, for all possible CPUs if it is a per-CPU map.
pub(in crate::dataplane) fn map_lookup<K, V: Copy>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &mut [V],
) -> io::Result<bool> {
    let value = value.as_mut_ptr().addr() as u64;
    match bpf(
        BPF_MAP_LOOKUP_ELEM,
        &mut ElementAttr {
            value,
            ..ElementAttr::new(map, key)
        },
    ) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        result => result.map(|_| true),
    }
}

/// All entries of a hash. Entries that come or go meanwhile may be seen or not.
pub(in crate::dataplane) fn map_entries<K: Copy + Default, V: Copy + Default>(
    map: BorrowedFd<'_>,
) -> io::Result<Vec<(K, V)>> {
    match map_entries_in_batches(map) {
        // Not in kernels before 5.6.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => map_entries_one_by_one(map),
        result => result,
    }
}

fn map_entries_in_batches<K: Copy + Default, V: Copy + Default>(
    map: BorrowedFd<'_>,
) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let mut room = 256;
    // A hash numbers its buckets.
    let mut cursor: Option<u32> = None;
    loop {
        let (mut keys, mut values) = (vec![K::default(); room], vec![V::default(); room]);
        let mut next = 0u32;
        let mut attr = BatchAttr {
            in_batch: cursor.as_ref().map_or(0, address),
            out_batch: std::ptr::from_mut(&mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map_fd: raw(map),
            elem_flags: 0,
            flags: 0,
        };
        let is_last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // More entries in one bucket than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        entries.extend(keys.into_iter().zip(values).take(attr.count as usize));
        if is_last {
            return Ok(entries);
        }
        cursor = Some(next);
    }
}

fn map_entries_one_by_one<K: Copy + Default, V: Copy + Default>(
    map: BorrowedFd<'_>,
) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let mut previous: Option<K> = None;
    // A key that is deleted under the walk makes the kernel start over: bounded, duplicates are harmless.
    for _ in 0..u32::from(u16::MAX) * 64 {
        let mut key = K::default();
        let mut attr = ElementAttr::new(map, &key);
        attr.key = previous.as_ref().map_or(0, address);
        attr.value = std::ptr::from_mut(&mut key).addr() as u64;
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            result => result?,
        };
        let mut value = [V::default()];
        if map_lookup(map, &key, &mut value)? {
            entries.push((key, value[0]));
        }
        previous = Some(key);
    }
    Ok(entries)
}
