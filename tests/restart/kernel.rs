//! Raw `bpf(2)` on pinned objects: what somebody else than the agent could do to them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

pub(crate) const BPF_MAP_TYPE_HASH: u32 = 1;
pub(crate) const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// `union bpf_attr`, as words; the fields of our commands sit at multiples of four bytes.
type Attr = [u32; 16];

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: the pointers in `attr` are to buffers of our callers that outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn put_u64(attr: &mut Attr, word: usize, value: u64) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    attr[word] = u32::from_le_bytes([a, b, c, d]);
    attr[word + 1] = u32::from_le_bytes([e, f, g, h]);
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pinned map or link, or one that will be pinned.
pub(crate) struct Object(OwnedFd);

impl Object {
    /// Opens a pin.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let mut attr = Attr::default();
        put_u64(&mut attr, 0, path.as_ptr().addr() as u64);
        owned(bpf(BPF_OBJ_GET, &mut attr)?).map(Self)
    }

    /// Makes a map.
    pub(crate) fn new_map(map_type: u32, key: u32, value: u32, entries: u32) -> io::Result<Self> {
        let mut attr = Attr::default();
        attr[..4].copy_from_slice(&[map_type, key, value, entries]);
        owned(bpf(BPF_MAP_CREATE, &mut attr)?).map(Self)
    }

    /// Pins it.
    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let mut attr = Attr::default();
        put_u64(&mut attr, 0, path.as_ptr().addr() as u64);
        attr[2] = self.fd();
        bpf(BPF_OBJ_PIN, &mut attr).map(drop)
    }

    /// Detaches a link's program; the pin stays.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let mut attr = Attr::default();
        attr[0] = self.fd();
        bpf(BPF_LINK_DETACH, &mut attr).map(drop)
    }

    /// Writes an entry; sizes must be the map's.
    pub(crate) fn write(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut attr = self.element(key);
        put_u64(&mut attr, 4, value.as_ptr().addr() as u64);
        bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
    }

    /// Reads an entry of a value of `size` bytes.
    pub(crate) fn read(&self, key: &[u8], size: usize) -> io::Result<Vec<u8>> {
        let mut value = vec![0; size];
        let mut attr = self.element(key);
        put_u64(&mut attr, 4, value.as_mut_ptr().addr() as u64);
        bpf(BPF_MAP_LOOKUP_ELEM, &mut attr)?;
        Ok(value)
    }

    /// Removes an entry.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<()> {
        bpf(BPF_MAP_DELETE_ELEM, &mut self.element(key)).map(drop)
    }

    /// All keys of a hash, sorted.
    pub(crate) fn keys(&self, size: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0; size];
            let mut attr = Attr::default();
            attr[0] = self.fd();
            put_u64(
                &mut attr,
                2,
                keys.last().map_or(0, |key| key.as_ptr().addr() as u64),
            );
            put_u64(&mut attr, 4, next.as_mut_ptr().addr() as u64);
            match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                result => result?,
            };
            keys.push(next);
        }
        keys.sort();
        Ok(keys)
    }

    fn element(&self, key: &[u8]) -> Attr {
        let mut attr = Attr::default();
        attr[0] = self.fd();
        put_u64(&mut attr, 2, key.as_ptr().addr() as u64);
        attr
    }

    fn fd(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }
}
