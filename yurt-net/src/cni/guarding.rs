//! The guard on a new Pod's interface, before anything can be sent from it.

use std::path::Path;

use super::interface::{self, LinkError};
use crate::dataplane::DataplaneError;
use crate::dataplane::pod::guard::Guard;
use crate::device::{Complaint, HostSide};
use crate::error::chain;
use crate::ledger::{Entry, Key};
use crate::pods::guard::{Extra, GuardedPod, Reserved, compile, plan};
use crate::pods::members::guarded;
use crate::pods::settings::{GuardSettings, Settings as _, SettingsError};
use crate::pods::translate;

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

/// Guards a Pod as the last agent on this node would; not at all where none did. `member` is what the ledger says of the interface since
/// this request; where that is nothing, as of a sandbox that has come by after its successor, the guard is on the device and keeps the
/// Pod from what is anybody's. Returns what an operator should know.
pub(super) fn guard(
    state_dir: &Path,
    host: HostSide,
    member: Option<(&Key, &Entry)>,
) -> Result<Vec<String>, GuardingError> {
    let Some(settings) = GuardSettings::load(state_dir)? else {
        return Ok(Vec::new());
    };
    let Some(device) = interface::device(host.ifindex)? else {
        // The other end is in a namespace of its own.
        return Ok(Vec::new());
    };
    // It says which lost addresses nobody else is given: of a Pod that has lost none, nothing.
    let has_lost = member.is_some_and(|(_, entry)| !entry.promised.is_empty());
    let translation = match has_lost {
        true => translate::Policy::load(state_dir)?.unwrap_or_default(),
        false => translate::Policy::default(),
    };
    // The annotation comes with the agent.
    let pod = member.map(|(key, entry)| guarded(key, entry, &translation, Extra::default()));
    let pods: Vec<GuardedPod> = pod.into_iter().collect();
    let (wanted, complaints) = compile(&pods, &[device], &Reserved::default(), &settings.policy());
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
