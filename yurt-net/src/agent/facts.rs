//! The facts that the agent knows. Pure: a setter returns whether a value is new.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::device::Link;
use crate::ledger::watch::Reading;
use crate::ledger::{Entry, Key, is_same};
use crate::model::{LocalPod, Snapshot};
use crate::pods::members::Members;
use crate::pods::probe::Failing;
use crate::pods::translate::Policy;
use crate::pods::truth::{Move, Truth};
use crate::policy::{Memory, Networks, NodeView, PolicyConfig};
use crate::source::preferred::{Freshness, Origin};
use crate::table::ServiceTable;

/// What this node knows of itself, without any source.
#[derive(Debug)]
pub(super) struct Known {
    /// The operator's settings for the table.
    pub(super) policy: PolicyConfig,
    /// This machine's addresses, the places of its Pods, and backends that do not answer.
    pub(super) view: NodeView,
    /// The ledger, as it was read last.
    pub(super) ledger: Reading,
    /// The devices; `None`: they could not be listed yet.
    pub(super) links: Option<Vec<Link>>,
    /// The guard was loaded: a plugin has written a ledger once.
    is_guard_loaded: bool,
    /// The Pods of this node, as a snapshot had them last.
    own_pods: Vec<Arc<LocalPod>>,
}

/// All that is known at a moment: what this node knows, and what the sources say.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    /// What this node knows of itself.
    pub(super) known: &'a Known,
    /// The last snapshot of the sources; `None` until there is one.
    pub(super) snapshot: Option<&'a Snapshot>,
    /// Where that comes from.
    pub(super) origin: Origin,
    /// Whether it is the cloud's present word.
    pub(super) freshness: Freshness,
    /// How long ago the Pods in the snapshot were known to be all that the cloud has on this node; `None`: unknown.
    pub(super) pods_age: Option<Duration>,
    /// The table that should be in force.
    pub(super) table: &'a ServiceTable,
    /// What was last known of the pool.
    pub(super) memory: &'a Memory,
}

impl Known {
    /// The facts at the start.
    pub(super) fn new(policy: PolicyConfig, view: NodeView) -> Self {
        Self {
            policy,
            view,
            ledger: Reading::default(),
            links: None,
            is_guard_loaded: false,
            own_pods: Vec::new(),
        }
    }

    /// The owner of each address in the ledger.
    pub(super) fn entries(&self) -> &BTreeMap<Key, Entry> {
        self.ledger.ledger.entries()
    }

    /// A plugin has written a ledger once.
    pub(super) fn has_ledger(&self) -> bool {
        !self.entries().is_empty() || self.is_guard_loaded
    }

    /// Whether a default route leads out of a device that is up. False until the devices have been listed.
    pub(super) fn is_link_up(&self) -> bool {
        let mut links = self.links.iter().flatten();
        links.any(|link| link.is_uplink && link.has_carrier)
    }

    /// Takes the ledger as it was just read; true if its entries have changed.
    pub(super) fn set_ledger(&mut self, reading: Reading) -> bool {
        let is_new = !is_same(reading.ledger.entries(), self.entries());
        self.ledger = reading;
        is_new
    }

    /// Takes whether the guard was loaded.
    pub(super) fn set_guard_loaded(&mut self, is_loaded: bool) -> bool {
        std::mem::replace(&mut self.is_guard_loaded, is_loaded) != is_loaded
    }

    /// Takes the Pods of this node in the snapshot in force; true if one of them has changed.
    pub(super) fn set_own_pods(&mut self, snapshot: Option<&Snapshot>) -> bool {
        let empty = BTreeMap::new();
        let pods = snapshot.map_or(&empty, |snapshot| &snapshot.pods);
        let is_same = |known: &Arc<LocalPod>, pod: &Arc<LocalPod>| Arc::ptr_eq(known, pod);
        let mut both = self.own_pods.iter().zip(pods.values());
        let is_new =
            self.own_pods.len() != pods.len() || !both.all(|(known, pod)| is_same(known, pod));
        if is_new {
            self.own_pods = pods.values().cloned().collect();
        }
        is_new
    }

