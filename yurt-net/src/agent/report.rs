//! What the agent says of what happened: once, in the log, and in its status.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tracing::{error, info, warn};

use super::Agent;
use super::lines::namespace;
use crate::explain::verdict::{Dial, Explanation, OwnAddresses, explain};
use crate::model::{Rejection, Snapshot};
use crate::observe::status::{LeftAlone, RefusedService};
use crate::plan::Refused;
use crate::policy::Reasons;
use crate::table::Scope;

impl Agent {
    pub(super) fn report_clients(&mut self, known: usize, error: Option<String>) {
        let status = &mut self.status.clients;
        if let Some(error) = error.as_ref()
            && status.last_error.as_ref() != Some(error)
        {
            warn!(error, "not all clients of this node are known");
        }
        status.known = known;
        status.last_error = error;
    }

    pub(super) fn report_left_alone(&mut self) {
        let now = LeftAlone::all(self.memo.table());
        let before = std::mem::replace(&mut self.status.left_alone, now);
        let now = &self.status.left_alone;
        let come = now.iter().filter(|one| !before.contains(one));
        let gone = before.iter().filter(|one| !now.contains(one));
        let come = come.map(|one| (one, true));
        let changes: Vec<_> = come.chain(gone.map(|one| (one, false))).collect();
        let what = |(one, has_come): &(&LeftAlone, bool)| format!("{} {has_come}", one.address);
        let admitted = self.alone.admit(
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
                "ClusterIPs are left alone, and are not, more often than is written"
            );
        }
    }

    /// How a flow fares, by the table and by what of it fits into the maps. `pod`: who dials is a Pod of this node, at this address.
    pub(super) fn explain(&self, dial: Dial, pod: Option<IpAddr>) -> Explanation {
        let empty = Snapshot::default();
        let snapshot = self.sources.snapshot().unwrap_or(&empty);
        let mut own = OwnAddresses::new(snapshot, &self.known.policy.node);
        own.node
            .extend(self.known.view.local_addresses.iter().flatten());
        own.pods.extend(pod);
        let reasons = Reasons::new(snapshot, &self.known.policy, &self.known.view, &self.memory);
        let table = self.memo.table();
        let explanation = explain(table, &reasons, &own, dial);
        let mut keys = table.services.iter().map(|entry| &entry.key);
        let key = keys.find(|key| key.to_string() == explanation.service);
        match key.and_then(|key| self.image.refused(key)) {
            Some(refused) => {
                let to = SocketAddr::new(dial.to.ip().to_canonical(), dial.to.port());
                // Nothing is in force for clients of other nodes.
                let in_force = match own.scope(dial.from) {
                    Scope::Internal => Some(self.image.in_force(to, dial.protocol)),
                    Scope::External => None,
                };
                explanation.with_a_full_map(&refused, in_force)
            }
            None => explanation,
        }
    }

    pub(super) fn report_refused(&mut self, refused: Vec<Refused>) {
        let said = std::mem::take(&mut self.status.refused);
        self.status.set_refused(&refused);
        if self.status.refused == said {
            return;
        }
        let refused = self.status.refused_maps();
        let map = |full: &(&str, usize, &RefusedService)| full.0.to_owned();
        let admitted = self
            .full
            .admit(Instant::now(), &refused, |full| full.0, map);
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

    /// Says what is rejected since the last time, as far as a log takes it.
    pub(super) fn report_rejections(&mut self, new: &[Rejection]) {
        let admitted = self.rejected.admit(
            Instant::now(),
            new,
            |rejection| &rejection.namespace,
            object,
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
            } = rejection;
            warn!(kind, namespace, name, source, reason, "rejected");
        }
    }
}

/// Whatever is wrong with it.
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
