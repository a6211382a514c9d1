//! The lab's end of a worker process.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ChildStdin;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;

use super::place::Place;
use super::place::Process;
use super::protocol::Reply;
use super::protocol::Request;

/// How long a worker may take in addition to a request's own budget.
const GRACE: Duration = Duration::from_secs(60);

/// The path of a program of the lab: beside the current one, or one directory up for test binaries in `deps/`.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("find this program")?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            let dir = here.parent().unwrap_or(Path::new("/")).display();
            format!("no {name} near {dir}; `cargo build -p yurt-net-tests --bins` makes it")
        })
}

/// A process in a Pod that carries out requests.
#[derive(Debug)]
pub(super) struct Worker {
    process: Process,
    talk: Mutex<Talk>,
}

#[derive(Debug)]
struct Talk {
    stdin: ChildStdin,
    replies: Receiver<String>,
}

impl Worker {
    pub(super) fn start(place: &Place) -> Result<Self> {
        let mut command = place.command(&program("lab-worker")?)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let spawned = place.core.spawn(command).context("start a worker")?;
        let stdin = spawned.stdin.context("stdin of a worker")?;
        let stdout = spawned.stdout.context("stdout of a worker")?;
        let (sender, replies) = mpsc::channel();
        // Ends with the worker.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            process: spawned.process,
            talk: Mutex::new(Talk { stdin, replies }),
        })
    }

    /// Sends a request and waits for its reply.
    pub(super) fn call(&self, request: &Request) -> Result<Reply> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        talk.stdin
            .write_all(&line)
            .context("the worker has ended")?;
        let reply = talk
            .replies
            .recv_timeout(request.budget() + GRACE)
            .map_err(|e| anyhow!("no reply from worker {}: {e}", self.process.pid()))?;
        match serde_json::from_str(&reply).context("parse the reply")? {
            Reply::Error(error) => bail!(error),
            reply => Ok(reply),
        }
    }

    pub(super) fn kill(&self) -> Result<()> {
        self.process.kill().map(|_status| ())
    }
}
