//! The guard on a new Pod's interface, before anything can be sent from it.

use std::net::IpAddr;
use std::path::Path;

use super::interface::{self, LinkError};
use crate::dataplane::DataplaneError;
use crate::dataplane::pod::guard::Guard;
use crate::device::Complaint;
use crate::error::chain;
use crate::ledger::Key;
use crate::ledger::rules::Seen;
use crate::pods::guard::{Extra, GuardedPod, Reserved, compile, plan};
use crate::pods::settings::{GuardSettings, Settings as _, SettingsError};

/// Why a Pod is not guarded yet. It runs all the same, and the agent tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuardingError {
    /// What the agent has left.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The host's end of the interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Program and maps.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

/// Guards a Pod as the last agent on this node would; not at all where none did. Returns what an operator should know.
pub(super) fn guard(
    state_dir: &Path,
    key: &Key,
    addresses: &[IpAddr],
    seen: Seen,
) -> Result<Vec<String>, GuardingError> {
    let Some(host) = seen.host else {
        return Ok(Vec::new());
    };
    let Some(settings) = GuardSettings::load(state_dir)? else {
        return Ok(Vec::new());
    };
    let Some(device) = interface::device(host.ifindex)? else {
        // The other end is in a namespace of its own.
        return Ok(Vec::new());
    };
    let pod = GuardedPod {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        interface: key.interface.clone(),
        mac: Some(seen.mac.0),
        addresses: addresses.to_vec(),
        host: Some(host),
        // The annotation comes with the agent.
        extra: Extra::default(),
    };
    let (wanted, complaints) = compile(&[pod], &[device], &Reserved::default(), &settings.policy());
    let mut problems: Vec<String> = complaints
        .into_iter()
        .map(|Complaint { reason, .. }| reason)
        .collect();
    if !wanted.attached.is_empty() {
        let mut guard = Guard::open(&settings.bpffs, None)?;
        let applied = guard.apply(&plan(&Default::default(), &wanted));
        problems.extend(applied.failures.iter().map(|error| chain(error)));
    }
    Ok(problems)
}
