//! Runs a plugin as a container runtime of this node would: on the host, whatever file system the agent itself has.
//!
//! The agent usually runs in a container, where a program finds libraries that the host does not have. A plugin that
//! does not run on the host makes no Pods, and only the kubelet would report that. So it is run before a configuration
//! names it.
#![expect(
    unsafe_code,
    reason = "a child becomes a process of the host between fork and exec"
)]

use std::ffi::{CString, NulError};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::conflist::{Call, VERSIONS};

/// VERSION and STATUS take milliseconds; a slow disk may take seconds to read a program.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a killed program may take to end.
const LAST: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);
/// More than any answer. The rest is not read.
const MAX_ANSWER: u64 = 64 * 1024;

/// The reason why a plugin does not work on this node.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It does not start.
    #[error("run {plugin} on this node")]
    Start {
        /// The plugin.
        plugin: String,
        /// The cause. "No such file" about a program that exists means that its loader is missing.
        #[source]
        source: io::Error,
    },
    /// It started, but does not end.
    #[error("{plugin} does not answer within {} s", PATIENCE.as_secs())]
    Hangs {
        /// The plugin.
        plugin: String,
    },
    /// It ended with an unexpected answer.
    #[error("{plugin} {verb} ended with {status}: {said}")]
    Answer {
        /// The plugin.
        plugin: String,
        /// The verb that it was called with.
        verb: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its answer.
        said: String,
    },
}

/// The file system that container runtimes see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its root; `None` if it is that of this process.
    root: Option<PathBuf>,
}

impl Host {
    /// The file system of process 1. For a container that sees the node's processes, this is the node's.
    pub fn find() -> Self {
        const ROOT: &str = "/proc/1/root";
        let identity = |path: &str| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        let host = identity(ROOT);
        let is_other = host.is_some() && host != identity("/");
        Self {
            root: is_other.then(|| ROOT.into()),
        }
    }