    /// Takes this machine's network: addresses, default routes, nameservers.
    pub(super) fn set_addresses(&mut self, addresses: NodeView) -> bool {
        let view = NodeView {
            pods: Arc::clone(&self.view.pods),
            pod_routes: Arc::clone(&self.view.pod_routes),
            truth: self.view.truth.clone(),
            failing: Arc::clone(&self.view.failing),
            ..addresses
        };
        let is_new = view != self.view;
        self.view = view;
        is_new
    }

    /// Takes where the routes of this machine lead to its Pods, which move more often than its addresses.
    pub(super) fn set_pod_routes(&mut self, routes: Arc<Networks<()>>) -> bool {
        let is_new = routes != self.view.pod_routes;
        self.view.pod_routes = routes;
        is_new
    }

    /// Decides where the Pods of this node are: by the ledger while the source is stale, otherwise by the source. Their
    /// addresses are those of the ledger, also of a Pod that is to come back.
    pub(super) fn locate_pods(&mut self, freshness: Freshness) -> bool {
        let pods: BTreeSet<IpAddr> = self.ledger.ledger.addresses_of_pods().collect();
        let are_others = pods != *self.view.pods;
        if are_others {
            self.view.pods = Arc::new(pods);
        }
        let is_by_ledger = !freshness.is_fresh() && self.has_ledger();
        let truth =
            is_by_ledger.then(|| Arc::new(Truth::new(&self.ledger.ledger, self.links.as_deref())));
        let is_new = truth != self.view.truth;
        self.view.truth = truth;
        is_new || are_others
    }

    /// Takes the backends on this node that do not answer.
    pub(super) fn set_failing(&mut self, failing: Failing) -> bool {
        let is_new = failing != *self.view.failing;
        if is_new {
            self.view.failing = Arc::new(failing);
        }
        is_new
    }
}

