//! Where cgroups are on a machine.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use super::PlaceArgs;

/// A machine that is not set up for the agent.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `/proc` cannot be read.
    #[error("read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// Nothing to attach to.
    #[error(
        "no cgroup2 file system is mounted: mount one (mount -t cgroup2 none DIR) and pass --cgroup DIR"
    )]
    NoCgroup,
    /// Attached there, the programs would serve nobody but the agent.
    #[error(
        "{} shows only the part {root} of the cgroup hierarchy (a private cgroup namespace), which serves nobody else: \
         mount the host's /sys/fs/cgroup into the container, or pass its path with --cgroup", mount_point.display()
    )]
    PrivateCgroup {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// The part of the hierarchy.
        root: String,
    },
}

/// The cgroup to attach to: as told, else the root of the mounted cgroup2 hierarchy.
pub fn cgroup(place: &PlaceArgs) -> Result<PathBuf, ConfigError> {
    if let Some(path) = &place.cgroup {
        return Ok(path.clone());
    }
    let mounts = fs::read("/proc/self/mountinfo").map_err(ConfigError::Mounts)?;
    let mount_point = find_cgroup(&mounts)?;
    // A mount made inside a private cgroup namespace calls its own part "/" too, but only the hierarchy's
    // real root has no events.
    if mount_point.join("cgroup.events").exists() {
        let root = "of a private cgroup namespace".to_owned();
        return Err(ConfigError::PrivateCgroup { mount_point, root });
    }
    Ok(mount_point)
}

/// Finds the mount in a `/proc/self/mountinfo`: `36 35 0:30 ROOT MOUNT-POINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS`.
///
/// Paths are any bytes: somebody else's mount must not keep the agent from its own.
pub fn find_cgroup(mountinfo: &[u8]) -> Result<PathBuf, ConfigError> {
    let mut partial = None;
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (Some(root), Some(mount_point)) = (fields.next(), fields.next()) else {
            continue;
        };
        let kind = fields.skip_while(|field| *field != b"-").nth(1);
        if kind != Some(b"cgroup2".as_slice()) {
            continue;
        }
        if root == b"/" {
            return Ok(unescape(mount_point));
        }
        partial.get_or_insert_with(|| (unescape(mount_point), unescape(root)));
    }
    Err(match partial {
        Some((mount_point, root)) => ConfigError::PrivateCgroup {
            mount_point,
            root: root.display().to_string(),
        },
        None => ConfigError::NoCgroup,
    })
}

/// The kernel writes blanks and backslashes in paths as `\040`.
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

    #[test]
    fn the_root_of_the_hierarchy_is_found_beside_partial_mounts() {
        let mounts = b"30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 1 0:27 / /mnt/caf\xe9 rw - ext4 /dev/sda1 rw\n\
                      41 30 0:40 /kubepods/x /mnt/part rw - cgroup2 cgroup2 rw\n\
                      42 30 0:40 / /sys/fs/cgroup/unified\\040two rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find_cgroup(mounts).unwrap(),
            PathBuf::from("/sys/fs/cgroup/unified two")
        );
    }

    #[test]
    fn a_private_cgroup_namespace_is_refused_with_the_remedy() {
        let mounts = b"42 30 0:40 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let error = find_cgroup(mounts).unwrap_err().to_string();
        assert!(error.contains("mount the host's /sys/fs/cgroup"), "{error}");
        assert!(matches!(find_cgroup(b""), Err(ConfigError::NoCgroup)));
    }
}
