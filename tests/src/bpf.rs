//! The few `bpf(2)` calls that tests and bench make themselves, beside those of the agent.

use std::ffi::CString;
use std::io;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;

/// A command with the structure of its attributes; returns the result.
pub(crate) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: callers pass the structure of their command; what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// Like [`bpf`], for the commands that return a descriptor.
pub(crate) fn open<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The head of the attributes, up to the last one that is used.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Loads a program; `attach_type` is 0 if its type has none.
pub(crate) fn load(prog_type: u32, attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        expected_attach_type: attach_type,
        ..LoadAttr::default()
    };
    open(BPF_PROG_LOAD, &mut attr)
}

/// Opens what is pinned at a path.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        fd: u32,
        flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attr = Attr {
        pathname: name.as_ptr().addr() as u64,
        fd: 0,
        flags: 0,
    };
    open(BPF_OBJ_GET, &mut attr)
}
