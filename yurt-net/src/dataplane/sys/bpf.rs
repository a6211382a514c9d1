//! The `bpf(2)` calls that aya 0.14 does not make, or not as they are needed here. The agent makes no others.
//!
//! | call | why not by aya | what would end it |
//! |---|---|---|
//! | links of cgroups | no descriptor, no swap, and off where a pin fails | aya-rs/aya#1687, not in 0.14 |
//! | links of devices | by name, which another device may have by now | not asked for; #548 did it for XDP |
//! | `PROG_QUERY` | names programs, not their links | not asked for |
//! | what a link is on | `LinkInfo` has no cgroup, device or attach type | not asked for |
//! | a program by number | only by a walk through all | not asked for |
//! | pins | three types of object; two calls serve all | nothing |
//! | entries | no batches; a type for each kind of map | aya-rs/aya#1124 |
//! | an array of maps | only as part of an object | not asked for |
//!
//! Decision 24 has more. Structures follow `union bpf_attr` of Linux `include/uapi/linux/bpf.h`. A structure may be
//! shorter than the kernel's: the rest counts as zero.
#![expect(unsafe_code, reason = "bpf(2), which takes pointers")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
/// `BPF_LINK_TYPE_CGROUP`.
pub(in crate::dataplane) const LINK_TYPE_CGROUP: u32 = 3;
/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
const TCX_EGRESS: u32 = 47;
/// `BPF_LINK_TYPE_TCX`.
const LINK_TYPE_TCX: u32 = 11;
/// `BPF_F_BEFORE`; without a program to come before, it means before all.
const BEFORE: u32 = 1 << 3;
/// `BPF_F_AFTER`, of a link (`BPF_F_LINK`).
const AFTER_LINK: u32 = 1 << 4 | 1 << 13;

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
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

fn address<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<u8>().addr() as u64
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
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
    let mut attr = ObjectAttr {
        pathname: address(path.as_c_str()),
        fd: raw(fd),
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    info_of(fd, T::default())
}

/// Like [`info`]; `value` has pointers to where the kernel writes lists.
fn info_of<T>(fd: BorrowedFd<'_>, mut value: T) -> io::Result<T> {
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

/// Type and number of an object: the first words of every description.
pub(in crate::dataplane) fn object_id(fd: BorrowedFd<'_>) -> io::Result<[u32; 2]> {
    info(fd)
}

/// All links in the kernel that have a program on a cgroup. A link that may not be opened is left out, because it is
/// not ours. Needs Linux 5.8 and `CAP_SYS_ADMIN`.
pub(in crate::dataplane) fn cgroup_links() -> io::Result<Vec<(LinkInfo, OwnedFd)>> {
    let mut found = Vec::new();
    let mut last = 0;
    loop {
        // The number to start after, and the next number, which the kernel writes.
        let mut attr = [last, 0, 0];
        match bpf(BPF_LINK_GET_NEXT_ID, &mut attr) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            result => drop(result?),
        }
        [_, last, _] = attr;
        let described = link_by_id(last).and_then(|link| Ok((link_info(link.as_fd())?, link)));
        match described {
            Err(error) if is_passed_over(&error) => {}
            Err(error) => return Err(error),
            Ok((info, link)) => {
                if info.link_type == LINK_TYPE_CGROUP && info.cgroup_id != 0 {
                    found.push((info, link));
                }
            }
        }
    }
}

/// Opens a program by its number.
pub(in crate::dataplane) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0]).and_then(owned)
}

/// Opens a link by its number.
pub(in crate::dataplane) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf(BPF_LINK_GET_FD_BY_ID, &mut [id, 0, 0]).and_then(owned)
}

/// Whether an error concerns one object only: it is gone, it is a link that is just being made, or it may not be
/// opened.
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

