//! The files of a node's CNI: its configuration, and the plugins.
//!
//! Every file is written beside its place, under a name that runtimes ignore, and then renamed, so runtimes see the old
//! or the new one. Like a runtime, this takes the first configuration by name (containernetworking/cni libcni
//! `ConfFiles`).

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::conflist::{Directories, Installed, Refusal, calls, install, uninstall};
use super::run::{Host, RunError};
use crate::error::PathError;
use crate::host::disk::read_whole;

/// The extensions of files that runtimes read as configurations.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// The name of our program among the plugins.
const PROGRAM: &str = "yurt-net";
const PLUGINS: [&str; 2] = ["yurt-ipam", "yurt-cni"];
/// More than any CNI configuration has.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The reason why the plugins are not installed, or not completely.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The directory has no configuration.
    #[error(
        "{} has no CNI configuration: set up the network of Pods, which writes one, then install again",
        directory.display()
    )]
    NoConfig {
        /// The directory.
        directory: PathBuf,
    },
    /// The plugins cannot be put into the configuration.
    #[error("{} stays as it is", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Refusal,
    },
    /// A plugin refuses the configuration with them, so no Pod would start.
    #[error("{} stays as it is: with the plugins in it, no Pod would start", path.display())]
    Unusable {
        /// The configuration.
        path: PathBuf,
        /// The plugin's answer.
        #[source]
        source: RunError,
    },
    /// The plugins do not run on this node: they are for another machine, or lack libraries.
    #[error(
        "the plugins of this version do not run on this node, so those in {} stay as they are",
        directory.display()
    )]
    DoesNotRun {
        /// The directory of the plugins.
        directory: PathBuf,
        /// How the plugin fails.
        #[source]
        source: RunError,
    },
    /// The thread that waits for the disk failed.
    #[error("wait for the disk")]
    Thread(#[source] io::Error),
    /// The configuration is not JSON.
    #[error("{} is not JSON", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// The disk refuses.
    #[error(transparent)]
    Io(#[from] PathError),
}

fn at(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> InstallError + use<> {
    let error = PathError::of(operation, path);
    move |source| error(source).into()
}

/// The directories of a node's CNI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cni {
    /// Configurations.
    pub conf_dir: PathBuf,
    /// Plugins.
    pub bin_dir: PathBuf,
    /// The program that becomes the plugins: this one.
    pub program: PathBuf,
    /// Where plugins are run.
    pub host: Host,
}

/// Inode, length and nanoseconds of the last change of each plugin; `None` if it does not exist.
pub type Stamp = [Option<(u64, u64, i64)>; PLUGINS.len()];

/// What was done or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The configuration that the runtime uses.
    pub config: PathBuf,
    /// Whether it was written.
    pub has_written: bool,
    /// See [`Installed::other_ipam`].
    pub other_ipam: Option<String>,
}

impl Cni {
    /// The configuration that a runtime uses, as it is.
    pub fn config(&self) -> Result<(PathBuf, Value), InstallError> {
        let none = || InstallError::NoConfig {
            directory: self.conf_dir.clone(),
        };
        let entries = match fs::read_dir(&self.conf_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
            Err(error) => return Err(at("read", &self.conf_dir)(error)),
        };
        let is_config = |path: &PathBuf| {
            let extension = path.extension().and_then(OsStr::to_str);
            extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && path.is_file()
        };
        let paths = entries.flatten().map(|entry| entry.path());
        let path = paths.filter(is_config).min().ok_or_else(none)?;
        let text = read_whole(&path, MAX_CONFIG_BYTES).map_err(at("read", &path))?;
        match serde_json::from_slice(&text) {
            Ok(config) => Ok((path, config)),
            Err(source) => Err(InstallError::Decode { path, source }),
        }
    }

    /// Puts the plugins into the configuration; writes only what differs.
    pub fn install_config(&self, directories: &Directories) -> Result<Report, InstallError> {
        let (path, config) = self.config()?;
        match install(&config, directories) {
            Ok(Installed {
                config: wanted,
                other_ipam,
            }) => {
                if wanted != config {
                    self.try_config(&path, &wanted)?;
                }
                Ok(Report {
                    has_written: write_if_other(&path, &config, &wanted)?,
                    config: path,
                    other_ipam,
                })
            }
            Err(source) => Err(InstallError::Refused { path, source }),
        }
    }

