//! The inputs and results of the last compile, so that the next one does only new work.
//!
//! Pure. In: the snapshot. Out: the objects that were replaced; the Services that these concern, compiled again; the
//! table in step with them. Rules in order: (1) an object was replaced when its `Arc` is another one: finding out costs
//! a walk over pointers, or less if the source says which slices it has touched; (2) a change of slices alone moves
//! only endpoints, so the entries of their Services are replaced in place, unless their rejections change; (3) after
//! any other change the table is built again, and what depends on all Services with it; (4) conflicts are settled only
//! where a Service asks for something else than before, and what is said of a Service is made anew only where it may
//! differ: many Services that ask in vain cost others no more than good ones.
#![forbid(unsafe_code)]

mod remembered;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::remembered::{Few, Remembered, Unsettled};
use self::steps::{Gone, Step, step_all, step_named};
use super::conflicts::{self, Claimant, Loss, Place, Places};
use super::environment::Environment;
use super::established::Suspects;
use super::pod_networks::asks_for;
use super::{edge, established, health, prefixes};
use crate::model::{
    Endpoint, EndpointSlice, NamespacedName, PoolService, Protocol, Rejection, Service, Snapshot,
    Touched,
};
use crate::table::ServiceTable;

/// Slices that are looked up by their names: each that comes or goes moves those after it. With more, a walk over all
/// of them takes less.
const NAMES: usize = 64;

/// The last compile: what it read, and the table. An entry that comes out equal keeps its `Arc`.
#[derive(Clone, Debug, Default)]
pub struct Memo {
    environment: Option<Environment>,
    /// Rejections of the snapshot and of the environment.
    given: Vec<Arc<Rejection>>,
    /// Those, and of what is no Service; sorted.
    said_of_others: Vec<Arc<Rejection>>,
    /// The snapshot has the files of its objects.
    has_manifests: bool,
    inputs: Inputs,
    /// By each name that a Service, a slice or a PoolService has or refers to.
    services: BTreeMap<NamespacedName, Remembered>,
    table: ServiceTable,
}

/// The objects of the last compile, in the order of their names. While they are held, no other object can get their
/// addresses, so an equal address means the same object.
#[derive(Clone, Debug, Default)]
struct Inputs {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    pool_services: Vec<Arc<PoolService>>,
}

/// The Services that have to be compiled again.
struct Stale {
    names: BTreeSet<NamespacedName>,
    /// Only slices were replaced.
    is_endpoints_only: bool,
}

impl Memo {
    /// The table of the last compile.
    pub fn table(&self) -> &ServiceTable {
        &self.table
    }

    /// The environment of the last compile.
    pub(super) fn environment(&self) -> Option<&Environment> {
        self.environment.as_ref()
    }