/// The attributes of `BPF_LINK_CREATE` up to the last one for tcx; those from `relative_fd` on are 0 elsewhere.
#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program to a cgroup; detached when the last reference to the link, its pin, goes.
pub(in crate::dataplane) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target: raw(cgroup),
        attach_type,
        ..LinkCreateAttr::default()
    };
    owned(bpf(BPF_LINK_CREATE, &mut attr)?)
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link, without a gap.
pub(in crate::dataplane) fn link_update(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let (link_fd, new_prog_fd) = (raw(link), raw(program));
    let mut attr = LinkUpdateAttr {
        link_fd,
        new_prog_fd,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link's program, even if other processes hold the link.
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
#[derive(Default)]
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

/// Adds or overwrites an entry. The types must be those that the map was made with.
pub(in crate::dataplane) fn map_update<K, V>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()> {
    map_update_per_cpu(map, key, std::slice::from_ref(value))
}

/// The same for many entries in one call; `keys` and `values` have the same length.
pub(in crate::dataplane) fn map_update_all<K, V>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = BatchAttr {
        keys: address(keys),
        values: address(values),
        count: u32::try_from(keys.len().min(values.len())).map_err(io::Error::other)?,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// Adds or overwrites an entry of a per-CPU map; `values` has one for each possible CPU, and `V` is a multiple of 8
/// bytes.
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

/// Removes an entry; a missing one is no error.
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

/// All entries of a hash. Entries that come or go meanwhile may be missed.
pub(in crate::dataplane) fn map_entries<K: Copy + Default, V: Copy + Default>(
    map: BorrowedFd<'_>,
) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    map_each(map, |key, value| entries.push((*key, *value)))?;
    Ok(entries)
}

/// The same, one after the other: needs memory for a few hundred entries, however large the map is.
pub(in crate::dataplane) fn map_each<K: Copy + Default, V: Copy + Default>(
    map: BorrowedFd<'_>,
    mut see: impl FnMut(&K, &V),
) -> io::Result<()> {
    let (mut keys, mut values) = (vec![K::default(); 256], vec![V::default(); 256]);
    // The cursor is the number of a bucket.
    let mut cursor: Option<u32> = None;
    loop {
        let room = keys.len();
        let mut next = 0u32;
        let mut attr = BatchAttr {
            in_batch: cursor.as_ref().map_or(0, address),
            out_batch: std::ptr::from_mut(&mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map_fd: raw(map),
            ..BatchAttr::default()
        };
        let is_last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // More entries in one bucket than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                keys.resize(room * 2, K::default());
                values.resize(room * 2, V::default());
                continue;
            }
            Err(error) => return Err(error),
        };
        for (key, value) in keys.iter().zip(&values).take(attr.count as usize) {
            see(key, value);
        }
        if is_last {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// `BPF_OBJ_NAME_LEN` bytes, the last one a NUL.
pub(in crate::dataplane) fn name_of(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

#[repr(C)]
#[derive(Default)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Makes an array of maps that are like `inner`.
pub(in crate::dataplane) fn array_of_maps_create(
    name: &str,
    inner: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let mut attr = MapAttr {
        map_type: MAP_TYPE_ARRAY_OF_MAPS,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        inner_map_fd: raw(inner),
        name: name_of(name),
        ..MapAttr::default()
    };
    owned(bpf(BPF_MAP_CREATE, &mut attr)?)
}

/// The first fields of `struct bpf_prog_info`, up to the name.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawProgramInfo {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited_to_load_time: [u64; 3],
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// The numbers of the maps that a program uses.
pub(in crate::dataplane) fn program_maps(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    /// `MAX_USED_MAPS` of the verifier.
    const MOST: u32 = 64;
    let mut ids = vec![0u32; MOST as usize];
    let asked = RawProgramInfo {
        nr_map_ids: MOST,
        map_ids: ids.as_mut_ptr().addr() as u64,
        ..RawProgramInfo::default()
    };
    let found = info_of(program, asked)?.nr_map_ids;
    ids.truncate(found as usize);
    Ok(ids)
}

/// The name of a program, padded with zeros.
pub(in crate::dataplane) fn program_name(program: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    info(program).map(|info: RawProgramInfo| info.name)
}

/// Which packets of a device a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Those that come in.
    Ingress,
    /// Those that go out.
    Egress,
}

impl Hook {
    const fn tcx(self) -> u32 {
        match self {
            Self::Ingress => TCX_INGRESS,
            Self::Egress => TCX_EGRESS,
        }
    }
}

/// Whether this kernel has tcx.
pub(in crate::dataplane) fn has_tcx(program: BorrowedFd<'_>) -> bool {
    // No device has the index 0. Only a kernel that knows tcx gets as far as looking for it.
    let result = tcx_create(program, Hook::Ingress, 0, None);
    result.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// Attaches a program to a device, before all others there, or right after the program of link `first`. `ENODEV`: there
/// is no such device.
pub(in crate::dataplane) fn tcx_create(
    program: BorrowedFd<'_>,
    hook: Hook,
    ifindex: u32,
    first: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target: ifindex,
        attach_type: hook.tcx(),
        flags: first.map_or(BEFORE, |_| AFTER_LINK),
        relative_fd: first.map_or(0, raw),
        ..LinkCreateAttr::default()
    };
    owned(bpf(BPF_LINK_CREATE, &mut attr)?)
}

/// The head of `struct bpf_link_info`, for a tcx link.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawTcxInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
}

/// The program of a link; `None` if the link is not on this hook of this device, because it belongs to another one, is
/// detached, or its device is gone.
pub(in crate::dataplane) fn tcx_program(
    link: BorrowedFd<'_>,
    hook: Hook,
    ifindex: u32,
) -> io::Result<Option<u32>> {
    let info: RawTcxInfo = info(link)?;
    let is_there = info.link_type == LINK_TYPE_TCX
        && info.attach_type == hook.tcx()
        && info.ifindex == ifindex;
    Ok(is_there.then_some(info.prog_id))
}

/// The attributes of `BPF_PROG_QUERY` for devices.
#[repr(C)]
#[derive(Default)]
struct TcxQueryAttr {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The program and the link of everything that is attached to a device by a link. `ENODEV`: there is no such device.
pub(in crate::dataplane) fn tcx_links(hook: Hook, ifindex: u32) -> io::Result<Vec<(u32, u32)>> {
    let mut found = tcx_programs(hook, ifindex)?;
    found.retain(|(_, link)| *link != 0);
    Ok(found)
}

/// The same of everything that is on the hook, in order. A program that is attached without a link has link number 0.
pub(in crate::dataplane) fn tcx_programs(hook: Hook, ifindex: u32) -> io::Result<Vec<(u32, u32)>> {
    /// `BPF_MPROG_MAX`: the most programs on a hook.
    const MOST: u32 = 64;
    let (mut programs, mut links) = ([0u32; MOST as usize], [0u32; MOST as usize]);
    let mut attr = TcxQueryAttr {
        ifindex,
        attach_type: hook.tcx(),
        prog_ids: programs.as_mut_ptr().addr() as u64,
        count: MOST,
        link_ids: links.as_mut_ptr().addr() as u64,
        ..TcxQueryAttr::default()
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        // Linux before 6.6 has no such hook.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
        result => drop(result?),
    }
    let found = programs.into_iter().zip(links);
    Ok(found.take(attr.count as usize).collect())
}