impl<'a> Facts<'a> {
    /// The ledger joined with the Pods' objects.
    pub(super) fn members(&self, translation: &'a Policy) -> Members<'a> {
        let Reading { ledger, now, .. } = &self.known.ledger;
        Members {
            ledger,
            now: *now,
            snapshot: self.snapshot,
            translation,
        }
    }

    /// How many endpoints of this node are elsewhere than the snapshot says, and how many have no running Pod.
    pub(super) fn corrected(&self) -> (usize, usize) {
        let (Some(truth), Some(snapshot)) = (&self.known.view.truth, self.snapshot) else {
            return (0, 0);
        };
        let slices = snapshot.slices.values();
        let moves = slices.flat_map(|slice| truth.moves(slice));
        moves.fold((0, 0), |(moved, away), (_, _, what)| match what {
            Move::To(_) => (moved + 1, away),
            Move::Away => (moved, away + 1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Record;
    use crate::ledger::tests::{entry, key};
    use crate::model::NamespacedName;

    fn known() -> Known {
        Known::new(PolicyConfig::new("edge"), NodeView::default())
    }

    /// A ledger in which these Pods run.
    fn reading(pods: &[(&str, &str)]) -> Reading {
        let mut reading = Reading::default();
        for (name, address) in pods {
            let (key, entry) = (key(name), entry(address, name));
            reading.ledger.apply(Record::Put { key, entry });
        }
        reading
    }

    fn pod(name: &str) -> Arc<LocalPod> {
        Arc::new(LocalPod {
            name: NamespacedName::new("shop", name),
            uid: "".into(),
            node_name: "edge".into(),
            annotations: BTreeMap::new(),
            readiness: Box::default(),
        })
    }

    #[test]
    fn a_ledger_is_news_when_it_has_other_entries_and_not_when_it_is_read_again() {
        let mut known = known();
        assert!(!known.set_ledger(reading(&[])) && !known.has_ledger());
        assert!(known.set_ledger(reading(&[("web", "10.1.0.2")])) && known.has_ledger());
        assert!(!known.set_ledger(reading(&[("web", "10.1.0.2")])));
        assert!(known.set_ledger(reading(&[("web", "10.1.0.3")])));
        // The ledger is empty now; the guard shows that there was one.
        assert!(known.set_guard_loaded(true) && !known.set_guard_loaded(true));
        assert!(known.set_ledger(reading(&[])) && known.has_ledger());
    }

    #[test]
    fn pods_are_where_the_ledger_has_them_while_the_source_is_stale_and_only_where_there_is_one() {
        let mut known = known();
        assert!(!known.locate_pods(Freshness::Stale));
        known.set_ledger(reading(&[("web", "10.1.0.2")]));
        assert!(known.locate_pods(Freshness::Stale) && !known.locate_pods(Freshness::Stale));
        assert!(known.view.truth.is_some());
        known.set_ledger(reading(&[("web", "10.1.0.3")]));
        assert!(known.locate_pods(Freshness::Stale), "it has moved");
        assert!(known.locate_pods(Freshness::Fresh) && !known.locate_pods(Freshness::Fresh));
        assert!(known.view.truth.is_none());
        // What nobody else may take is known all the time.
        let taken = |known: &Known| {
            known
                .view
                .pods
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(taken(&known), ["10.1.0.3"]);
        known.set_ledger(reading(&[("web", "10.1.0.4")]));
        assert!(known.locate_pods(Freshness::Fresh) && !known.locate_pods(Freshness::Fresh));
        assert_eq!(taken(&known), ["10.1.0.4"]);
    }

    #[test]
    fn an_address_that_comes_costs_nothing_else_that_is_known_of_the_node() {
        let mut known = known();
        known.set_ledger(reading(&[("web", "10.1.0.2")]));
        known.locate_pods(Freshness::Stale);
        let before = known.view.clone();
        let addresses = |all: &[&str]| NodeView {
            local_addresses: Some(all.iter().map(|text| text.parse().unwrap()).collect()),
            ..NodeView::default()
        };
        assert!(known.set_addresses(addresses(&["192.0.2.1"])));
        assert!(!known.set_addresses(addresses(&["192.0.2.1"])));
        assert!(known.set_addresses(addresses(&["192.0.2.1", "192.0.2.2"])));
        let asks = NodeView {
            nameservers: ["192.0.2.53".parse().unwrap()].into(),
            ..addresses(&["192.0.2.1", "192.0.2.2"])
        };
        assert!(
            known.set_addresses(asks.clone()),
            "whatever it is that is another"
        );
        assert!(!known.set_addresses(asks));
        assert_eq!(known.view.truth, before.truth);
        assert_eq!(known.view.failing, before.failing);
    }

    #[test]
    fn a_route_to_a_pod_is_news_and_no_other_address_of_the_node() {
        let mut known = known();
        let routes = |all: &[&str]| -> Arc<Networks<()>> {
            let all = all.iter().map(|text| (text.parse().unwrap(), ()));
            Arc::new(all.collect())
        };
        let one = routes(&["10.9.0.2/32"]);
        let view = NodeView {
            pod_routes: Arc::clone(&one),
            ..NodeView::default()
        };
        assert!(!known.set_addresses(view.clone()));
        assert!(known.set_pod_routes(one) && !known.set_pod_routes(view.pod_routes.clone()));
        assert!(!known.set_addresses(NodeView::default()), "they stay");
        assert_eq!(known.view.pod_routes, view.pod_routes);
        assert!(known.set_pod_routes(routes(&[])));
    }

    #[test]
    fn a_pod_of_this_node_is_news_when_its_object_is_another() {
        let (mut known, mut snapshot) = (known(), Snapshot::default());
        assert!(!known.set_own_pods(None));
        let web = pod("web");
        snapshot.pods.insert(web.name.clone(), web);
        assert!(known.set_own_pods(Some(&snapshot)) && !known.set_own_pods(Some(&snapshot)));
        let again = pod("web");
        snapshot.pods.insert(again.name.clone(), again);
        assert!(known.set_own_pods(Some(&snapshot)));
        assert!(known.set_own_pods(None));
    }
}
