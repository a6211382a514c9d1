//! The proof that a process in another cgroup is served: not that programs are loaded, but that they act.
//!
//! A child of ours moves into a cgroup of its own, below the one that the programs are attached to, and connects a UDP
//! socket to the probe address; no packet is sent. Where the socket really is connected to is read from `/proc/net`,
//! because `getpeername` would show the probe address again.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::plan::{SELF_TEST_V4, SELF_TEST_V6};

const PATIENCE: Duration = Duration::from_secs(5);

/// Why the self-test failed.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The cgroup for the child.
    #[error("{operation} {}", path.display())]
    Cgroup {
        /// What was tried.
        operation: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The child.
    #[error("run the self-test's child")]
    Child(#[source] io::Error),
    /// It ran, and found that it is not served.
    #[error("{found}")]
    NotServed {
        /// What the child saw.
        found: String,
    },
}

/// Runs the child in a cgroup of its own below `cgroup`.
pub async fn run(cgroup: &Path) -> Result<(), SelfTestError> {
    let dir = cgroup.join(format!("yurt-net-selftest-{}", std::process::id()));
    let at = |operation| {
        let path = dir.clone();
        move |source| SelfTestError::Cgroup {
            operation,
            path,
            source,
        }
    };
    match fs::create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(at("create cgroup")(error));
        }
        _ => {}
    }
    let result = run_in(&dir).await;
    // The child is gone, and so is its claim on the directory; an emptied cgroup can still be busy for a moment.
    for _ in 0..50 {
        if fs::remove_dir(&dir).is_ok() {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    result.and(fs::remove_dir(&dir).map_err(at("remove cgroup")))
}

async fn run_in(dir: &Path) -> Result<(), SelfTestError> {
    let child = Command::new("/proc/self/exe")
        .arg("probe")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(SelfTestError::Child)?;
    // It waits for the end of its input, which comes when it is in its cgroup.
    let pid = child.id().map(|pid| pid.to_string()).unwrap_or_default();
    let procs = dir.join("cgroup.procs");
    fs::write(&procs, pid).map_err(|source| SelfTestError::Cgroup {
        operation: "move the self-test's child to",
        path: procs.clone(),
        source,
    })?;
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output
        .unwrap_or_else(|elapsed| Err(io::Error::from(elapsed)))
        .map_err(SelfTestError::Child)?;
    if output.status.success() {
        return Ok(());
    }
    let found = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(SelfTestError::NotServed { found })
}

/// What the child does; it fails with what it found.
pub fn probe() -> Result<(), String> {
    // `wait_with_output` closes our input once we have been moved.
    io::copy(&mut io::stdin(), &mut io::sink()).map_err(|error| error.to_string())?;
    // Without an address a connect fails before any program runs. The other family may serve all the same.
    let families = [
        (SELF_TEST_V4, "0.0.0.0:0", "/proc/net/udp"),
        (SELF_TEST_V6, "[::]:0", "/proc/net/udp6"),
    ];
    let mut has_any = false;
    for (probe, bind, table) in families {
        if has_loopback(probe) {
            has_any = true;
            dial(probe, bind, table)?;
        }
    }
    match has_any {
        true => Ok(()),
        false => Err(
            "this node has neither 127.0.0.1 nor ::1, which the self-test needs one of: set the device lo up"
                .to_owned(),
        ),
    }
}

/// Whether this node has the loopback address of a family.
fn has_loopback(family: SocketAddr) -> bool {
    let own: IpAddr = match family {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    UdpSocket::bind((own, 0)).is_ok()
}

fn dial(probe: SocketAddr, bind: &str, table: &str) -> Result<(), String> {
    let socket = UdpSocket::bind(bind).map_err(|error| format!("bind {bind}: {error}"))?;
    // An untranslated connect may succeed, or fail because there is no route.
    let connected = socket.connect(probe);
    let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))
        .map_err(|error| format!("stat a socket: {error}"))?
        .st_ino();
    let sockets = fs::read_to_string(table).map_err(|error| format!("read {table}: {error}"))?;
    let is_translated = remote_of(&sockets, inode).is_some_and(|address| address.is_loopback());
    if is_translated {
        return Ok(());
    }
    let outcome = match connected {
        Ok(()) => "was not translated".to_owned(),
        Err(error) => format!("failed: {error}"),
    };
    Err(format!(
        "a UDP connect to the probe address {probe} from another cgroup {outcome}"
    ))
}

/// The remote address of a socket in `/proc/net/udp` or `udp6`: `sl local rem st tx:rx tr:when retrnsmt uid timeout
/// inode`.
fn remote_of(sockets: &str, inode: u64) -> Option<IpAddr> {
    let inode = inode.to_string();
    let line = sockets.lines().skip(1).find(|line| {
        line.split_whitespace()
            .nth(9)
            .is_some_and(|field| field == inode)
    })?;
    let (address, _) = line.split_whitespace().nth(2)?.split_once(':')?;
    // Words of four bytes, each printed as a number of this machine's byte order.
    let words: Vec<u8> = (0..address.len() / 8)
        .filter_map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok())
        .flat_map(u32::to_ne_bytes)
        .collect();
    match words.len() {
        4 => <[u8; 4]>::try_from(words).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(words).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remote_address_is_read_from_the_line_of_the_socket() {
        let udp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                   7: 0100007F:A1B2 080000C0:0009 01 00000000:00000000 00:00000000 00000000     0        0 41 2 0 0\n\
                   8: 0100007F:A1B3 0100007F:0009 01 00000000:00000000 00:00000000 00000000     0        0 42 2 0 0\n";
        assert_eq!(remote_of(udp, 42), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(remote_of(udp, 41), Some("192.0.0.8".parse().unwrap()));
        assert_eq!(remote_of(udp, 43), None);
        let udp6 = "header\n9: 0:1 00000000000000000000000001000000:0009 01 a b c 0 0 44 2\n";
        assert_eq!(remote_of(udp6, 44), Some("::1".parse().unwrap()));
    }
}