    /// The file system with this root.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: Some(root.into()),
        }
    }

    /// Calls the program, under the name of this plugin, with VERSION.
    pub(super) fn version(&self, program: &Path, name: &str) -> Result<(), RunError> {
        let input = format!(r#"{{"cniVersion":"{}"}}"#, VERSIONS[0]);
        let ran = self.run(program, name, "VERSION", input.into_bytes())?;
        let versions = ran.answer["supportedVersions"].as_array();
        let speaks =
            |version: &str| versions.is_some_and(|all| all.iter().any(|one| *one == *version));
        if ran.status.success() && VERSIONS.iter().all(|version| speaks(version)) {
            return Ok(());
        }
        Err(ran.into_error(name, "VERSION"))
    }

    /// Calls a plugin with STATUS: whether an ADD with this configuration could succeed.
    pub(super) fn status(&self, program: &Path, call: &Call) -> Result<(), RunError> {
        let input = call.config.to_string().into_bytes();
        let ran = self.run(program, call.plugin, "STATUS", input)?;
        if ran.status.success() {
            return Ok(());
        }
        Err(ran.into_error(call.plugin, "STATUS"))
    }

    fn run(
        &self,
        program: &Path,
        name: &str,
        verb: &'static str,
        input: Vec<u8>,
    ) -> Result<Ran, RunError> {
        let started = |source| RunError::Start {
            plugin: format!("{} as {name}", program.display()),
            source,
        };
        let mut child = self.spawn(program, name, verb).map_err(started)?;
        // The plugin may end without reading its input; then writing fails.
        let mut written = Ok(());
        if let Some(mut stdin) = child.stdin.take() {
            let thread = thread::Builder::new().name("stdin".to_owned());
            written = thread.spawn(move || stdin.write_all(&input)).map(drop);
        }
        let patience = match written {
            Ok(()) => PATIENCE,
            Err(_) => Duration::ZERO,
        };
        let status = wait(&mut child, patience).map_err(started)?;
        // A plugin that did not get its input may end in any way.
        written.map_err(started)?;
        let status = status.ok_or_else(|| RunError::Hangs {
            plugin: name.to_owned(),
        })?;
        // The pipes hold enough, so they are read afterwards, and not to their end: a process that the plugin has left
        // behind may keep them open.
        let said = text_of(child.stdout.take());
        let complaint = text_of(child.stderr.take());
        Ok(Ran {
            status,
            answer: serde_json::from_str(&said).unwrap_or(Value::Null),
            said: if said.trim().is_empty() {
                complaint
            } else {
                said
            },
        })
    }

    /// The program is opened here and run there, so its path on the host does not matter. The loader, if it needs one,
    /// is the host's.
    fn spawn(&self, program: &Path, name: &str, verb: &str) -> io::Result<Child> {
        let file = File::open(program)?;
        let fd = file.as_raw_fd();
        let root = self
            .root
            .as_ref()
            .map(|root| CString::new(root.as_os_str().as_bytes()));
        let root = root.transpose()?;
        let argument = CString::new(name)?;
        let variables: Vec<CString> = [
            format!("CNI_COMMAND={verb}"),
            "CNI_PATH=/opt/cni/bin".to_owned(),
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ]
        .into_iter()
        .map(CString::new)
        .collect::<Result<_, NulError>>()?;
        let mut command = Command::new(name);
        command
            // If it has to be killed, the processes that it started are killed with it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let become_plugin = move || {
            if let Some(root) = &root {
                // SAFETY: a string that ends with NUL.
                if unsafe { libc::chroot(root.as_ptr()) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            let mut environment = [std::ptr::null(); 4];
            for (pointer, variable) in environment.iter_mut().zip(&variables) {
                *pointer = variable.as_ptr();
            }
            let arguments = [argument.as_ptr(), std::ptr::null()];
            // SAFETY: lists of strings that end with NULL, and a descriptor of a file that is open until the program is
            // another. It returns only where it failed. A script needs the descriptor, too.
            unsafe {
                libc::chdir(c"/".as_ptr());
                libc::fcntl(fd, libc::F_SETFD, 0);
                libc::fexecve(fd, arguments.as_ptr(), environment.as_ptr());
            }
            Err(io::Error::last_os_error())
        };
        // SAFETY: between fork and exec only system calls are made, and memory of before is read.
        unsafe { command.pre_exec(become_plugin) };
        let child = command.spawn();
        drop(file);
        child
    }
}

/// A program that has ended.
struct Ran {
    status: ExitStatus,
    answer: Value,
    said: String,
}

impl Ran {
    fn into_error(self, plugin: &str, verb: &'static str) -> RunError {
        let text = |name: &str| self.answer[name].as_str().unwrap_or_default();
        let said = match (text("msg"), text("details")) {
            ("", _) => self.said.trim().to_owned(),
            (message, "") => message.to_owned(),
            (message, details) => format!("{message}: {details}"),
        };
        RunError::Answer {
            plugin: plugin.to_owned(),
            verb,
            status: self.status,
            said,
        }
    }
}

/// What a pipe holds now.
fn text_of(pipe: Option<impl io::Read + AsRawFd>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // SAFETY: a call without pointers, on a descriptor that is open.
        let is_set = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } == 0;
        if is_set {
            // Reading ends with an error if another process may still write; what was read until then counts. If it
            // cannot be read at all, the result is empty.
            let _empty = pipe.take(MAX_ANSWER).read_to_end(&mut bytes);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `None` if it did not end by itself, and was killed.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let status = try_wait(child, patience)?;
    if status.is_none() {
        let group = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
        // SAFETY: a call without pointers; the child is not waited for yet, so its number is nobody else's.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        child.kill()?;
        // A process that waits for a disk does not end even then.
        try_wait(child, LAST)?;
    }
    Ok(status)
}

fn try_wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        let status = child.try_wait()?;
        if status.is_some() || start.elapsed() >= patience {
            return Ok(status);
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn host() -> Host {
        Host { root: None }
    }

    fn script(directory: &Path, text: &str) -> PathBuf {
        let path = directory.join("plugin");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn what_a_plugin_leaves_running_with_its_pipes_open_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let left = directory.path().join("left");
        let versions = serde_json::json!({"supportedVersions": VERSIONS});
        let text = format!(
            "sleep 1000 &\necho $! > {}\necho '{versions}'",
            left.display()
        );
        let program = script(directory.path(), &text);
        let started = Instant::now();
        host().version(&program, "yurt-cni").unwrap();
        let took = started.elapsed();
        let pid: libc::pid_t = fs::read_to_string(left).unwrap().trim().parse().unwrap();
        // SAFETY: a call without pointers, about a process that this test has started.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        assert!(took < Duration::from_secs(900), "{took:?}");
    }

    #[test]
    fn a_plugin_that_does_not_end_is_ended_with_all_that_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let left = directory.path().join("left");
        let text = format!("sleep 1000 &\necho $! > {}\nwait", left.display());
        let program = script(directory.path(), &text);
        let mut child = host().spawn(&program, "yurt-cni", "VERSION").unwrap();
        let started = || fs::read_to_string(&left).is_ok_and(|text| text.ends_with('\n'));
        while !started() {
            thread::sleep(LOOK);
        }
        assert_eq!(wait(&mut child, Duration::ZERO).unwrap(), None);
        assert!(child.try_wait().unwrap().is_some(), "it is waited for");
        let pid = fs::read_to_string(&left).unwrap();
        // It is a zombie until whoever has inherited it looks, or is gone.
        let is_running = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while is_running() {
            thread::sleep(LOOK);
        }
    }
}
