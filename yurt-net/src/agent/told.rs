//! What the log and the status say of a table: objects that are wrong, service ports that have no room, ClusterIPs that
//! are left alone.

use std::sync::Arc;
use std::time::Instant;

use tracing::{error, info, warn};

use super::lines::{Lines, namespace};
use crate::model::Rejection;
use crate::observe::status::{DoesNotFit, LeftAlone, RefusedService, Status};
use crate::plan::Refused;
use crate::table::ServiceTable;

/// What was last reported.
#[derive(Debug, Default)]
pub(super) struct Told {
    refused: DoesNotFit,
    left_alone: Vec<LeftAlone>,
    rejected_lines: Lines,
    full_lines: Lines,
    alone_lines: Lines,
}

impl Told {
    /// Takes the ClusterIPs that are left alone now, and logs the changes.
    pub(super) fn left_alone(&mut self, table: &ServiceTable) {
        let now = LeftAlone::all(table);
        let before = std::mem::replace(&mut self.left_alone, now);
        let now = &self.left_alone;
        let come = now.iter().filter(|one| !before.contains(one));
        let gone = before.iter().filter(|one| !now.contains(one));
        let come = come.map(|one| (one, true));
        let changes: Vec<_> = come.chain(gone.map(|one| (one, false))).collect();
        let what = |(one, has_come): &(&LeftAlone, bool)| format!("{} {has_come}", one.address);
        let admitted = self.alone_lines.admit(
            Instant::now(),
            &changes,
            |(one, _)| namespace(&one.service),
            what,
        );
        for (LeftAlone { address, service }, has_come) in admitted.lines {
            match has_come {
                true => {
                    info!(%address, service, "this ClusterIP is on an interface of this node: left to what listens there");
                }
                false => info!(%address, service, "this ClusterIP is no longer left alone"),
            }
        }
        if let Some(more) = admitted.left_out {
            info!(
                more,
                "more ClusterIPs began or stopped being left alone than are logged"
            );
        }
    }

    /// Takes the service ports that have no room now, and logs the changes.
    pub(super) fn refused(&mut self, refused: &[Refused]) {
        let now = DoesNotFit::of(refused);
        if now == self.refused {
            return;
        }
        self.refused = now;
        let maps = self.refused.maps();
        let map = |full: &(&str, usize, &RefusedService)| full.0.to_owned();
        let admitted = self
            .full_lines
            .admit(Instant::now(), &maps, |full| full.0, map);
        for &(map, services, first) in admitted.lines {
            let (first, flag) = (&first.service, &first.flag);
            error!(
                map,
                services, first, flag, "map full: these service ports do not fit"
            );
        }
        if let Some(more) = admitted.left_out {
            warn!(
                more,
                "map full: what does not fit has changed again; `yurt-net status` shows it"
            );
        }
    }

    /// Full maps, how many service ports do not fit into each, and the first of them.
    pub(super) fn full_maps(&self) -> Vec<(&str, usize, &RefusedService)> {
        self.refused.maps()
    }

    /// Logs objects that are newly rejected.
    pub(super) fn rejections(&mut self, new: &[Arc<Rejection>]) {
        let admitted = self.rejected_lines.admit(
            Instant::now(),
            new,
            |rejection| &rejection.namespace,
            |rejection| object(rejection),
        );
        if let Some(more) = admitted.left_out {
            warn!(
                more,
                "rejected: more than the lines of this minute name; `yurt-net plan` shows all"
            );
        }
        for rejection in admitted.lines {
            let Rejection {
                kind,
                namespace,
                name,
                source,
                reason,
            } = &**rejection;
            warn!(kind, namespace, name, source, reason, "rejected");
        }
    }

    /// What has no room, and what is left alone.
    pub(super) fn report(&self, status: &mut Status) {
        status.set_refused(&self.refused);
        status.left_alone.clone_from(&self.left_alone);
    }
}

/// Everything that is wrong with one object.
fn object(rejection: &Rejection) -> String {
    let Rejection {
        kind,
        namespace,
        name,
        source,
        ..
    } = rejection;
    format!("{kind} {namespace}/{name} {source}")
}
