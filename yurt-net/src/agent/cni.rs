//! Keeps the plugins in the node's CNI configuration while others write it anew, as flannel's init container does at every start.
//!
//! A task of its own; the disk is waited for in another thread. It never fights: after three times within a minute it waits for a
//! minute in which nobody writes, and says so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::cni::install::Directories;
use crate::cni::install::files::{Cni, InstallError, Report, Stamp};
use crate::config::AgentConfig;
use crate::error::chain;
use crate::host::limit::Limit;
use crate::ledger::watch::DirectoryWatch;
use crate::observe::status::Status;

/// A writer is done by then.
const SETTLE: Duration = Duration::from_millis(200);
/// A directory that came later is found by then, and one that cannot be watched.
const EVERY: Duration = Duration::from_secs(30);
/// Keeps the plugins where they are. Ends with this value.
pub(super) struct CniKeeper {
    problem: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl CniKeeper {
    /// Installs the plugins, and goes on to see that they stay; `None` where that is left to others.
    pub(super) fn start(config: &AgentConfig) -> Option<Self> {
        let (cni, directories) = config.cni.clone()?;
        let problem = Arc::default();
        let task = tokio::spawn(keep(cni, directories, Arc::clone(&problem)));
        Some(Self { problem, task })
    }

    /// What is not as it should be at present.
    pub(super) fn report(&self, status: &mut Status) {
        let problem = self.problem.lock();
        let problem = problem.unwrap_or_else(PoisonError::into_inner).clone();
        status.retention.alarms.extend(problem);
    }
}

impl Drop for CniKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(cni: Cni, directories: Directories, problem: Arc<Mutex<Option<String>>>) {
    let start = Instant::now();
    let mut limit = Limit::default();
    let mut watch = None;
    // The plugins as they were left: to compare all of them each time would cost megabytes.
    let mut stamp = None;
    loop {
        if watch.as_ref().is_none_or(DirectoryWatch::is_over) {
            // Not there yet, or made anew: the network's own component makes it.
            watch = DirectoryWatch::new(&cni.conf_dir, None).ok();
        }
        let now = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        limit.pass(now);
        let found = match install(&cni, &directories, &mut stamp, &mut limit, now).await {
            Ok(Some(report)) => other_ipam(&report),
            Ok(None) => Some(format!(
                "CNI: somebody takes the plugins out of the configuration in {} again and again; it is left alone until nobody has written it for a minute",
                cni.conf_dir.display()
            )),
            Err(error) => Some(format!("CNI: {}", chain(&error))),
        };
        {
            let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
            if found.is_some() && *problem != found {
                warn!(problem = found, "Pods may not keep what they should");
            }
            *problem = found;
        }
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

/// `None`: the plugins are not in the configuration, and it is left alone.
async fn install(
    cni: &Cni,
    directories: &Directories,
    stamp: &mut Option<Stamp>,
    limit: &mut Limit,
    now: u64,
) -> Result<Option<Report>, InstallError> {
    // The plugins first: a configuration that names what is not there makes no Pods.
    if *stamp != Some(cni.stamp()) {
        let is_new = on_disk(cni, |cni| cni.install_plugins()).await?;
        if is_new {
            info!(directory = %cni.bin_dir.display(), "CNI: installed the plugins");
        }
        *stamp = Some(cni.stamp());
    }
    let told = directories.clone();
    let found = on_disk(cni, move |cni| cni.installed_config(&told)).await?;
    if found.is_some() || !limit.grant(now) {
        return Ok(found);
    }
    let told = directories.clone();
    let report = on_disk(cni, move |cni| cni.install_config(&told)).await?;
    info!(config = %report.config.display(), "CNI: put the plugins into the configuration");
    Ok(Some(report))
}

/// The disk is waited for in another thread.
async fn on_disk<T: Send + 'static>(
    cni: &Cni,
    work: impl FnOnce(&Cni) -> Result<T, InstallError> + Send + 'static,
) -> Result<T, InstallError> {
    let cni = cni.clone();
    let done = tokio::task::spawn_blocking(move || work(&cni)).await;
    done.map_err(|error| InstallError::Thread(std::io::Error::other(error)))?
}

/// What an operator should know of a configuration that has the plugins.
fn other_ipam(report: &Report) -> Option<String> {
    let ipam = report.other_ipam.as_ref()?;
    Some(format!(
        "CNI: {} has {ipam} for IPAM, so Pods keep their MAC and not their address",
        report.config.display()
    ))
}
