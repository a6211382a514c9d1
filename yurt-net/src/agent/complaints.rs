//! What cannot be done for Pods as they ask for it, in the log.

use std::collections::BTreeSet;

use tracing::warn;

use crate::device::Complaint;

/// Says those that are not known yet.
pub(super) fn tell(what: &str, known: &[Complaint], complaints: &[Complaint]) {
    let known: BTreeSet<&Complaint> = known.iter().collect();
    for complaint in complaints.iter().filter(|new| !known.contains(new)) {
        let Complaint {
            pod,
            interface,
            reason,
        } = complaint;
        warn!(pod, interface, reason, "{what}");
    }
}
