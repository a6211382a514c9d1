//! The few `bpf(2)` calls with which tests look at pins, and change them behind the agent's back.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;

/// `union bpf_attr`, as words: every command here wants 32-bit pairs and 64-bit pointers only.
type Attr = [u64; 8];

fn bpf(command: libc::c_long, mut attr: Attr) -> io::Result<i32> {
    // SAFETY: callers keep what the attributes point to alive; the rest of the union is zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attr.as_mut_ptr(),
            size_of_val(&attr),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn pair(low: u32, high: u32) -> u64 {
    let [a, b, c, d] = low.to_ne_bytes();
    let [e, f, g, h] = high.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn fd_of(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just opened it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Opens a pin.
pub(crate) fn get(path: &Path) -> Result<OwnedFd> {
    let name = c_path(path)?;
    let fd = bpf(OBJ_GET, [name.as_ptr().addr() as u64, 0, 0, 0, 0, 0, 0, 0])
        .with_context(|| format!("open {}", path.display()))?;
    Ok(owned(fd))
}

/// Pins a new array map with one entry, somebody else's.
pub(crate) fn pin_foreign_map(path: &Path) -> Result<()> {
    const ARRAY: u32 = 2;
    let map = owned(bpf(
        MAP_CREATE,
        [pair(ARRAY, 4), pair(4, 1), 0, 0, 0, 0, 0, 0],
    )?);
    pin(&map, path)
}

/// Pins an object.
pub(crate) fn pin(object: &OwnedFd, path: &Path) -> Result<()> {
    let name = c_path(path)?;
    let (name, object) = (name.as_ptr().addr() as u64, pair(fd_of(object), 0));
    bpf(OBJ_PIN, [name, object, 0, 0, 0, 0, 0, 0])
        .with_context(|| format!("pin {}", path.display()))?;
    Ok(())
}

/// Loads a program of a type (`BPF_PROG_TYPE_*`).
pub(crate) fn load(kind: u32, instructions: &[u64]) -> Result<OwnedFd> {
    let count = u32::try_from(instructions.len())?;
    let license = c"GPL".as_ptr().addr() as u64;
    let instructions = instructions.as_ptr().addr() as u64;
    let attr = [pair(kind, count), instructions, license, 0, 0, 0, 0, 0];
    Ok(owned(bpf(PROG_LOAD, attr).context("load a program")?))
}

/// Attaches a program to the ingress of a device of the caller's namespace, after all others.
pub(crate) fn attach_tcx(program: &OwnedFd, ifindex: u32) -> Result<OwnedFd> {
    const TCX_INGRESS: u32 = 46;
    let attr = [
        pair(fd_of(program), ifindex),
        pair(TCX_INGRESS, 0),
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    Ok(owned(bpf(LINK_CREATE, attr).context("attach a program")?))
}

/// Takes a link off what it is on.
pub(crate) fn detach(link: &OwnedFd) -> Result<()> {
    let attr = [pair(fd_of(link), 0), 0, 0, 0, 0, 0, 0, 0];
    bpf(LINK_DETACH, attr).context("detach a link")?;
    Ok(())
}

/// Removes an entry.
pub(crate) fn delete(map: &OwnedFd, key: &[u8]) -> Result<()> {
    let attr = [
        pair(fd_of(map), 0),
        key.as_ptr().addr() as u64,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    bpf(MAP_DELETE_ELEM, attr).context("delete an entry")?;
    Ok(())
}

/// Overwrites an entry.
pub(crate) fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> Result<()> {
    let attr = [
        pair(fd_of(map), 0),
        key.as_ptr().addr() as u64,
        value.as_ptr().addr() as u64,
        0,
        0,
        0,
        0,
        0,
    ];
    bpf(MAP_UPDATE_ELEM, attr).context("write an entry")?;
    Ok(())
}

/// Reads an entry of 8 bytes; `None` where there is none.
pub(crate) fn lookup(map: &OwnedFd, key: &[u8]) -> Option<[u8; 8]> {
    let mut value = [0; 8];
    let attr = [
        pair(fd_of(map), 0),
        key.as_ptr().addr() as u64,
        value.as_mut_ptr().addr() as u64,
        0,
        0,
        0,
        0,
        0,
    ];
    bpf(MAP_LOOKUP_ELEM, attr).ok().map(|_| value)
}

/// Every pin below a directory, by path relative to it, with the identity of what is pinned.
pub(crate) fn pins(dir: &Path) -> Result<BTreeMap<String, u32>> {
    let mut pins = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(dir)?.display().to_string();
            pins.insert(name, id(&get(&path)?)?);
        }
    }
    Ok(pins)
}

/// The kernel's number of a map or a link: the second word of either's description.
fn id(object: &OwnedFd) -> Result<u32> {
    let mut info = [0u32; 2];
    let length = u32::try_from(size_of_val(&info))?;
    let attr = [
        pair(fd_of(object), length),
        info.as_mut_ptr().addr() as u64,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    bpf(OBJ_GET_INFO_BY_FD, attr).context("describe a pin")?;
    Ok(info[1])
}

/// The key of an IPv4 frontend, as the map has it.
pub(crate) const fn frontend4(address: [u8; 4], port: u16, protocol: u8) -> [u8; 8] {
    let ([a, b, c, d], [high, low]) = (address, port.to_be_bytes());
    [a, b, c, d, high, low, protocol, 0]
}
