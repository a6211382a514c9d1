//! Finds the cgroup2 hierarchy of a machine, and tells how much of it an agent there serves.
//!
//! A machine may have one hierarchy at `/sys/fs/cgroup`, or both versions, with the second at `/sys/fs/cgroup/unified`.
//! A container may see only a part of it. Sources: `cgroups(7)`, `cgroup_namespaces(7)`, `proc_pid_mountinfo(5)`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::filesystem::Kind;

/// A machine that is not set up for the agent, or a flag that is wrong there.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// `/proc` cannot be read.
    #[error("read {path}")]
    Proc {
        /// The file.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no hierarchy to attach to.
    #[error(
        "no cgroup2 file system is mounted: mount one (mount -t cgroup2 none DIR) and pass --cgroup DIR"
    )]
    NoCgroup,
    /// The flag names a directory that cannot be opened.
    #[error("--cgroup {} cannot be looked at ({hint})", path.display())]
    Unreadable {
        /// As told.
        path: PathBuf,
        /// What to do.
        hint: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The flag names something else: a hierarchy of version 1, or the directory in which all of them are mounted.
    #[error("--cgroup {} is not of the cgroup2 hierarchy: {hint}", path.display())]
    NotCgroup2 {
        /// As told.
        path: PathBuf,
        /// What to do.
        hint: String,
    },
    /// Programs that are attached there would serve only the agent.
    #[error(
        "{} shows only this process's own part of the cgroup hierarchy (a private cgroup namespace), and the programs \
         would serve nobody else: mount the host's /sys/fs/cgroup into the container; or pass --cgroup {} if its \
         processes are all that is to be served", mount_point.display(), mount_point.display()
    )]
    PrivateCgroup {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
}

/// A directory of the cgroup2 hierarchy: processes in it and below it are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// The directory.
    pub path: PathBuf,
    /// Whether it is the root of the whole hierarchy, so that every process of the machine is served.
    pub is_root: bool,
}

impl Cgroup {
    fn at(path: PathBuf) -> Self {
        // Every cgroup except the root has this file, in whatever namespace one looks.
        let is_root = !path.join("cgroup.events").exists();
        Self { path, is_root }
    }
}

/// The cgroup to attach to: the one that the flag names; otherwise what is mounted of the hierarchy, its root if that
/// is visible.
pub fn cgroup(told: Option<&Path>) -> Result<Cgroup, CgroupError> {
    let proc = |path| fs::read(path).map_err(|source| CgroupError::Proc { path, source });
    let mounts = proc("/proc/self/mountinfo").map(|text| cgroup_mounts(&text))?;
    let is_cgroup2 = |mount: &Mount| Kind::Cgroup2.is_at(&mount.point).unwrap_or_default();
    if let Some(path) = told {
        let hint = || match mounts.iter().find(|mount| is_cgroup2(mount)) {
            Some(mount) => format!("pass --cgroup {}", mount.point.display()),
            None => CgroupError::NoCgroup.to_string(),
        };
        return match Kind::Cgroup2.is_at(path) {
            Ok(true) => Ok(Cgroup::at(path.to_owned())),
            Ok(false) => Err(CgroupError::NotCgroup2 {
                path: path.to_owned(),
                hint: hint(),
            }),
            Err(source) => Err(CgroupError::Unreadable {
                path: path.to_owned(),
                hint: hint(),
                source,
            }),
        };
    }
    let visible: Vec<&Mount> = mounts.iter().filter(|mount| is_cgroup2(mount)).collect();
    let own = proc("/proc/self/cgroup").map(|text| own_cgroup(&text))?;
    choose(&visible, own.as_deref(), |point| {
        Cgroup::at(point.to_owned()).is_root
    })
}

/// The mount that shows most of the hierarchy.
fn choose(
    visible: &[&Mount],
    own: Option<&Path>,
    is_root: impl Fn(&Path) -> bool,
) -> Result<Cgroup, CgroupError> {
    // The first one of several that show the same.
    let best = visible
        .iter()
        .min_by_key(|mount| (!is_root(&mount.point), mount.depth()))
        .ok_or(CgroupError::NoCgroup)?;
    let is_root = is_root(&best.point);
    let path = best.point.clone();
    // A node may itself be in a cgroup namespace (kind's nodes are), and all its Pods are below what it sees as the
    // root. If no process but this one is visible, it is a container without the host's mount.
    if !is_root && own == Some(&best.root) {
        return Err(CgroupError::PrivateCgroup { mount_point: path });
    }
    Ok(Cgroup { path, is_root })
}

/// A mount of the cgroup2 hierarchy, as `/proc/self/mountinfo` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The cgroup at this mount, as seen from this process's cgroup namespace: `/../..` is above it.
    pub root: PathBuf,
    /// The mount point.
    pub point: PathBuf,
}

