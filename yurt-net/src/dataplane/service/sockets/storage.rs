//! Reads what our programs stored with sockets of other processes.
//!
//! A socket storage is looked up by the descriptor of a socket. So each socket is borrowed for one lookup from a
//! process that has it open (`/proc/<pid>/fd`, `pidfd_getfd(2)`, Linux 5.6). The cookie proves that it is the right
//! socket. A socket that no process has open, or that may not be borrowed, is not found.
#![expect(
    unsafe_code,
    reason = "pidfd_open(2) and pidfd_getfd(2), which the standard library lacks"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use yurt_ebpf::abi::UdpPeers;

use crate::dataplane::sys;
use crate::host::netns;

/// The wanted sockets, by inode: cookie, and inode of the network namespace.
pub(super) type Wanted = BTreeMap<u32, (u64, u64)>;

/// The values of a storage for these sockets, by cookie, and the last error. Costs a `readlink` for every open file of
/// the processes in the namespaces of the sockets. Other processes are searched only for sockets that are not found
/// there.
pub(super) fn values(
    map: BorrowedFd<'_>,
    mut wanted: Wanted,
) -> io::Result<(BTreeMap<u64, UdpPeers>, io::Result<()>)> {
    let (mut found, mut result) = (BTreeMap::new(), Ok(()));
    if wanted.is_empty() {
        return Ok((found, result));
    }
    let namespaces: BTreeSet<u64> = wanted.values().map(|(_, netns)| *netns).collect();
    let is_near = |process: &Path| {
        let netns = fs::metadata(process.join("ns/net"));
        netns.is_ok_and(|netns| namespaces.contains(&netns.st_ino()))
    };
    let processes = fs::read_dir("/proc")?.flatten().filter_map(|process| {
        let pid = process.file_name().to_str()?.parse::<i32>().ok()?;
        Some((pid, process.path()))
    });
    let (near, far): (Vec<_>, Vec<_>) = processes.partition(|(_, path)| is_near(path));
    for (pid, path) in near.into_iter().chain(far) {
        if wanted.is_empty() {
            break;
        }
        let seen = values_in(map, pid, &path, &mut wanted, &mut found);
        if seen.is_err() {
            result = seen;
        }
    }
    Ok((found, result))
}

/// The values that are found in one process.
fn values_in(
    map: BorrowedFd<'_>,
    pid: i32,
    path: &Path,
    wanted: &mut Wanted,
    found: &mut BTreeMap<u64, UdpPeers>,
) -> io::Result<()> {
    // The process has ended meanwhile.
    let Ok(files) = fs::read_dir(path.join("fd")) else {
        return Ok(());
    };
    let (mut pidfd, mut result) = (None, Ok(()));
    for file in files.flatten() {
        let name = file.file_name();
        let inode = fs::read_link(file.path())
            .ok()
            .and_then(|link| inode(link.to_str()?));
        let (Some(inode), Some(fd)) = (inode, name.to_str().and_then(|fd| fd.parse().ok())) else {
            continue;
        };
        let Some((cookie, _)) = wanted.get(&inode) else {
            continue;
        };
        match look(map, pid, &mut pidfd, fd) {
            Ok((of, value)) if of == *cookie => {
                found.extend(value.map(|value| (of, value)));
                wanted.remove(&inode);
            }
            // The descriptor was closed meanwhile, or is another socket now.
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => {}
            Err(error) => result = Err(error),
        }
    }
    result
}

/// `socket:[1234]`.
fn inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The cookie of a process's socket, and what is stored with it.
fn look(
    map: BorrowedFd<'_>,
    pid: i32,
    pidfd: &mut Option<OwnedFd>,
    fd: RawFd,
) -> io::Result<(u64, Option<UdpPeers>)> {
    let pidfd = match pidfd {
        Some(pidfd) => pidfd,
        // SAFETY: a call without pointers.
        None => pidfd.insert(owned(unsafe {
            libc::syscall(libc::SYS_pidfd_open, pid, 0)
        })?),
    };
    // SAFETY: as above.
    let socket = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    let cookie = netns::socket_cookie(socket.as_fd(), libc::SO_COOKIE)?;
    let mut value = [UdpPeers::default()];
    let is_there = sys::map_lookup(map, &socket.as_raw_fd(), &mut value)?;
    let [value] = value;
    Ok((cookie, is_there.then_some(value)))
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_has_the_inode_of_one() {
        assert_eq!(inode("socket:[1234]"), Some(1234));
        for other in ["pipe:[1234]", "/dev/null", "socket:[x]", "socket:[12"] {
            assert_eq!(inode(other), None, "{other}");
        }
    }
}
