//! A real agent process on a node.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::time::Duration;

use anyhow::Context;
use anyhow::Error;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;

use super::Node;
use super::place::Place;
use super::place::Process;

/// The variable with the path of the program to test instead of the release build.
const PROGRAM: &str = "YURT_NET_BIN";
const PATIENCE: Duration = Duration::from_secs(60);

/// The path of the agent: `$YURT_NET_BIN`, otherwise the result of `cargo xtask build` in the target directory that
/// this program was built in.
pub fn program() -> Result<PathBuf> {
    let path = match std::env::var_os(PROGRAM) {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()
            .context("find this program")?
            .ancestors()
            .find(|dir| dir.ends_with("target"))
            .context("this program is in no target directory; set YURT_NET_BIN")?
            .join(format!("{}-unknown-linux-musl", std::env::consts::ARCH))
            .join("release/yurt-net"),
    };
    if !path.is_file() {
        bail!(
            "no agent at {}; `cargo xtask build` makes it",
            path.display()
        );
    }
    Ok(path)
}

/// A failed run of the program, with its output.
pub(super) fn failed(output: &Output) -> Error {
    anyhow!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// An agent that was started. If the handle is dropped, the agent runs on until the lab ends.
#[derive(Clone, Debug)]
pub struct Agent {
    process: Process,
    node: Node,
}

impl Agent {
    pub(super) fn start(place: &Place, mut command: Command, node: &Node) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(node.agent_log_path())
            .context("open the agent's log")?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = place.core.spawn(command)?.process;
        Ok(Self {
            process,
            node: node.clone(),
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Kills it as the kernel does when memory runs out: none of its code runs any more.
    pub fn kill9(&self) -> Result<()> {
        self.process.kill().map(|_status| ())
    }

    /// Asks it to end, and waits for that.
    pub fn terminate(&self) -> Result<ExitStatus> {
        self.process.signal(libc::SIGTERM)?;
        self.wait(PATIENCE)
    }

    /// Waits until it ends by itself.
    pub fn wait(&self, patience: Duration) -> Result<ExitStatus> {
        self.process
            .wait(patience)
            .with_context(|| format!("agent of {}\n{}", self.node.name(), self.node.agent_log()))
    }
}