    /// Brings the table in step; returns the rejections that it did not have before, and the backends whose established
    /// flows may have lost them.
    #[expect(
        clippy::too_many_lines,
        reason = "the steps from an event to a table, each of which says what is left for the next"
    )]
    pub(super) fn update(
        &mut self,
        snapshot: &Snapshot,
        touched: &Touched,
        environment: Environment,
        rejections: &[Rejection],
    ) -> (Vec<Arc<Rejection>>, Suspects) {
        let mut lost = Suspects::default();
        let mut stale = self.take_up(snapshot, touched);
        let given = snapshot.rejections.iter().chain(rejections);
        let mut moved = None;
        let [mut is_other_truth, mut is_other_failing] = [false; 2];
        if let Some(known) = &mut self.environment {
            let is_other = known.pods != environment.pods;
            moved = is_other.then(|| known.pods.moved(&environment.pods));
            is_other_truth = known.truth != environment.truth;
            is_other_failing = known.failing != environment.failing;
            // Compared here, so that the comparison below is about the other fields.
            known.pods.clone_from(&environment.pods);
            known.truth.clone_from(&environment.truth);
            known.failing.clone_from(&environment.failing);
        }
        let is_same_environment = self.environment.as_ref() == Some(&environment);
        let mut is_settled = is_same_environment
            && stale.is_endpoints_only
            && self.given.iter().map(|one| &**one).eq(given.clone())
            // Only files say where objects were read, and a change of a file reads all of them again.
            && snapshot.manifests.is_empty()
            && !self.has_manifests;
        let had_manifests =
            std::mem::replace(&mut self.has_manifests, !snapshot.manifests.is_empty());
        if let Some(moved) = moved {
            // Pods come and go, and nearly no Service asks for their addresses.
            let is_concerned = |of: &Remembered| {
                let service = of.service.as_ref();
                service.is_some_and(|service| asks_for(&moved, service, &of.pool_services))
            };
            let concerned = self.services.iter().filter(|(_, of)| is_concerned(of));
            stale.names.extend(concerned.map(|(name, _)| name.clone()));
        }
        if is_other_truth {
            // The truth only moves endpoints, and only those of this node.
            let has_pods = |slices: &Few<EndpointSlice>| slices.iter().any(|s| !s.pods.is_empty());
            let concerned = self.services.iter().filter(|(_, of)| has_pods(&of.slices));
            stale.names.extend(concerned.map(|(name, _)| name.clone()));
        }
        if is_other_failing {
            // A failing probe only takes away endpoints of this node. They may lack a Pod, and have the address of one.
            let is_here = |endpoint: Endpoint| environment.topology.is_here(&endpoint);
            let has_local = |slices: &Few<EndpointSlice>| {
                slices.iter().any(|s| s.endpoints.iter().any(is_here))
            };
            let concerned = self.services.iter().filter(|(_, of)| has_local(&of.slices));
            stale.names.extend(concerned.map(|(name, _)| name.clone()));
        }
        let environment = self.environment.insert(environment);
        let mut unsettled = Unsettled::nothing();
        if !is_same_environment {
            unsettled = Unsettled::everything();
            for remembered in self.services.values_mut() {
                remembered.compile(environment);
            }
        }
        if is_same_environment {
            for name in &stale.names {
                let Some(remembered) = self.services.get_mut(name) else {
                    continue;
                };
                let reasons = std::mem::take(&mut remembered.reasons);
                remembered.follow(environment, &mut unsettled);
                is_settled &= remembered.reasons == reasons;
            }
            is_settled &= unsettled.is_nothing();
        }
        let mut has_fewer = false;
        for name in &stale.names {
            let Some(remembered) = self.services.get_mut(name) else {
                continue;
            };
            remembered.count_in_place(&mut self.table.health_checks);
            if is_settled {
                remembered.show_in_place(&mut self.table.services, &mut lost);
            }
            if remembered.is_void() {
                has_fewer |= !remembered.said.is_empty();
                self.services.remove(name);
            }
        }
        if is_settled {
            return (Vec::new(), lost);
        }
        if !self.given.iter().map(|one| &**one).eq(given.clone()) {
            self.given = given.cloned().map(Arc::new).collect();
        }
        let old = std::mem::take(&mut self.table.services);
        self.settle_conflicts(&unsettled);
        if unsettled.are_health_checks {
            self.settle_health_checks();
        }
        let given = self.build(snapshot);
        let is_anew = had_manifests || self.has_manifests;
        let new_rejections = self.say(snapshot, given, is_anew, has_fewer);
        (
            new_rejections,
            established::lost(&old, &self.table.services),
        )
    }

    /// Takes up the objects that were replaced.
    fn take_up(&mut self, snapshot: &Snapshot, touched: &Touched) -> Stale {
        let Self {
            inputs, services, ..
        } = self;
        if services.is_empty() {
            // A map that is built at once has no gaps; one that grows does.
            let names = snapshot.services.keys();
            *services = names
                .map(|name| (name.clone(), Remembered::default()))
                .collect();
        }
        let mut stale = Stale {
            names: BTreeSet::new(),
            is_endpoints_only: true,
        };
        let mut gone = Gone::default();
        if *touched == Touched::Anything {
            step_all(&mut inputs.services, &snapshot.services, |step| {
                let service = step.object();
                stale.is_endpoints_only = false;
                stale.names.insert(service.name.clone());
                let remembered = services.entry(service.name.clone()).or_default();
                remembered.service = step.came().cloned();
            });
            step_all(&mut inputs.pool_services, &snapshot.pool_services, |step| {
                let object = step.object();
                let owner = object.owner();
                stale.is_endpoints_only = false;
                stale.names.insert(owner.clone());
                let list = &mut services.entry(owner).or_default().pool_services;
                gone.follow(&step, list);
            });
        }
        let take_slice = |step: Step<'_, EndpointSlice>| {
            let slice = step.object();
            if !slice.is_headless {
                let owner = slice.owner();
                stale.names.insert(owner.clone());
                let list = &mut services.entry(owner).or_default().slices;
                gone.follow(&step, list);
            }
        };
        match touched {
            Touched::Slices(names) if names.len() <= NAMES => {
                step_named(&mut inputs.slices, &snapshot.slices, names, take_slice);
            }
            _ => step_all(&mut inputs.slices, &snapshot.slices, take_slice),
        }
        if !gone.is_empty() {
            for name in &stale.names {
                if let Some(remembered) = services.get_mut(name) {
                    gone.take_out_of(&mut remembered.slices);
                    gone.take_out_of(&mut remembered.pool_services);
                }
            }
        }
        stale
    }

    /// Removes from each service port the frontends that another one keeps, where that is not settled.
    fn settle_conflicts(&mut self, Unsettled { places, .. }: &Unsettled) {
        let lost = match places.are_none() {
            true => Vec::new(),
            false => self.losses(places),
        };
        let mut lost = lost.into_iter().peekable();
        for (service, remembered) in self.services.values_mut().enumerate() {
            let of_service = std::iter::from_fn(|| lost.next_if(|(loser, _)| *loser == service));
            let losses = of_service.map(|(_, loss)| loss).collect();
            remembered.lose(losses, places);
        }
    }

    /// The frontends at these places that Services do not get.
    fn losses(&self, places: &Places) -> Vec<(usize, Loss)> {
        let asked = self
            .services
            .values()
            .filter_map(|of| of.health_check.as_ref());
        let mut health_ports = BTreeMap::new();
        for check in asked {
            health_ports.entry(check.port).or_insert(&check.service);
        }
        let environment = self.environment.as_ref();
        let reserved = |(address, port, protocol): Place| {
            let owner = health_ports
                .get(&port)
                .filter(|_| protocol == Protocol::Tcp)?;
            let is_own = environment?.protected.is_own(address);
            is_own.then_some(*owner)
        };
        let services = self.services.values().enumerate();
        let claimants = services.flat_map(|(service, remembered)| {
            let created_at = remembered.created_at;
            let entries = (0..).zip(&remembered.entries);
            entries.map(move |(index, entry)| Claimant {
                service,
                index,
                entry,
                created_at,
            })
        });
        conflicts::losses(claimants, places, reserved)
    }

    /// Settles who has the health check ports.
    fn settle_health_checks(&mut self) {
        let services = self.services.values();
        let asked = services.filter_map(|of| Some((of.created_at, of.health_check.clone()?)));
        let shown = self.services.values().flat_map(|of| &of.shown);
        let most = self
            .environment
            .as_ref()
            .map_or(0, |of| of.max_health_checks);
        let (health_checks, mut without) = health::settle(asked.collect(), shown, most);
        self.table.health_checks = health_checks;
        for (name, remembered) in &mut self.services {
            remembered.refuse_health_check(without.remove(name));
        }
    }

    /// Builds the table again, but what is said in it; returns what is said of others than Services.
    fn build(&mut self, snapshot: &Snapshot) -> Vec<Arc<Rejection>> {
        let Self {
            table, services, ..
        } = self;
        let Some(environment) = &self.environment else {
            return Vec::new();
        };
        let served = services.values().filter_map(|of| of.served(environment));
        let cluster_ips: Vec<_> = served
            .flat_map(|of| of.cluster_ips.iter().copied())
            .collect();
        let mut rejections = Vec::new();
        table.cluster_prefixes = prefixes::cluster_prefixes(
            &environment.service_cidrs,
            snapshot,
            &cluster_ips,
            &mut rejections,
        );
        environment.topology.node().clone_into(&mut table.node);
        environment.topology.pool().clone_into(&mut table.pool);
        table.zone.clone_from(&environment.zone);
        let shown = services.values().flat_map(|remembered| &remembered.shown);
        table.services = shown.cloned().collect();
        table.on_node = edge::on_node(&table.services, environment.local_addresses.as_ref());
        table.serves_packets = environment.serves_packets;
        let given = self.given.iter().cloned();
        given.chain(rejections.into_iter().map(Arc::new)).collect()
    }

    /// Brings what is said in the table in step; returns what was not said before. `others`: what is said of others
    /// than Services; `is_anew`: what is said of every Service may differ; `has_fewer`: one of which something was said
    /// is gone.
    fn say(
        &mut self,
        snapshot: &Snapshot,
        mut others: Vec<Arc<Rejection>>,
        is_anew: bool,
        has_fewer: bool,
    ) -> Vec<Arc<Rejection>> {
        let mut has_changed = has_fewer;
        let mut places = snapshot.places();
        for (name, remembered) in &mut self.services {
            if is_anew || remembered.is_behind() {
                has_changed |= remembered.say(name, &mut places);
            }
        }
        others.sort_unstable();
        others.dedup();
        if others != self.said_of_others {
            self.said_of_others = others;
            has_changed = true;
        }
        if !has_changed {
            return Vec::new();
        }
        let of_services = self.services.values().flat_map(|of| of.said.iter());
        let rejections = merged(&self.said_of_others, of_services.cloned().collect());
        let new = new_ones(&self.table.rejections, &rejections);
        self.table.rejections = rejections;
        new
    }
}

/// Merges two sorted lists, of which the first is the shorter one.
fn merged(few: &[Arc<Rejection>], many: Vec<Arc<Rejection>>) -> Vec<Arc<Rejection>> {
    if few.is_empty() {
        return many;
    }
    let mut all = Vec::with_capacity(few.len() + many.len());
    let mut rest = &many[..];
    for one in few {
        let (before, behind) = rest.split_at(rest.partition_point(|other| other < one));
        all.extend_from_slice(before);
        if behind.first() != Some(one) {
            all.push(one.clone());
        }
        rest = behind;
    }
    all.extend_from_slice(rest);
    all
}

/// Those of `new` that are not in `old`. Both are sorted, and mostly the same.
fn new_ones(old: &[Arc<Rejection>], new: &[Arc<Rejection>]) -> Vec<Arc<Rejection>> {
    let mut old = old.iter().peekable();
    let is_new = |one: &&Arc<Rejection>| {
        while old
            .next_if(|other| !Arc::ptr_eq(other, one) && other < one)
            .is_some()
        {}
        old.next_if(|other| other == one).is_none()
    };
    new.iter().filter(is_new).cloned().collect()
}
