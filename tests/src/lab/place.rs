//! Where a process of the lab runs: a network namespace and a cgroup.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use super::Core;
use super::netns;
use super::netns::Netns;
use super::signals;

/// A network namespace and a cgroup of a lab.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) core: Arc<Core>,
    pub(super) netns: Arc<Netns>,
    pub(super) cgroup: PathBuf,
}

impl Place {
    /// A command that will run here, in a process group of its own (Ctrl-C goes to the lab, which then ends its
    /// processes), and that dies with the thread that starts it.
    pub(super) fn command(&self, program: &Path) -> Result<Command> {
        let procs = self.cgroup.join("cgroup.procs");
        let procs = File::options()
            .write(true)
            .open(&procs)
            .with_context(|| format!("open {}", procs.display()))?;
        let netns = Arc::clone(&self.netns);
        let mut command = Command::new(program);
        command.process_group(0).stdin(Stdio::null());
        let parent = process::id();
        let enter = move || {
            die_with(parent)?;
            signals::unblock()?;
            // 0 is the writer itself.
            (&procs).write_all(b"0")?;
            netns::enter(netns.raw_fd())
        };
        // SAFETY: the closure makes system calls only; it neither allocates nor takes locks.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs a command to its end and returns what it printed; kills it after `patience`.
    pub(super) fn output(&self, mut command: Command, patience: Duration) -> Result<Output> {
        let scratch = tempfile::tempdir_in(self.core.remains.dir()).context("make a directory")?;
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| scratch.path().join(name));
        let program = command.get_program().display().to_string();
        let mut child = command
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let Some(status) = wait_until(&mut child, Instant::now() + patience)? else {
            child.kill()?;
            child.wait()?;
            bail!("{program} still ran after {patience:?}");
        };
        Ok(Output {
            status,
            stdout: fs::read(stdout)?,
            stderr: fs::read(stderr)?,
        })
    }
}

/// Asks the kernel to kill the calling process when the thread that forked it ends.
pub(super) fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have ended before the request took effect.
        if u32::try_from(libc::getppid()) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait().context("wait for a process")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// A child process of the lab. Clones are the same process; the lab keeps one and reaps it.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pid: u32,
    child: Arc<Mutex<Child>>,
}

impl Process {
    pub(super) fn new(child: Child) -> Self {
        Self {
            pid: child.id(),
            child: Arc::new(Mutex::new(child)),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.lock().try_wait(), Ok(None))
    }

    /// Sends a signal, unless the process was reaped.
    pub(super) fn signal(&self, signal: i32) -> Result<()> {
        let mut child = self.lock();
        if child.try_wait().context("wait for a process")?.is_some() {
            return Ok(());
        }
        let pid = libc::pid_t::try_from(self.pid).context("pid")?;
        // SAFETY: plain system call; the child is not reaped, so the pid is still its own.
        if unsafe { libc::kill(pid, signal) } != 0 {
            return Err(io::Error::last_os_error()).context("send a signal");
        }
        Ok(())
    }

    /// Waits for the end, at most for `patience`.
    pub(super) fn wait(&self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        wait_until(&mut self.lock(), deadline)?
            .with_context(|| format!("process {} still runs after {patience:?}", self.pid))
    }

    /// Kills and reaps.
    pub(super) fn kill(&self) -> Result<ExitStatus> {
        self.signal(libc::SIGKILL)?;
        self.wait(Duration::from_secs(60))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
