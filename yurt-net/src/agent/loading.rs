//! Serving from the checkpoint before any agent runs: at boot, before kubelet starts Pods.

use super::checkpoint::Checkpoint;
use super::claimed::Claimed;
use super::configured::policy;
use super::error::AgentError;
use super::facts::Known;
use super::pods::Pods;
use super::serving::Serving;
use super::upkeep::Upkeep;
use crate::config::AgentConfig;
use crate::host::cgroup::cgroup;
use crate::node::NodeWatch;
use crate::observe::status::{SelfTest, Status};
use crate::source::kube::Servers;
use crate::source::preferred::{Freshness, Sources};

/// What has become of a node's Services.
#[derive(Debug)]
pub enum Load {
    /// They are in force.
    Served {
        /// How many service ports.
        ports: usize,
        /// When the checkpoint was true, in seconds since 1970.
        synced_at: u64,
        /// Whether a process in another cgroup was served.
        self_test: SelfTest,
    },
    /// An agent, or an earlier call, has put a table into force since the boot; it is left as it is.
    Before,
    /// There is no checkpoint that can be read; why, if that is not because none was written.
    Nothing(Option<String>),
}

/// Puts what the checkpoint says into the kernel, and ends; the next agent takes it over. Asks no source. Fails if an
/// agent runs.
pub async fn load(config: AgentConfig) -> Result<Load, AgentError> {
    let cgroup = cgroup(config.place.cgroup.as_deref())?;
    let _claimed = Claimed::start(&config.place, cgroup.path.clone()).await?;
    let (checkpoint, loaded) = Checkpoint::start(&config).await;
    let Some(loaded) = loaded else {
        return Ok(Load::Nothing(checkpoint.problem()));
    };
    let mut serving = Serving::start(&config, &cgroup)?;
    if serving.was_serving() {
        return Ok(Load::Before);
    }
    let (in_force, synced_at) = (loaded.in_force(), loaded.provenance.synced_at);
    let view = NodeWatch::new()?.view().await?;
    let servers = Servers::start(&config.sources, &config.scope.access).await;
    let mut known = Known::new(policy(&config, &servers), view);
    // No Pod runs yet, but each has an address that nobody else may take.
    if let Some(reading) = Pods::start(&config)?.read(true).await {
        known.set_ledger(reading);
        known.locate_pods(Freshness::Stale);
    }
    let mut sources = Sources::start(&[], config.scope.clone(), Some(loaded)).await?;
    serving.expect(&mut sources, checkpoint.edition(), in_force);
    serving.begin(&mut sources, &mut known, checkpoint.edition())?;
    serving.mark_loaded()?;
    let mut upkeep = Upkeep::start(&config, cgroup);
    upkeep.test_itself().await;
    let mut status = Status::new(&config.policy.node);
    upkeep.report(&[], &mut status);
    Ok(Load::Served {
        ports: serving.table().services.len(),
        synced_at,
        self_test: status.self_test,
    })
}
