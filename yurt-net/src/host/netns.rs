//! The network namespaces of this machine: lists them, and runs something inside one.
//!
//! A namespace is found if a process is in it (`/proc/<pid>/ns/net`) or a name is bound to it (`/run/netns`, as
//! container runtimes and iproute2 do); each counts once, by its inode. A namespace that only a file descriptor or a
//! thread keeps is not found. To see those of Pods, the agent must see their processes (`hostPID: true`). Sources:
//! `namespaces(7)`, `setns(2)`.
#![expect(
    unsafe_code,
    reason = "setns(2) and getifaddrs(3), which the standard library lacks"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use crate::host::filesystem::Kind;

/// `SO_NETNS_COOKIE` of `include/uapi/asm-generic/socket.h`, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A network namespace, held open: it lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    inode: u64,
    file: File,
}

impl Netns {
    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace that a file stands for: `/proc/<pid>/ns/net`, or a name in `/run/netns`.
    ///
    /// Fails with `InvalidInput` if the file is no namespace, such as a name whose namespace has gone.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !Kind::Namespaces.holds(&file)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a namespace",
            ));
        }
        let inode = file.metadata()?.st_ino();
        Ok(Self { inode, file })
    }

    /// Its identity: no two namespaces have the same one at the same time. `lsns -t net` prints it.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Its open descriptor, by which the kernel's messages name it.
    pub fn descriptor(&self) -> u32 {
        self.file.as_raw_fd().cast_unsigned()
    }

    /// Moves the calling thread into it. Needs `CAP_SYS_ADMIN`.
    fn enter(&self) -> io::Result<()> {
        // SAFETY: a call without pointers.
        match unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// All namespaces, that of the calling thread first. Those that go away meanwhile are left out.
///
/// Fails if `/proc` cannot be read. Costs one `stat` for each process.
pub fn all() -> io::Result<Vec<Netns>> {
    let mut found = vec![Netns::current()?];
    let mut seen = BTreeSet::from([found[0].inode]);
    let processes = fs::read_dir("/proc")?.flatten();
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let of_processes = processes
        .filter(|entry| entry.file_name().to_str().is_some_and(is_process))
        .map(|entry| entry.path().join("ns/net"));
    // The directory is absent if no name was ever bound.
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for path in of_processes.chain(names.map(|entry| entry.path())) {
        // The inode is read first: opening the namespace of each process would cost more, and most are in the same few.
        let is_known = fs::metadata(&path).is_ok_and(|metadata| seen.contains(&metadata.st_ino()));
        if is_known {
            continue;
        }
        if let Ok(netns) = Netns::open(&path)
            && seen.insert(netns.inode)
        {
            found.push(netns);
        }
    }
    Ok(found)
}

/// The addresses in each namespace except that of the calling thread, as far as they can be read.
pub fn addresses_of_others() -> io::Result<Vec<Vec<IpAddr>>> {
    let namespaces = all()?;
    let visits = inside(&namespaces, |_| addresses())?;
    let others = visits.into_iter().skip(1);
    Ok(others.filter_map(|visit| visit.flatten().ok()).collect())
}

/// Visits each namespace in turn, and returns the results in the same order; a namespace that could not be entered
/// gives an error. This happens on a thread of its own: the caller stays in its namespace, and waits.
///
/// Sockets belong to the namespace in which they were opened, and stay there.
pub fn inside<T: Send>(
    namespaces: &[Netns],
    mut visit: impl FnMut(&Netns) -> T + Send,
) -> io::Result<Vec<io::Result<T>>> {
    std::thread::scope(|scope| {
        let walk = move || {
            let visits = namespaces.iter();
            visits
                .map(|netns| netns.enter().map(|()| visit(netns)))
                .collect()
        };
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let joined = thread.spawn_scoped(scope, walk)?.join();
        joined.map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// The cookie of the calling thread's namespace, which programs get from `bpf_get_netns_cookie`: never reused while the
/// machine is up. `None` on kernels that do not tell it (before 5.14).
pub fn cookie() -> io::Result<Option<u64>> {
    // The socket is not bound: in a namespace whose loopback is down there is no address to bind to.
    // SAFETY: a call without pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    match socket_cookie(socket.as_fd(), SO_NETNS_COOKIE) {
        Ok(cookie) => Ok(Some(cookie)),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A cookie from a socket: its own (`SO_COOKIE`), or that of its namespace (`SO_NETNS_COOKIE`).
pub fn socket_cookie(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: `cookie` and `length` are valid for writes of their sizes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The addresses of the calling thread's namespace, by interface.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `first` is valid for a write.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut next = first;
    // SAFETY: a list that the C library made and that nobody else knows; each entry is valid until it is freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: null, or the address of an interface, as long as its family says.
        addresses.extend(unsafe { address_of(entry.ifa_addr) });
        next = entry.ifa_next;
    }
    // SAFETY: the list from above, once.
    unsafe { libc::freeifaddrs(first) };
    Ok(addresses)
}

/// # Safety
///
/// `address` is null or points to a socket address of the length that its family has.
unsafe fn address_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: as the caller promises.
    let family = i32::from(unsafe { address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: as the caller promises; read without a claim to alignment.
            let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_of_this_namespace_is_found() {
        assert!(addresses().unwrap().contains(&Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn the_own_namespace_is_first_and_each_is_there_once() {
        let all = all().unwrap();
        let own = fs::metadata("/proc/self/ns/net").unwrap().st_ino();
        assert_eq!(all[0].inode(), own);
        let inodes: BTreeSet<u64> = all.iter().map(Netns::inode).collect();
        assert_eq!(inodes.len(), all.len());
    }

    #[test]
    fn what_is_left_of_a_name_is_no_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Netns::open(file.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
