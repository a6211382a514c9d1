//! The settings that the agent leaves on disk for `yurt-cni`, which sees a new Pod before the agent does, or before it
//! runs.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::guard::{ExtraPolicy, Mode, Policy};
use super::translate;
use crate::error::PathError;
use crate::host::disk::{Directory, Disk as _};

/// More than settings with thousands of namespaces need.
const MOST_BYTES: u64 = 1 << 20;

/// A file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The disk refuses the operation.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The file does not hold settings.
    #[error("{} does not hold settings: start the agent, which writes it anew", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

/// The settings of the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardSettings {
    /// The bpffs where its maps and its program are pinned.
    pub bpffs: PathBuf,
    /// Whether frames with a spoofed sender are dropped for all Pods of the node.
    pub enforce: bool,
    /// The namespaces whose Pods' spoofed frames are dropped in any case.
    #[serde(default)]
    pub enforced_namespaces: BTreeSet<String>,
    /// Name patterns of devices that lead to Pods; empty for every veth device that leads out of the node's namespace.
    #[serde(default)]
    pub devices: Vec<String>,
}

impl GuardSettings {
    /// The settings as the guard's planner takes them.
    pub fn policy(&self) -> Policy {
        Policy {
            mode: match self.enforce {
                true => Mode::Enforce,
                false => Mode::Audit,
            },
            enforced_namespaces: self.enforced_namespaces.clone(),
            devices: self.devices.clone(),
            // Only the agent judges annotations.
            extra: ExtraPolicy::default(),
        }
    }
}

impl Settings for GuardSettings {
    const FILE: &str = "guard.json";
}

impl Settings for translate::Policy {
    const FILE: &str = "translate.json";
}

/// Settings that are a file in the state directory.
pub trait Settings: Serialize + DeserializeOwned + PartialEq {
    /// The file's name.
    const FILE: &str;

    /// Reads the settings that an agent left; `None` if there are none.
    fn load(state_dir: &Path) -> Result<Option<Self>, SettingsError> {
        let path = state_dir.join(Self::FILE);
        let text = match Directory::new(state_dir).read_whole(Self::FILE, MOST_BYTES) {
            Ok(text) => text,
            // If the directory is something else, it holds no file either.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(source) => {
                return Err(PathError::of("read", &path)(source).into());
            }
        };
        let settings = serde_json::from_slice(&text);
        settings
            .map(Some)
            .map_err(|source| SettingsError::Decode { path, source })
    }

    /// Writes these settings for the plugin, or removes the file. An equal file is left as it is.
    fn leave(settings: Option<&Self>, state_dir: &Path) -> Result<(), SettingsError> {
        // A file that cannot be read is written anew.
        if Self::load(state_dir).is_ok_and(|found| found.as_ref() == settings) {
            return Ok(());
        }
        let mut directory = Directory::new(state_dir);
        let new = format!("{}.new", Self::FILE);
        let io = |operation, name: &str| {
            let error = PathError::of(operation, &state_dir.join(name));
            move |source| SettingsError::from(error(source))
        };
        let Some(settings) = settings else {
            let removed = directory.remove(Self::FILE);
            return removed.map_err(io("remove", Self::FILE));
        };
        let text = serde_json::to_vec(settings).map_err(|source| SettingsError::Decode {
            path: state_dir.join(Self::FILE),
            source,
        })?;
        let mut file = directory.create(&new).map_err(io("create", &new))?;
        file.write_all(&text).map_err(io("write", &new))?;
        directory.sync_file(&file).map_err(io("sync", &new))?;
        let renamed = directory.rename(&new, Self::FILE);
        renamed.map_err(io("rename", &new))?;
        let synced = directory.sync();
        synced.map_err(io("sync the directory of", Self::FILE))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_left_is_found_until_nothing_is() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("state");
        assert_eq!(GuardSettings::load(&state_dir).unwrap(), None);
        let settings = GuardSettings {
            bpffs: "/sys/fs/bpf".into(),
            enforce: false,
            enforced_namespaces: ["shop".to_owned()].into(),
            devices: vec!["cali*".to_owned()],
        };
        for _ in 0..2 {
            GuardSettings::leave(Some(&settings), &state_dir).unwrap();
            let found = GuardSettings::load(&state_dir).unwrap();
            assert_eq!(found.as_ref(), Some(&settings));
        }
        fs::write(state_dir.join(GuardSettings::FILE), "{").unwrap();
        let error = GuardSettings::load(&state_dir).unwrap_err();
        assert!(error.to_string().contains("start the agent"), "{error}");
        for _ in 0..2 {
            GuardSettings::leave(None, &state_dir).unwrap();
            assert_eq!(GuardSettings::load(&state_dir).unwrap(), None);
        }
    }

    #[test]
    fn a_pipe_in_their_place_is_not_waited_for_and_settings_take_it() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join(translate::Policy::FILE);
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        translate::Policy::load(directory.path()).unwrap_err();
        let settings = translate::Policy::default();
        translate::Policy::leave(Some(&settings), directory.path()).unwrap();
        let found = translate::Policy::load(directory.path()).unwrap();
        assert_eq!(found, Some(settings));
    }

    #[test]
    fn a_file_of_them_that_a_crash_has_made_long_is_refused_and_the_agent_writes_it_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(translate::Policy::FILE);
        let long = fs::File::create(&path).unwrap();
        // More than this machine has memory for.
        long.set_len(1 << 40).unwrap();
        let error = translate::Policy::load(directory.path()).unwrap_err();
        let error = crate::error::chain(&error);
        let expected =
            "translate.json: it has 1099511627776 bytes, and no more than 1048576 are read";
        assert!(error.ends_with(expected), "{error}");
        let settings = translate::Policy::default();
        translate::Policy::leave(Some(&settings), directory.path()).unwrap();
        let found = translate::Policy::load(directory.path()).unwrap();
        assert_eq!(found, Some(settings));
    }

    #[test]
    fn in_a_file_there_are_none_and_none_can_be_left() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(GuardSettings::load(file.path()).unwrap(), None);
        GuardSettings::leave(None, file.path()).unwrap();
        translate::Policy::leave(Some(&translate::Policy::default()), file.path()).unwrap_err();
    }
}
