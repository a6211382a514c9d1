//! The kind of file system that a file is on, and whether it takes writes. The kernel has a number for each kind.
//!
//! The field has another width and sign in each C library; its values are those of `include/uapi/linux/magic.h`.
#![expect(
    unsafe_code,
    reason = "statfs(2) and access(2), which the standard library lacks"
)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `BPF_FS_MAGIC`: pins.
    Bpf,
    /// `CGROUP2_SUPER_MAGIC`: the one hierarchy of version 2, not those of version 1.
    Cgroup2,
    /// `NSFS_MAGIC`: files that stand for namespaces.
    Namespaces,
}

impl Kind {
    const fn magic(self) -> u32 {
        match self {
            Self::Bpf => 0xcafe_4a11,
            Self::Cgroup2 => 0x6367_7270,
            Self::Namespaces => 0x6e73_6673,
        }
    }

    /// Whether `path` is on such a file system, after following links.
    pub fn is_at(self, path: &Path) -> io::Result<bool> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        // SAFETY: plain data that statfs fills.
        let mut stat: libc::statfs = unsafe { mem::zeroed() };
        // SAFETY: a NUL-terminated path and a valid buffer.
        if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.is(&stat))
    }

    /// Whether an open file is on such a file system.
    pub fn holds(self, file: &File) -> io::Result<bool> {
        // SAFETY: plain data that fstatfs fills.
        let mut stat: libc::statfs = unsafe { mem::zeroed() };
        // SAFETY: an open file and a valid buffer.
        if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.is(&stat))
    }

    fn is(self, stat: &libc::statfs) -> bool {
        i128::from(stat.f_type) == i128::from(self.magic())
    }
}

/// Fails if a directory cannot be written to, as far as that can be told without writing: it is absent, something else,
/// read-only or full.
pub fn takes_writes(directory: &Path) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let call = |result| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    if !directory.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    // SAFETY: a NUL-terminated path.
    call(unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) })?;
    // SAFETY: plain data that statvfs fills.
    let mut stat: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: a NUL-terminated path and a valid buffer.
    call(unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) })?;
    // File systems that make inodes on demand report none.
    if stat.f_bfree == 0 || (stat.f_files > 0 && stat.f_ffree == 0) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_writes_and_what_is_absent_or_a_file_does_not() {
        let dir = tempfile::tempdir().unwrap();
        takes_writes(dir.path()).unwrap();
        let kind = |path: &Path| takes_writes(path).unwrap_err().kind();
        assert_eq!(kind(&dir.path().join("absent")), io::ErrorKind::NotFound);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(kind(&file), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn a_namespace_is_on_its_file_system_and_a_directory_is_not() {
        let namespace = Path::new("/proc/self/ns/net");
        assert!(Kind::Namespaces.is_at(namespace).unwrap());
        let file = File::open(namespace).unwrap();
        assert!(Kind::Namespaces.holds(&file).unwrap());
        assert!(!Kind::Cgroup2.holds(&file).unwrap());
        assert!(!Kind::Bpf.is_at(Path::new("/proc")).unwrap());
        assert!(Kind::Bpf.is_at(Path::new("/no/such/path")).is_err());
    }
}
