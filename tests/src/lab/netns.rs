//! A network namespace that lives as long as somebody holds its file descriptor.
//!
//! A namespace belongs to a thread, so everything inside one happens on a thread of its own or in a child process.
//! Nothing is mounted under `/run/netns`: when the process ends, however it ends, the kernel removes the namespace and
//! all its devices.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::process::Stdio;
use std::thread;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;

/// Settings for every namespace. Addresses are usable at once (no duplicate detection), router advertisements are
/// ignored, ICMP errors have no rate limit.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
];

const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    file: File,
    inode: u64,
}

impl Netns {
    /// A namespace that does not forward packets.
    pub fn host() -> Result<Self> {
        Self::with_sysctls(&[])
    }

    /// A namespace that forwards between its devices.
    pub fn router() -> Result<Self> {
        Self::with_sysctls(FORWARDING)
    }

    fn with_sysctls(extra: &'static [(&str, &str)]) -> Result<Self> {
        thread::spawn(move || {
            // SAFETY: no pointers; affects this thread alone, which ends right after.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error()).context("make a network namespace");
            }
            for (name, value) in SYSCTLS.iter().chain(extra) {
                fs::write(format!("/proc/sys/{name}"), value)
                    .with_context(|| format!("set sysctl {name}"))?;
            }
            let file = File::open("/proc/thread-self/ns/net").context("open the namespace")?;
            let inode = file.metadata().context("stat the namespace")?.ino();
            Ok(Self { file, inode })
        })
        .join()
        .map_err(|_panic| anyhow!("the thread that makes a namespace panicked"))?
    }

    /// The namespace's number, as in `net:[4026531840]`.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// A path by which other processes can open the namespace while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `f` on a thread inside the namespace and returns what it returns.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(self.file.as_raw_fd()).context("enter a network namespace")?;
                    Ok(f())
                })
                .join()
                .map_err(|_panic| anyhow!("code in a network namespace panicked"))?
        })
    }

    /// Runs a batch of `ip` commands inside the namespace; the first one that fails ends it.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let fd = self.file.as_raw_fd();
        // SAFETY: setns is a plain system call, and `self` keeps the descriptor open past spawn.
        unsafe { command.pre_exec(move || enter(fd)) };
        let mut child = command
            .spawn()
            .context("run `ip` (Debian package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(batch.as_bytes())
                .context("write to `ip -batch`")?;
        }
        let output = child.wait_with_output().context("wait for `ip`")?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("ip -batch: {}\nin:\n{batch}", stderr.trim());
        }
        Ok(())
    }

    /// Makes a command run inside the namespace. It must be spawned while this value lives.
    pub fn enter(&self, command: &mut Command) {
        let fd = self.file.as_raw_fd();
        // SAFETY: setns is a plain system call.
        unsafe { command.pre_exec(move || enter(fd)) };
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Moves the calling thread into a network namespace. Async-signal-safe.
pub(super) fn enter(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers; a bad descriptor is an error.
    if unsafe { libc::setns(fd, libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