    /// The configuration, if the plugins are in it as they should. Writes nothing.
    pub fn installed_config(
        &self,
        directories: &Directories,
    ) -> Result<Option<Report>, InstallError> {
        let (path, config) = self.config()?;
        match install(&config, directories) {
            Ok(installed) => Ok((installed.config == config).then_some(Report {
                config: path,
                has_written: false,
                other_ipam: installed.other_ipam,
            })),
            Err(source) => Err(InstallError::Refused { path, source }),
        }
    }

    /// Takes the plugins out of the configuration, if there is one.
    pub fn uninstall_config(&self) -> Result<Option<Report>, InstallError> {
        let (path, config) = match self.config() {
            Ok(found) => found,
            Err(InstallError::NoConfig { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match uninstall(&config) {
            Ok(wanted) => Ok(Some(Report {
                has_written: write_if_other(&path, &config, &wanted)?,
                config: path,
                other_ipam: None,
            })),
            Err(source) => Err(InstallError::Refused { path, source }),
        }
    }

    /// Runs the plugins with a configuration that no runtime uses yet.
    fn try_config(&self, path: &Path, config: &Value) -> Result<(), InstallError> {
        for call in calls(config) {
            let plugin = self.bin_dir.join(call.plugin);
            let asked = self.host.status(&plugin, &call);
            asked.map_err(|source| InstallError::Unusable {
                path: path.to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// Whether the plugins that are installed run on this node.
    pub fn try_plugins(&self) -> Result<(), RunError> {
        let mut plugins = PLUGINS.iter();
        plugins.try_for_each(|name| self.host.version(&self.bin_dir.join(name), name))
    }

    /// Puts this program among the plugins, and keeps an older one until it is known that this one runs. Returns
    /// whether it was not there. The program is run first, from here and from its new place: one that does not run is
    /// not installed.
    pub fn install_plugins(&self) -> Result<bool, InstallError> {
        let own = self.program.as_path();
        let tried = |place: &Path| {
            let mut plugins = PLUGINS.iter();
            plugins
                .try_for_each(|name| self.host.version(place, name))
                .map_err(|source| InstallError::DoesNotRun {
                    directory: self.bin_dir.clone(),
                    source,
                })
        };
        // Also for a program that is there already: the node may have changed since.
        tried(own)?;
        fs::create_dir_all(&self.bin_dir).map_err(at("make", &self.bin_dir))?;
        let place = self.bin_dir.join(PROGRAM);
        let is_new = !is_same_file(own, &place).map_err(at("compare with", &place))?;
        if is_new {
            let mut program = File::open(own).map_err(at("open", own))?;
            let copy = |file: &mut File| io::copy(&mut program, file).map(drop);
            replace(&place, 0o755, copy, tried)?;
        } else {
            tried(&place)?;
        }
        let mut has_linked = false;
        for name in PLUGINS {
            let link = self.bin_dir.join(name);
            if fs::read_link(&link).is_ok_and(|target| target == Path::new(PROGRAM)) {
                continue;
            }
            let beside = self.bin_dir.join(format!(".{name}.new"));
            // An earlier attempt that was cut short may have left it.
            let _none = fs::remove_file(&beside);
            symlink(PROGRAM, &beside).map_err(at("make", &beside))?;
            fs::rename(&beside, &link).map_err(at("rename", &beside))?;
            has_linked = true;
        }
        Ok(is_new || has_linked)
    }

    /// Shows whether the plugins may have changed, without reading them.
    pub fn stamp(&self) -> Stamp {
        PLUGINS.map(|name| {
            let metadata = fs::metadata(self.bin_dir.join(name)).ok()?;
            Some((metadata.ino(), metadata.len(), metadata.mtime_nsec()))
        })
    }

    /// Takes the plugins away, once no configuration names them any more.
    pub fn uninstall_plugins(&self) -> Result<(), InstallError> {
        for name in PLUGINS.into_iter().chain([PROGRAM]) {
            let path = self.bin_dir.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The plugins that are missing, or are not this program.
    pub fn foreign_plugins(&self) -> Vec<&'static str> {
        let own = self.program.as_path();
        let mut plugins = PLUGINS.to_vec();
        plugins.retain(|name| !is_same_file(own, &self.bin_dir.join(name)).unwrap_or_default());
        plugins
    }
}

/// Whether two files hold the same bytes. A missing file, or a pipe, holds none.
fn is_same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let mut one = File::open(one)?;
    let mut other = match fs::metadata(other).map(|found| found.is_file()) {
        Ok(true) => File::open(other)?,
        Ok(false) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    // Not whole in memory: the agent has to stay small.
    let (mut left, mut right) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let length = one.read(&mut left)?;
        if length == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..length])?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
    }
}

fn write_if_other(path: &Path, found: &Value, wanted: &Value) -> Result<bool, InstallError> {
    if found == wanted {
        return Ok(false);
    }
    let metadata = fs::metadata(path).map_err(at("stat", path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    let mut text = serde_json::to_vec_pretty(wanted).map_err(|source| InstallError::Decode {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    // The place may be a link of another program: the file that it leads to is the one that is read.
    let place = fs::canonicalize(path).map_err(at("follow", path))?;
    replace(&place, mode, |file| file.write_all(&text), |_| Ok(()))?;
    Ok(true)
}

/// Writes a file beside the place, and renames it when it is complete, on the medium, and approved.
fn replace(
    place: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
    is_good: impl FnOnce(&Path) -> Result<(), InstallError>,
) -> Result<(), InstallError> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    // Runtimes ignore it, because it lacks one of their extensions.
    let beside = place.with_file_name(format!(".{name}.new"));
    // An earlier attempt that was cut short may have left it; or it is a pipe, and opening that would block.
    let _none = fs::remove_file(&beside);
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside);
    let mut file = opened.map_err(at("create", &beside))?;
    let written = write(&mut file)
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all());
    drop(file);
    let moved = written
        .map_err(at("write", &beside))
        .and_then(|()| is_good(&beside))
        .and_then(|()| fs::rename(&beside, place).map_err(at("rename", &beside)));
    if moved.is_err() {
        // It may be what fills the disk.
        let _none = fs::remove_file(&beside);
    }
    moved?;
    let directory = place.parent().unwrap_or(Path::new("/"));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(at("sync", directory))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "edge", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}"#;

    fn cni(directory: &tempfile::TempDir) -> Cni {
        let cni = Cni {
            conf_dir: directory.path().join("net.d"),
            bin_dir: directory.path().join("bin"),
            program: directory.path().join("program"),
            host: Host::find(),
        };
        fs::create_dir(&cni.conf_dir).unwrap();
        program(&cni, GOOD);
        cni.install_plugins().unwrap();
        cni
    }

    /// A plugin that takes any configuration.
    const GOOD: &str = r#"#!/bin/sh
cat > "${0%/*}/told" 2> /dev/null
[ "$CNI_COMMAND" = STATUS ] || echo '{"supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}'
"#;
    /// One that takes none, and one that does not run at all.
    const REFUSES: &str = r#"#!/bin/sh
cat > /dev/null
[ "$CNI_COMMAND" = VERSION ] && exec echo '{"supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}'
echo '{"code": 7, "msg": "the ranges cannot be used", "details": "no subnet"}'
exit 1
"#;
    const FAILS: &str = "#!/bin/sh\necho 'libc.so.6: version GLIBC_2.34 not found' >&2\nexit 1\n";

    fn program(cni: &Cni, text: &str) {
        fs::write(&cni.program, text).unwrap();
        fs::set_permissions(&cni.program, Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_plugin_that_does_not_run_on_the_node_is_not_installed_and_the_old_one_stays() {
        let directory = tempfile::tempdir().unwrap();
        let cni = cni(&directory);
        for (text, reason) in [(FAILS, "GLIBC_2.34"), ("#!/no/such/loader\n", "run ")] {
            program(&cni, text);
            let error = crate::error::chain(&cni.install_plugins().unwrap_err());
            assert!(error.contains(reason), "{error}");
            assert!(error.contains("stay as they are"), "{error}");
            let installed = fs::read_to_string(cni.bin_dir.join("yurt-ipam")).unwrap();
            assert_eq!(installed, GOOD);
            assert_eq!(fs::read_dir(&cni.bin_dir).unwrap().count(), 3);
            cni.try_plugins().unwrap();
        }
        // It ran when it was installed, and does so no more.
        fs::write(cni.bin_dir.join(PROGRAM), FAILS).unwrap();
        let error = crate::error::chain(&cni.try_plugins().unwrap_err());
        assert!(error.contains("GLIBC_2.34"), "{error}");
    }

    #[test]
    fn pipes_and_long_files_are_neither_waited_for_nor_taken_into_memory() {
        let directory = tempfile::tempdir().unwrap();
        let cni = cni(&directory);
        let (config, plugin) = (
            cni.conf_dir.join("10-edge.conflist"),
            cni.bin_dir.join(PROGRAM),
        );
        fs::write(&config, LIST).unwrap();
        fs::remove_file(&plugin).unwrap();
        for pipe in [&plugin, &cni.conf_dir.join(".10-edge.conflist.new")] {
            let made = std::process::Command::new("mkfifo").arg(pipe).status();
            assert!(made.unwrap().success());
        }
        assert!(cni.install_plugins().unwrap());
        assert!(cni.install_config(&directories()).unwrap().has_written);
        let long = File::create(cni.conf_dir.join("05-long.conflist")).unwrap();
        long.set_len(MAX_CONFIG_BYTES + 1).unwrap();
        let error = crate::error::chain(&cni.config().unwrap_err());
        assert!(
            error.contains("05-long.conflist: it has 1048577 bytes, and no more than 1048576"),
            "{error}"
        );
    }

    #[test]
    fn a_configuration_that_the_plugins_refuse_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let cni = cni(&directory);
        program(&cni, REFUSES);
        assert!(cni.install_plugins().unwrap());
        let path = cni.conf_dir.join("10-edge.conflist");
        fs::write(&path, LIST).unwrap();
        let error = cni.install_config(&directories()).unwrap_err();
        let error = crate::error::chain(&error);
        assert!(
            error.contains("the ranges cannot be used: no subnet"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), LIST);
    }

    #[test]
    fn a_configuration_that_is_a_link_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let cni = cni(&directory);
        let (link, place) = (
            cni.conf_dir.join("10-edge.conflist"),
            directory.path().join("edge.conflist"),
        );
        fs::write(&place, LIST).unwrap();
        symlink("../edge.conflist", &link).unwrap();
        assert!(cni.install_config(&directories()).unwrap().has_written);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../edge.conflist"));
        let written: Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
        assert_eq!(written["plugins"][1]["type"], "yurt-cni");
    }

    fn directories() -> Directories {
        Directories {
            data_dir: "/var/lib/yurt-net".to_owned(),
            run_dir: "/run/yurt-net".to_owned(),
        }
    }

    #[test]
    fn the_first_configuration_is_changed_once_and_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let cni = cni(&directory);
        let error = cni.install_config(&directories()).unwrap_err();
        assert!(error.to_string().contains("has no CNI configuration"));
        let first = cni.conf_dir.join("10-edge.conflist");
        fs::write(&first, LIST).unwrap();
        fs::set_permissions(&first, Permissions::from_mode(0o600)).unwrap();
        fs::write(cni.conf_dir.join("20-other.conflist"), "{").unwrap();
        fs::write(cni.conf_dir.join("05-notes.txt"), "{").unwrap();
        for is_first in [true, false] {
            let report = cni.install_config(&directories()).unwrap();
            assert_eq!(
                (report.config, report.has_written),
                (first.clone(), is_first)
            );
        }
        assert_eq!(
            fs::metadata(&first).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let (_, config) = cni.config().unwrap();
        assert_eq!(config["plugins"][1]["type"], "yurt-cni");
        assert_eq!(fs::read_dir(&cni.conf_dir).unwrap().count(), 3);
        assert!(cni.uninstall_config().unwrap().unwrap().has_written);
        let (_, config) = cni.config().unwrap();
        assert_eq!(config, serde_json::from_str::<Value>(LIST).unwrap());
    }

    #[test]
    fn a_configuration_that_is_refused_or_broken_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let cni = cni(&directory);
        let path = cni.conf_dir.join("10-edge.conf");
        let single = json!({"cniVersion": "1.0.0", "type": "bridge"}).to_string();
        for (text, reason) in [(single.as_str(), "make it a list"), ("{", "is not JSON")] {
            fs::write(&path, text).unwrap();
            let error = cni.install_config(&directories()).unwrap_err();
            let error = crate::error::chain(&error);
            assert!(error.contains(reason), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn the_plugins_are_this_program_and_an_older_one_makes_room() {
        let directory = tempfile::tempdir().unwrap();
        let cni = cni(&directory);
        assert!(!cni.install_plugins().unwrap());
        assert_eq!(cni.foreign_plugins(), [""; 0]);
        fs::write(cni.bin_dir.join(PROGRAM), "an older one").unwrap();
        assert_eq!(cni.foreign_plugins(), PLUGINS);
        assert!(cni.install_plugins().unwrap());
        let mode = fs::metadata(cni.bin_dir.join("yurt-cni"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        cni.uninstall_plugins().unwrap();
        assert_eq!(fs::read_dir(&cni.bin_dir).unwrap().count(), 0);
    }
}
