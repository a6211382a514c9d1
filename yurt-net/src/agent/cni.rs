//! Keeps the plugins in the node's CNI configuration while others write it anew, as flannel's init container does at every start.
//!
//! A task of its own; the disk is waited for in another thread. It never fights: after three times within a minute it waits, and says so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::chain;
use crate::retain::install::Directories;
use crate::retain::install::files::{Cni, InstallError, Report};
use crate::retain::watch::DirectoryWatch;

/// A writer is done by then.
const SETTLE: Duration = Duration::from_millis(200);
/// A directory that came later is found by then, and one that cannot be watched.
const EVERY: Duration = Duration::from_secs(30);
/// As often as this within a minute is mending; more would be a fight.
const TIMES: usize = 3;
const MINUTE: Duration = Duration::from_secs(60);

/// See the module. Ends with this value.
pub(super) struct CniKeeper {
    problem: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl CniKeeper {
    /// Installs the plugins, and goes on to see that they stay.
    pub(super) fn start(cni: Cni, directories: Directories) -> Self {
        let problem = Arc::default();
        let task = tokio::spawn(keep(cni, directories, Arc::clone(&problem)));
        Self { problem, task }
    }

    /// What is not as it should be at present.
    pub(super) fn problem(&self) -> Option<String> {
        let problem = self.problem.lock();
        problem.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for CniKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(cni: Cni, directories: Directories, problem: Arc<Mutex<Option<String>>>) {
    let mut written = VecDeque::new();
    let mut watch = None;
    // The plugins as they were left: to compare all of them each time would cost megabytes.
    let mut stamp = None;
    loop {
        if watch.is_none() {
            // Not there yet: the network's own component makes it.
            watch = DirectoryWatch::new(&cni.conf_dir, None).ok();
        }
        let now = Instant::now();
        while written
            .front()
            .is_some_and(|at| now.duration_since(*at) >= MINUTE)
        {
            written.pop_front();
        }
        let may_write = written.len() < TIMES;
        let is_left = stamp == Some(cni.stamp());
        let look = {
            let (cni, directories) = (cni.clone(), directories.clone());
            move || {
                // The plugins first: a configuration that names what is not there makes no Pods.
                if !is_left && cni.install_plugins()? {
                    info!(directory = %cni.bin_dir.display(), "CNI: installed the plugins");
                }
                let stamp = cni.stamp();
                let config = match may_write {
                    true => cni.install_config(&directories).map(Some),
                    false => cni.installed_config(&directories),
                };
                Ok::<_, InstallError>((stamp, config))
            }
        };
        let found = match tokio::task::spawn_blocking(look).await {
            Ok(Ok((installed, config))) => {
                stamp = Some(installed);
                match config {
                    Ok(Some(report)) => {
                        if report.has_written {
                            let config = report.config.display();
                            info!(%config, "CNI: put the plugins into the configuration");
                            written.push_back(now);
                        }
                        other_ipam(&report)
                    }
                    Ok(None) => Some(format!(
                        "CNI: somebody has taken the plugins out of the configuration in {} more than {TIMES} times within a minute; it is left alone until that is over",
                        cni.conf_dir.display()
                    )),
                    Err(error) => Some(format!("CNI: {}", chain(&error))),
                }
            }
            Ok(Err(error)) => Some(format!("CNI: {}", chain(&error))),
            Err(error) => Some(format!("CNI: {error}")),
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
        let wait = match written.front() {
            Some(first) if written.len() >= TIMES => MINUTE.saturating_sub(first.elapsed()),
            _ => EVERY,
        };
        let _elapsed = timeout(wait, changed).await;
        sleep(SETTLE).await;
    }
}

/// What an operator should know of a configuration that has the plugins.
fn other_ipam(report: &Report) -> Option<String> {
    let ipam = report.other_ipam.as_ref()?;
    Some(format!(
        "CNI: {} has {ipam} for IPAM, so Pods keep their MAC and not their address",
        report.config.display()
    ))
}
