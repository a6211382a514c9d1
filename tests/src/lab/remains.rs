//! What a lab leaves, and how it is removed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use super::cgroup;

const PREFIX: &str = "yurt-lab-";

static LABS_OF_THIS_PROCESS: AtomicU32 = AtomicU32::new(0);

/// The two things of a lab that have a name outside of its processes: a cgroup and a directory.
#[derive(Clone, Debug)]
pub struct Remains {
    cgroup: PathBuf,
    dir: PathBuf,
}

impl Remains {
    /// The two things of a lab that is being made. Their name tells which process they belong to.
    pub(super) fn of_new_lab() -> Result<Self> {
        let pid = process::id();
        let start = start_time(pid).context("read the start time of this process")?;
        let number = LABS_OF_THIS_PROCESS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{pid}-{start}-{number}");
        let cgroup = cgroup::mount_point()?.join(&name);
        Self::new(cgroup, std::env::temp_dir().join(name))
    }

    /// Checks that both paths can only belong to a lab.
    pub fn new(cgroup: PathBuf, dir: PathBuf) -> Result<Self> {
        for path in [&cgroup, &dir] {
            if owner(path).is_none() {
                bail!("{} does not belong to a lab", path.display());
            }
        }
        Ok(Self { cgroup, dir })
    }

    /// The lab's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The lab's directory, which is filled only in the lab's own mount namespace.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills the lab's processes and removes everything. What is already gone is no error.
    pub fn remove(&self) -> Result<()> {
        let cgroup = cgroup::remove(&self.cgroup);
        detach_mounts(&self.dir)?;
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove {}", self.dir.display()))?;
            }
            _ => {}
        }
        cgroup
    }

    /// Removes the labs whose process is gone, for whatever reason.
    pub(super) fn remove_stale() -> Result<()> {
        let mut names = BTreeSet::new();
        let cgroups = cgroup::mount_point()?;
        let dirs = std::env::temp_dir();
        for parent in [&cgroups, &dirs] {
            for entry in fs::read_dir(parent)?.flatten() {
                if let Some((pid, start)) = owner(&entry.path())
                    && start_time(pid) != Some(start)
                {
                    names.insert(entry.file_name());
                }
            }
        }
        for name in names {
            Self::new(cgroups.join(&name), dirs.join(&name))?.remove()?;
        }
        Ok(())
    }
}

/// The process and its start time, in the name of a lab's path.
fn owner(path: &Path) -> Option<(u32, u64)> {
    let mut parts = path
        .file_name()?
        .to_str()?
        .strip_prefix(PREFIX)?
        .splitn(3, '-');
    let pid = parts.next()?.parse().ok()?;
    let start = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    Some((pid, start))
}

/// The start time of a process in ticks since boot; `None` if there is no such process. Together with the pid it
/// identifies a process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; field 22 counts from 1 and includes pid and name.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// Detaches every mount at or below `dir` in this thread's mount namespace.
fn detach_mounts(dir: &Path) -> Result<()> {
    for point in mounts_below("/proc/thread-self/mountinfo", dir)?
        .iter()
        .rev()
    {
        let mut path = point.as_os_str().as_bytes().to_vec();
        path.push(0);
        // SAFETY: `path` ends in a zero byte and outlives the call.
        if unsafe { libc::umount2(path.as_ptr().cast(), libc::MNT_DETACH) } != 0 {
            let error = io::Error::last_os_error();
            // Another party was faster.
            if ![Some(libc::EINVAL), Some(libc::ENOENT)].contains(&error.raw_os_error()) {
                return Err(error).with_context(|| format!("unmount {}", point.display()));
            }
        }
    }
    Ok(())
}

fn mounts_below(mountinfo: &str, dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_to_string(mountinfo)
        .with_context(|| format!("read {mountinfo}"))?
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4).map(PathBuf::from))
        .filter(|point| point.starts_with(dir))
        .collect())
}

/// A list of everything that a lab has made, to look for it after the lab is gone.
#[derive(Clone, Debug)]
pub struct Inventory {
    pub(super) remains: Remains,
    pub(super) processes: BTreeSet<u32>,
    pub(super) namespaces: BTreeSet<u64>,
}

impl Inventory {
    /// How many processes were started.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// How many network namespaces were made.
    pub fn namespaces(&self) -> usize {
        self.namespaces.len()
    }

    /// What can still be found, as text; empty if the lab left nothing.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for path in [self.remains.cgroup(), self.remains.dir()] {
            if path.exists() {
                found.push(path.display().to_string());
            }
        }
        for mountinfo in ["/proc/1/mountinfo", "/proc/thread-self/mountinfo"] {
            for point in mounts_below(mountinfo, self.remains.dir())? {
                found.push(format!("mount {} in {mountinfo}", point.display()));
            }
        }
        let cgroup = self.remains.cgroup().file_name().unwrap_or_default();
        for process in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            // Processes come and go while we look.
            let membership = fs::read(process.path().join("cgroup")).unwrap_or_default();
            let ours = membership
                .windows(cgroup.len())
                .any(|w| w == cgroup.as_bytes());
            // Pids are reused, but those of our children not before we have reaped them. A dead process that is not our
            // child waits for its own parent.
            let (state, parent) = state_and_parent(pid).unwrap_or_default();
            let is_child = parent == process::id();
            if (ours && (is_child || state != 'Z')) || (is_child && self.processes.contains(&pid)) {
                found.push(format!("process {pid}"));
            }
            for holder in ["ns", "fd", "task"] {
                self.find_namespaces(&process.path().join(holder), &mut found);
            }
        }
        Ok(found)
    }

    fn find_namespaces(&self, dir: &Path, found: &mut Vec<String>) {
        let is_task = dir.ends_with("task");
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let link = if is_task {
                entry.path().join("ns/net")
            } else {
                entry.path()
            };
            let target = fs::read_link(&link).unwrap_or_default();
            let inode = target
                .to_str()
                .and_then(|t| t.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
            if inode.is_some_and(|inode: u64| self.namespaces.contains(&inode)) {
                found.push(format!(
                    "namespace {} by {}",
                    target.display(),
                    link.display()
                ));
            }
        }
    }
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_with_a_labs_name_are_ever_removed() {
        let lab = || PathBuf::from("/tmp/yurt-lab-12-3456-0");
        assert_eq!(owner(&lab()), Some((12, 3456)));
        assert!(Remains::new(lab(), lab()).is_ok());
        for other in [
            "/tmp",
            "/",
            "/tmp/yurt-lab-",
            "/tmp/yurt-lab-1-2",
            "/tmp/yurt-lab-1-2-0/x",
        ] {
            assert!(
                Remains::new(lab(), PathBuf::from(other)).is_err(),
                "{other}"
            );
        }
    }

    #[test]
    fn a_process_is_known_by_its_start_time() {
        assert!(start_time(process::id()).is_some());
        assert_eq!(start_time(u32::MAX), None);
        let (_, parent) = state_and_parent(process::id()).unwrap();
        assert_eq!(parent, std::os::unix::process::parent_id());
    }
}
