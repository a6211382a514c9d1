//! The apiserver of a lab: a process on the wire, where every node reaches it without leaving its network.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;

use anyhow::Context;
use anyhow::Result;

use super::Core;
use super::lock;
use super::manifests::Manifests;
use super::place::Place;
use super::place::Process;
use super::wire4;
use super::worker;

const HOST: u8 = 254;
const PORT: u16 = 8001;

/// The apiserver of a lab. It serves nothing before [`Cloud::start`].
#[derive(Debug)]
pub struct Cloud {
    place: Place,
    manifests: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Cloud {
    pub(super) fn new(core: &Arc<Core>) -> Result<Self> {
        let place = Place {
            core: Arc::clone(core),
            netns: Arc::clone(&core.wire),
            cgroup: core.remains.cgroup().join("cloud"),
        };
        core.make_cgroup(&place.cgroup)?;
        let manifests = core.remains.dir().join("cloud");
        fs::create_dir(&manifests).with_context(|| format!("make {}", manifests.display()))?;
        Ok(Self {
            place,
            manifests,
            process: Mutex::default(),
        })
    }

    /// What an agent is given as `--source`.
    pub fn source(&self) -> String {
        format!("kube:http://{}:{PORT}", wire4(HOST))
    }

    /// Replaces all objects, now or when it is started.
    pub fn apply(&self, manifests: &Manifests) -> Result<()> {
        manifests.write_to(&self.manifests.join("all.yaml"))
    }

    /// Starts it, and waits until it listens.
    pub fn start(&self) -> Result<()> {
        let mut command = self.place.command(&worker::program("fake-apiserver")?)?;
        command
            .arg("--listen")
            .arg(format!("{}:{PORT}", wire4(HOST)));
        command.arg("--manifests").arg(&self.manifests);
        command.stdout(Stdio::piped());
        let spawned = self.place.core.spawn(command)?;
        let stdout = spawned.stdout.context("stdout of the apiserver")?;
        let mut url = String::new();
        BufReader::new(stdout)
            .read_line(&mut url)
            .context("wait for the apiserver")?;
        *lock(&self.process) = Some(spawned.process);
        anyhow::ensure!(url.starts_with("http://"), "the apiserver does not start");
        Ok(())
    }

    /// Kills it: connections are reset, and new ones are refused.
    pub fn kill9(&self) -> Result<()> {
        match lock(&self.process).take() {
            Some(process) => process.kill().map(|_status| ()),
            None => Ok(()),
        }
    }
}