impl Mount {
    /// How far below the namespace's root it begins: the less, the more of the hierarchy it shows.
    fn depth(&self) -> isize {
        let parts = self.root.iter().skip(1);
        parts.map(|part| if part == ".." { -1 } else { 1 }).sum()
    }
}

/// The cgroup2 mounts of a `/proc/self/mountinfo`: `36 35 0:30 ROOT MOUNT-POINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS`.
///
/// Of several mounts at one place only the last one is visible. Paths may have any bytes: a mount of another program
/// must not keep the agent from its own.
pub fn cgroup_mounts(mountinfo: &[u8]) -> Vec<Mount> {
    let mut found: Vec<Mount> = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            continue;
        };
        let kind = fields.skip_while(|field| *field != b"-").nth(1);
        if kind != Some(b"cgroup2".as_slice()) {
            continue;
        }
        let (root, point) = (unescape(root), unescape(point));
        found.retain(|mount| mount.point != point);
        found.push(Mount { root, point });
    }
    found
}

/// The path of this process in the hierarchy, from `/proc/self/cgroup`: `0::PATH`.
fn own_cgroup(text: &[u8]) -> Option<PathBuf> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let path = lines.find_map(|line| line.strip_prefix(b"0::"))?;
    Some(PathBuf::from(OsString::from_vec(path.to_vec())))
}

/// Undoes the kernel's escapes: it writes blanks and backslashes in paths as `\040`.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let octal = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &rest[4..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mountinfo: &[u8], own: &str, roots: &[&str]) -> Result<(PathBuf, bool), CgroupError> {
        let mounts = cgroup_mounts(mountinfo);
        let mounts: Vec<&Mount> = mounts.iter().collect();
        let is_root = |point: &Path| roots.iter().any(|root| point == Path::new(root));
        let found = choose(&mounts, Some(Path::new(own)), is_root)?;
        Ok((found.path, found.is_root))
    }

    #[test]
    fn the_root_of_the_hierarchy_is_found_beside_partial_mounts() {
        let mounts = b"30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 1 0:27 / /mnt/caf\xe9 rw - ext4 /dev/sda1 rw\n\
                      41 30 0:40 /kubepods/x /mnt/part rw - cgroup2 cgroup2 rw\n\
                      42 30 0:40 / /sys/fs/cgroup/unified\\040two rw shared:9 - cgroup2 cgroup2 rw\n";
        let unified = "/sys/fs/cgroup/unified two";
        let expected = (PathBuf::from(unified), true);
        assert_eq!(found(mounts, "/kubepods/x", &[unified]).unwrap(), expected);
        assert!(matches!(found(b"", "/", &[]), Err(CgroupError::NoCgroup)));
    }

    #[test]
    fn a_node_that_lives_in_a_cgroup_namespace_is_served_below_what_it_sees() {
        // A privileged Pod there: its own cgroup is below the node's root, which is not the hierarchy's.
        let node = b"42 30 0:40 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let expected = (PathBuf::from("/sys/fs/cgroup"), false);
        assert_eq!(found(node, "/kubelet/kubepods/x", &[]).unwrap(), expected);
        // A Pod with a cgroup namespace of its own, over whose mount the node's is mounted.
        let pod = b"42 30 0:40 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                    43 42 0:40 /../../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                    44 30 0:40 /../x /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found(pod, "/", &[]).unwrap(), expected);
    }

    #[test]
    fn a_container_that_sees_only_itself_is_refused_with_the_remedy() {
        let alone = b"42 30 0:40 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let error = found(alone, "/", &[]).unwrap_err().to_string();
        assert!(error.contains("mount the host's /sys/fs/cgroup"), "{error}");
        // The same view, from the machine's real root.
        assert!(found(alone, "/", &["/sys/fs/cgroup"]).unwrap().1);
    }

    #[test]
    fn a_flag_that_names_another_file_system_says_what_to_give() {
        let error = cgroup(Some(Path::new("/proc"))).unwrap_err();
        assert!(matches!(error, CgroupError::NotCgroup2 { .. }));
        let error = error.to_string();
        assert!(
            error.contains("/proc is not of the cgroup2 hierarchy: "),
            "{error}"
        );
        assert!(error.contains("--cgroup "), "{error}");
        let error = cgroup(Some(Path::new("/no/such/directory")))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("--cgroup /no/such/directory cannot be"),
            "{error}"
        );
    }

    #[test]
    fn the_own_cgroup_is_the_line_of_version_2() {
        let text = b"12:memory:/x\n1:name=systemd:/y\n0::/kubepods/z\n";
        assert_eq!(own_cgroup(text), Some(PathBuf::from("/kubepods/z")));
        assert_eq!(own_cgroup(b"1:cpu:/\n"), None);
    }
}
