//! Serving from the checkpoint before any agent runs: at boot, before kubelet starts Pods.

use std::sync::Arc;

use tracing::warn;

use super::claimed::Claimed;
use super::configured::policy;
use super::error::AgentError;
use super::facts::Known;
use super::problem::of_failures;
use super::serving::Serving;
use super::upkeep::self_test;
use crate::config::AgentConfig;
use crate::dataplane::service::BpfDataplane;
use crate::host::cgroup::cgroup;
use crate::host::disk::errand::{SILENCE, once};
use crate::model::Snapshot;
use crate::node::NodeWatch;
use crate::observe::status::SelfTest;
use crate::source::checkpoint::Saver;
use crate::source::preferred::Sources;

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
///
/// External IPs and addresses of load balancers wait for the agent: only it can tell that one is the apiserver's, this
/// node's or a Pod's, once names can be looked up and devices are there. Taken from the kubelet, such an address would
/// keep the agent itself from starting.
pub async fn load(config: AgentConfig) -> Result<Load, AgentError> {
    let cgroup = cgroup(config.place.cgroup.as_deref())?;
    let _claimed = Claimed::start(&config.place, cgroup.path.clone()).await?;
    if BpfDataplane::serves(&config.place.bpffs)? {
        return Ok(Load::Before);
    }
    let directory = config.place.checkpoint();
    let read = directory.clone();
    let Some((_, found)) = once(move || Saver::open(read)).await else {
        let silent = format!("{}: {SILENCE}", directory.display());
        return Ok(Load::Nothing(Some(silent)));
    };
    let problems = of_failures(&found.problems);
    let Some(mut loaded) = found.loaded else {
        return Ok(Load::Nothing(problems));
    };
    leave_out_addresses_of_others(&mut loaded.snapshot);
    if let Some(problems) = problems {
        warn!(problems, "checkpoint: not all of it can be used");
    }
    let mut serving = Serving::start(&config, &cgroup)?;
    let in_force = loaded.in_force();
    let (edition, synced_at) = (loaded.provenance.edition, loaded.provenance.synced_at);
    let view = NodeWatch::new(config.pod_devices.clone())?.view().await?;
    // Without the ledger: no Pod of it runs yet, and nobody would notice when one is back at its address.
    let mut known = Known::new(policy(&config, Vec::new()), view);
    let mut sources = Sources::start(&[], config.scope.clone(), Some(loaded)).await?;
    serving.expect(&mut sources, Some(edition), in_force);
    serving.begin(&mut sources, &mut known, Some(edition))?;
    serving.mark_loaded()?;
    Ok(Load::Served {
        ports: serving.table().services.len(),
        synced_at,
        self_test: self_test(config.socket_lb, &cgroup).await,
    })
}

fn leave_out_addresses_of_others(snapshot: &mut Snapshot) {
    for service in snapshot.services.values_mut() {
        if !service.external_ips.is_empty() || !service.load_balancer_ips.is_empty() {
            let service = Arc::make_mut(service);
            service.external_ips = Box::default();
            service.load_balancer_ips = Box::default();
        }
    }
}
