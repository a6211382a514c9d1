//! Puts the guard on a new Pod's device, before anything can be sent from there.

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

/// The reason why a Pod is not guarded yet. It runs all the same, and the agent tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuardingError {
    /// The settings that the agent has left cannot be read.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The host's end of the interface cannot be found.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The program or its maps cannot be loaded or written.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

/// Guards a Pod as the last agent on this node would; not at all if no agent left settings. `member` is the interface's
/// entry in the ledger after this request. Without an entry, such as for a sandbox that was replaced while it was
/// added, the guard is put on the device all the same, and keeps the Pod from every address that has an owner. Returns
/// problems that an operator should know.
pub(super) fn guard(
    state_dir: &Path,
    host: HostSide,
    member: Option<(&Key, &Entry)>,
) -> Result<Vec<String>, GuardingError> {
    let Some(settings) = GuardSettings::load(state_dir)? else {
        return Ok(Vec::new());
    };
    let Some(device) = interface::device(host.ifindex)? else {
        // The interface has no end in this namespace.
        return Ok(Vec::new());
    };
    // The settings say which promised addresses are exclusive, which matters only to a Pod that was promised any.
    let has_lost = member.is_some_and(|(_, entry)| !entry.promised.is_empty());
    let translation = match has_lost {
        true => translate::Policy::load(state_dir)?.unwrap_or_default(),
        false => translate::Policy::default(),
    };
    // Only the agent knows the annotation.
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
