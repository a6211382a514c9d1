//! Keeps the plugins in the node's CNI configuration while others write it anew, as flannel's init container does at
//! every start.
//!
//! A task of its own. Another thread waits for the disk, for ever if need be, and the agent reports that. The task does
//! not fight over the file: after three writes within a minute it waits until nothing has been written for a minute,
//! and reports that.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::cni::install::Directories;
use crate::cni::install::files::{Cni, InstallError, Report, Stamp};
use crate::config::AgentConfig;
use crate::error::chain;
use crate::host::disk::errand::{PATIENCE, SILENCE};
use crate::host::limit::Limit;
use crate::ledger::watch::DirectoryWatch;
use crate::observe::status::Status;

/// How long a writer may take from its first change to its last.
const SETTLE: Duration = Duration::from_millis(200);
/// How often a directory is looked at that is missing, or that cannot be watched.
const EVERY: Duration = Duration::from_secs(30);
/// Keeps the plugins where they are. Ends with this value.
pub(super) struct CniKeeper {
    problem: Arc<SharedProblem>,
    task: JoinHandle<()>,
}

/// The faults at present. The task reports them, and `status` shows them.
#[derive(Default)]
struct SharedProblem(Mutex<Option<String>>);

impl SharedProblem {
    fn get(&self) -> Option<String> {
        let problem = self.0.lock();
        problem.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, found: Option<String>) {
        let mut problem = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_some() && *problem != found {
            warn!(
                problem = found,
                "CNI: until this is mended, new Pods may get other addresses or MACs than they had; the agent looks again every 30 s"
            );
        }
        *problem = found;
    }
}

impl CniKeeper {
    /// Installs the plugins, and keeps them installed; `None` if that is left to others.
    pub(super) fn start(config: &AgentConfig) -> Option<Self> {
        let (cni, directories) = config.cni.clone()?;
        let problem: Arc<SharedProblem> = Arc::default();
        let task = tokio::spawn(keep(cni, directories, Arc::clone(&problem)));
        Some(Self { problem, task })
    }

    /// The faults at present.
    pub(super) fn report(&self, status: &mut Status) {
        status.retention.alarms.extend(self.problem.get());
    }
}

impl Drop for CniKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(cni: Cni, directories: Directories, problem: Arc<SharedProblem>) {
    let start = Instant::now();
    let disk = Files {
        cni: &cni,
        problem: &problem,
    };
    let mut limit = Limit::default();
    let mut watch = None;
    // The state of the plugins after the last install: to compare all of them each time would cost megabytes.
    let mut stamp = None;
    loop {
        if watch.as_ref().is_none_or(DirectoryWatch::is_over) {
            // The directory is missing, or was made anew; the network's own component makes it.
            let made = disk.ask(|cni| Ok(DirectoryWatch::new(&cni.conf_dir, None).ok()));
            watch = made.await.ok().flatten();
        }
        let now = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        limit.pass(now);
        let found = match install(disk, &directories, &mut stamp, &mut limit, now).await {
            Ok(Some(report)) => other_ipam(&report),
            Ok(None) => Some(format!(
                "CNI: another program takes the plugins out of the configuration in {} again and again; the agent leaves it alone until a minute has passed without a write",
                cni.conf_dir.display()
            )),
            Err(error) => Some(format!("CNI: {}", chain(&error))),
        };
        problem.set(found);
        let changed = async {
            match &mut watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        if timeout(EVERY, changed).await.is_ok() {
            sleep(SETTLE).await;
            limit.stir(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
    }
}

/// `None`: the plugins are not in the configuration, because it is left alone.
async fn install(
    disk: Files<'_>,
    directories: &Directories,
    stamp: &mut Option<Stamp>,
    limit: &mut Limit,
    now: u64,
) -> Result<Option<Report>, InstallError> {
    // The plugins come first: with a configuration that names missing plugins no Pod can be made.
    if *stamp != Some(disk.ask(|cni| Ok(cni.stamp())).await?) {
        let is_new = disk.ask(|cni| cni.install_plugins()).await?;
        if is_new {
            info!(directory = %disk.cni.bin_dir.display(), "CNI: installed the plugins");
        }
        *stamp = Some(disk.ask(|cni| Ok(cni.stamp())).await?);
    }
    let told = directories.clone();
    let found = disk.ask(move |cni| cni.installed_config(&told)).await?;
    if found.is_some() || !limit.grant(now) {
        return Ok(found);
    }
    let told = directories.clone();
    let report = disk.ask(move |cni| cni.install_config(&told)).await?;
    info!(config = %report.config.display(), "CNI: put the plugins into the configuration");
    Ok(Some(report))
}

/// The node's CNI, on a disk that may not answer.
#[derive(Clone, Copy)]
struct Files<'a> {
    cni: &'a Cni,
    problem: &'a SharedProblem,
}

impl Files<'_> {
    /// Runs `work` in another thread, because the disk may not answer. Reports a disk that takes long.
    async fn ask<T: Send + 'static>(
        self,
        work: impl FnOnce(&Cni) -> Result<T, InstallError> + Send + 'static,
    ) -> Result<T, InstallError> {
        let cni = self.cni.clone();
        let mut done = tokio::task::spawn_blocking(move || work(&cni));
        let answer = match timeout(PATIENCE, &mut done).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                let Cni {
                    conf_dir, bin_dir, ..
                } = self.cni;
                let places = [conf_dir, bin_dir].map(|place| place.display().to_string());
                let problem = format!("CNI: {}: {SILENCE}", places.join(" or "));
                self.problem.set(Some(problem));
                done.await
            }
        };
        answer.map_err(|error| InstallError::Thread(std::io::Error::other(error)))?
    }
}

/// Remarks for an operator on a configuration that has the plugins.
fn other_ipam(report: &Report) -> Option<String> {
    let ipam = report.other_ipam.as_ref()?;
    Some(format!(
        "CNI: {} has {ipam} for IPAM, so Pods keep their MAC and not their address",
        report.config.display()
    ))
}
