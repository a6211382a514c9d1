//! The part of the cgroup v2 tree that a lab owns.
//!
//! A cgroup is the only thing of a lab that the kernel does not remove with the process that made it. So it is named
//! after that process, and four parties remove it: `Drop`, the signal thread, the reaper process, and the next lab.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

const EMPTY_WITHIN: Duration = Duration::from_secs(60);

/// The mount point of the cgroup v2 hierarchy, wherever this machine keeps it.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").context("read mounts")?;
    mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 is mounted; `mount -t cgroup2 none /sys/fs/cgroup` makes one")
}

/// Kills every process below `path`, then removes `path` and everything below it. A missing cgroup is no error.
pub fn remove(path: &Path) -> Result<()> {
    let kill = path.join("cgroup.kill");
    let kills = kill.exists();
    if kills {
        match fs::write(kill, "1") {
            Err(e) if is_gone(&e) && !path.exists() => return Ok(()),
            other => other.with_context(|| format!("kill the processes of {}", path.display()))?,
        }
    }
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        if !kills {
            kill_each(path);
        }
        match remove_children_first(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => bail!("remove cgroup {}: {e}", path.display()),
        }
    }
}

/// Does what `cgroup.kill` does from Linux 5.14 on. Processes that are missed are found in the next round, as long as
/// something cannot be removed.
fn kill_each(path: &Path) {
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for process in processes.lines().filter_map(|line| line.parse().ok()) {
        // SAFETY: no pointers; the process is the lab's, for its cgroup is.
        unsafe { libc::kill(process, libc::SIGKILL) };
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_each(&entry.path());
        }
    }
}

fn remove_children_first(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(e) if is_gone(&e) => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_children_first(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if !is_gone(&e) => Err(e),
        _ => Ok(()),
    }
}

/// Whether another party was faster: the cgroup is gone, or its files no longer work.
fn is_gone(e: &io::Error) -> bool {
    [Some(libc::ENOENT), Some(libc::ENODEV)].contains(&e.raw_os_error())
}
