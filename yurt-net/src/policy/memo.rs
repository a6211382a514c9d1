//! The inputs and results of the last compile, so that the next one does only new work.
//!
//! Pure. In: the snapshot. Out: the objects that were replaced; the Services that these concern, compiled again; the
//! table in step with them. Rules in order: (1) an object was replaced when its `Arc` is another one: finding out costs
//! a walk over pointers, or less if the source says which slices it has touched; (2) a change of slices alone moves
//! only endpoints, so the entries of their Services are replaced in place, unless their rejections change; (3) after
//! any other change, conflicts, prefixes and rejections are settled again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::conflicts::{self, Claimant};
use super::edge::{self, ServiceAddresses};
use super::endpoints::{Slices, endpoint_set};
use super::environment::Environment;
use super::established::Suspects;
use super::health::health_check;
use super::{established, health, prefixes};
use crate::model::{
    Endpoint, EndpointSlice, Kind, MAX_PORTS, NamespacedName, PoolService, Rejection, Service,
    ServicePort, Snapshot, Touched,
};
use crate::table::{Frontend, HealthCheck, ServiceEntry, ServiceKey, ServiceTable};
use crate::text;

/// Slices that are looked up by their names: each that comes or goes moves those after it. With more, a walk over all
/// of them takes less.
const NAMES: usize = 64;

/// Things said of one Service.
const MAX_REASONS: usize = 20;

/// The last compile: what it read, and the table. An entry that comes out equal keeps its `Arc`.
#[derive(Clone, Debug, Default)]
pub struct Memo {
    environment: Option<Environment>,
    /// Rejections of the snapshot and of the environment.
    given: Vec<Rejection>,
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

/// Most Services have one port, and its endpoints in one slice.
type Few<T> = SmallVec<[Arc<T>; 1]>;

/// One Service, with the inputs and the result of its last compile.
#[derive(Clone, Debug, Default)]
struct Remembered {
    service: Option<Arc<Service>>,
    /// In any order, like the PoolServices; without those of headless Services.
    slices: Few<EndpointSlice>,
    pool_services: Few<PoolService>,
    /// With every frontend that the Service asks for; empty when it is not served.
    entries: Few<ServiceEntry>,
    /// Without the frontends that another Service keeps: as they are in the table.
    shown: Few<ServiceEntry>,
    health_check: Option<HealthCheck>,
    /// Reasons of rejections of the Service.
    reasons: Vec<String>,
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

    /// Brings the table in step; returns the rejections that it did not have before, and the backends whose established
    /// flows may have lost them.
    pub(super) fn update(
        &mut self,
        snapshot: &Snapshot,
        touched: &Touched,
        environment: Environment,
        rejections: &[Rejection],
    ) -> (Vec<Rejection>, Suspects) {
        let mut lost = Suspects::default();
        let mut stale = self.take_up(snapshot, touched);
        let given = snapshot.rejections.iter().chain(rejections);
        let (mut is_other_truth, mut is_other_failing) = (false, false);
        if let Some(known) = &mut self.environment {
            is_other_truth = known.truth != environment.truth;
            is_other_failing = known.failing != environment.failing;
            // Compared here, so that the comparison below is about the other fields.
            known.truth.clone_from(&environment.truth);
            known.failing.clone_from(&environment.failing);
        }
        let is_same_environment = self.environment.as_ref() == Some(&environment);
        let mut is_settled = is_same_environment
            && stale.is_endpoints_only
            && self.given.iter().eq(given.clone())
            // Only files say where objects were read, and a change of a file reads all of them again.
            && snapshot.manifests.is_empty()
            && !self.has_manifests;
        self.has_manifests = !snapshot.manifests.is_empty();
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
        if !is_same_environment {
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
                remembered.compile(environment);
                is_settled &= remembered.reasons == reasons;
            }
        }
        for name in &stale.names {
            let Some(remembered) = self.services.get_mut(name) else {
                continue;
            };
            if is_settled {
                remembered.show_in_place(&mut self.table.services, &mut lost);
                remembered.count_in_place(&mut self.table.health_checks);
            }
            if remembered.is_void() {
                self.services.remove(name);
            }
        }
        if is_settled {
            return (Vec::new(), lost);
        }
        self.given = given.cloned().collect();
        let old = std::mem::take(&mut self.table.services);
        let new_rejections = self.settle(snapshot);
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
        if !gone.0.is_empty() {
            for name in &stale.names {
                if let Some(remembered) = services.get_mut(name) {
                    gone.take_out_of(&mut remembered.slices);
                    gone.take_out_of(&mut remembered.pool_services);
                }
            }
        }
        stale
    }

    /// Settles conflicts between Services, and builds the table again.
    fn settle(&mut self, snapshot: &Snapshot) -> Vec<Rejection> {
        let Some(environment) = &self.environment else {
            return Vec::new();
        };
        let conflicts = settle_conflicts(&mut self.services);
        let mut rejections = self.given.clone();
        let mut cluster_ips = Vec::new();
        for (name, remembered) in &self.services {
            let reasons = remembered.reasons.iter().cloned();
            rejections.extend(reasons.map(|reason| snapshot.reject(Kind::Service, name, reason)));
            if let Some(service) = remembered.served(environment) {
                cluster_ips.extend(&service.cluster_ips);
            }
        }
        let asked = self.services.values().filter_map(|remembered| {
            let check = remembered.health_check.clone()?;
            Some((remembered.service.as_ref()?.created_at, check))
        });
        let shown = self
            .services
            .values()
            .flat_map(|remembered| &remembered.shown);
        let (health_checks, without) = health::settle(asked.collect(), shown);
        for (loser, reason) in conflicts.into_iter().chain(without) {
            rejections.push(snapshot.reject(Kind::Service, &loser, reason));
        }
        let cluster_prefixes = prefixes::cluster_prefixes(
            &environment.service_cidrs,
            snapshot,
            &cluster_ips,
            &mut rejections,
        );
        rejections.sort_unstable();
        rejections.dedup();

        let Self {
            table, services, ..
        } = self;
        let is_new = |rejection: &&Rejection| table.rejections.binary_search(rejection).is_err();
        let new = rejections.iter().filter(is_new).cloned().collect();
        environment.topology.node().clone_into(&mut table.node);
        environment.topology.pool().clone_into(&mut table.pool);
        table.zone.clone_from(&environment.zone);
        let shown = services.values().flat_map(|remembered| &remembered.shown);
        table.services = shown.cloned().collect();
        table.on_node = edge::on_node(&table.services, environment.local_addresses.as_ref());
        table.serves_packets = environment.serves_packets;
        table.cluster_prefixes = cluster_prefixes;
        table.health_checks = health_checks;
        table.rejections = rejections;
        new
    }
}

/// An object that is no longer there, or that is new; one that was replaced is both, in this order.
enum Step<'a, T> {
    Gone(&'a Arc<T>),
    Came(&'a Arc<T>),
}

impl<T> Step<'_, T> {
    fn object(&self) -> &Arc<T> {
        match self {
            Self::Gone(object) | Self::Came(object) => object,
        }
    }

    fn came(&self) -> Option<&Arc<T>> {
        match self {
            Self::Gone(_) => None,
            Self::Came(object) => Some(object),
        }
    }
}

/// The objects that are gone, by their address in memory: nobody else gets it, for each is in the list of its Service
/// until all of them are taken out of it together. A Service may have ten thousand slices that change at once.
#[derive(Default)]
struct Gone(BTreeSet<usize>);

impl Gone {
    fn address<T>(object: &Arc<T>) -> usize {
        Arc::as_ptr(object).addr()
    }

    /// Adds what came to the list of its Service, and notes what is gone.
    fn follow<T>(&mut self, step: &Step<'_, T>, list: &mut Few<T>) {
        match step {
            Step::Gone(object) => {
                self.0.insert(Self::address(object));
            }
            Step::Came(object) => list.push(Arc::clone(object)),
        }
    }

    fn take_out_of<T>(&self, list: &mut Few<T>) {
        list.retain(|object| !self.0.contains(&Self::address(object)));
    }
}

trait Named {
    fn name(&self) -> &NamespacedName;
}

impl Named for Service {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

impl Named for EndpointSlice {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

impl Named for PoolService {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

/// Brings `known`, which is sorted by name, in step with `now`, and reports each step.
///
/// Identity, not equality: sources keep the `Arc` of what did not change.
fn step_all<T: Named>(
    known: &mut Vec<Arc<T>>,
    now: &BTreeMap<NamespacedName, Arc<T>>,
    mut tell: impl FnMut(Step<'_, T>),
) {
    let (mut at, mut has_moved) = (0, false);
    for (key, new) in now {
        while let Some(old) = known.get(at)
            && !Arc::ptr_eq(old, new)
            && old.name() < key
        {
            tell(Step::Gone(old));
            (at, has_moved) = (at + 1, true);
        }
        match known.get_mut(at) {
            Some(old) if Arc::ptr_eq(old, new) => at += 1,
            Some(old) if old.name() == key => {
                tell(Step::Gone(old));
                tell(Step::Came(new));
                old.clone_from(new);
                at += 1;
            }
            _ => {
                tell(Step::Came(new));
                has_moved = true;
            }
        }
    }
    for old in known.iter().skip(at) {
        tell(Step::Gone(old));
        has_moved = true;
    }
    if has_moved {
        known.clear();
        known.extend(now.values().cloned());
    }
}

/// The same where only these names may have changed.
fn step_named<T: Named>(
    known: &mut Vec<Arc<T>>,
    now: &BTreeMap<NamespacedName, Arc<T>>,
    names: &BTreeSet<NamespacedName>,
    mut tell: impl FnMut(Step<'_, T>),
) {
    for name in names {
        let place = known.binary_search_by(|object| object.name().cmp(name));
        match (place, now.get(name)) {
            (Ok(at), Some(new)) if Arc::ptr_eq(&known[at], new) => {}
            (Ok(at), Some(new)) => {
                tell(Step::Gone(&known[at]));
                tell(Step::Came(new));
                known[at] = Arc::clone(new);
            }
            (Ok(at), None) => tell(Step::Gone(&known.remove(at))),
            (Err(at), Some(new)) => {
                tell(Step::Came(new));
                known.insert(at, Arc::clone(new));
            }
            (Err(_), None) => {}
        }
    }
}

impl Remembered {
    /// The Service, if this proxy serves it.
    fn served(&self, environment: &Environment) -> Option<&Arc<Service>> {
        let service = self.service.as_ref()?;
        edge::is_served(service, environment).then_some(service)
    }

    /// No object refers to it any more.
    fn is_void(&self) -> bool {
        self.service.is_none() && self.slices.is_empty() && self.pool_services.is_empty()
    }

    /// Compiles the entries again. `shown` stays as it was.
    fn compile(&mut self, environment: &Environment) {
        self.reasons.clear();
        let unread = self.service.as_deref().and_then(edge::unread_listen);
        self.reasons.extend(unread);
        let Some(service) = self.served(environment).cloned() else {
            self.entries.clear();
            self.health_check = None;
            return;
        };
        let topology_keys = service.topology_keys.as_deref();
        let (closure, unknown_key) = environment.topology.closure(topology_keys);
        self.reasons.extend(unknown_key);
        let source_ranges = edge::source_ranges(&service);
        let addresses = ServiceAddresses::new(
            &service,
            &source_ranges,
            &self.pool_services,
            environment,
            &mut self.reasons,
        );
        let mut ports: Vec<&ServicePort> = service.ports.iter().take(MAX_PORTS).collect();
        if service.ports.len() > MAX_PORTS {
            self.reasons.push(format!(
                "it has more than {MAX_PORTS} ports: those after the first {MAX_PORTS} are left out"
            ));
        }
        let mut slices = Slices::new(&self.slices, environment);
        self.reasons.extend(slices.unfit(environment));
        self.health_check = health_check(
            &service,
            &self.pool_services,
            &slices,
            environment,
            &mut self.reasons,
        );
        self.reasons.extend(slices.keep_within_limits(&ports));
        ports.sort_by_key(|port| (&port.name, port.protocol));
        let old = std::mem::take(&mut self.entries);
        self.entries.reserve_exact(ports.len());
        for port in ports {
            let key = ServiceKey {
                namespace: service.name.namespace.clone(),
                name: service.name.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
            };
            if self.entries.last().is_some_and(|last| last.key == key) {
                self.reasons.push(format!(
                    "port {} with {} is there twice: the later one is left out",
                    text::quoted(&key.port),
                    key.protocol
                ));
                continue;
            }
            let frontends = addresses.frontends(port, &mut self.reasons);
            let set = |any: IpAddr| {
                endpoint_set(
                    &service,
                    port,
                    any,
                    closure,
                    &slices,
                    &frontends,
                    environment,
                )
            };
            let mut entry = ServiceEntry {
                key,
                closure,
                internal_policy: service.internal_policy,
                external_policy: service.external_policy,
                affinity_seconds: service.affinity_seconds,
                source_ranges: source_ranges.clone(),
                v4: set(Ipv4Addr::UNSPECIFIED.into()),
                v6: set(Ipv6Addr::UNSPECIFIED.into()),
                frontends: frontends.into(),
            };
            if let Some(last) = self.entries.last() {
                entry.v4.share(&last.v4);
                entry.v6.share(&last.v6);
            }
            // `shown` first: the last table holds it.
            let entry = keep_equal(&[&self.shown, &old], entry);
            self.entries.push(entry);
        }
        // Each reason is a line for people, and there may be one for each of a thousand addresses.
        let more = self.reasons.len().saturating_sub(MAX_REASONS);
        if more > 1 {
            self.reasons.truncate(MAX_REASONS);
            self.reasons
                .push(format!("and {more} more of the same Service"));
        }
    }

    /// After a change of endpoints alone: says how many are ready here, if the Service has its health check.
    fn count_in_place(&self, table: &mut [HealthCheck]) {
        if let Some(check) = &self.health_check
            && let Ok(at) = table.binary_search_by_key(&check.port, |other| other.port)
            && table[at].service == check.service
        {
            table[at].local_endpoints = check.local_endpoints;
        }
    }

    /// After a change of endpoints alone: puts each entry in its old place, with its old frontends.
    fn show_in_place(&mut self, table: &mut [Arc<ServiceEntry>], lost: &mut Suspects) {
        for (shown, entry) in self.shown.iter_mut().zip(&self.entries) {
            let new = match shown.frontends == entry.frontends {
                true => entry.clone(),
                false => keep_equal(
                    &[std::slice::from_ref(shown)],
                    ServiceEntry {
                        frontends: shown.frontends.clone(),
                        ..ServiceEntry::clone(entry)
                    },
                ),
            };
            if let Ok(at) = table.binary_search_by(|other| other.key.cmp(&new.key))
                && !Arc::ptr_eq(shown, &new)
            {
                established::lost_by(shown, Some(&new), lost);
                table[at] = new.clone();
                *shown = new;
            }
        }
    }
}

/// The old one of two equal entries; each list is sorted by key.
fn keep_equal(old: &[&[Arc<ServiceEntry>]], entry: ServiceEntry) -> Arc<ServiceEntry> {
    let same = old.iter().find_map(|list| {
        let at = list.binary_search_by(|old| old.key.cmp(&entry.key)).ok()?;
        Some(&list[at]).filter(|old| ***old == entry)
    });
    match same {
        Some(old) => old.clone(),
        None => Arc::new(entry),
    }
}

/// Removes from each service port the frontends that another one keeps; returns the losers with the reasons.
fn settle_conflicts(
    services: &mut BTreeMap<NamespacedName, Remembered>,
) -> Vec<(NamespacedName, String)> {
    let claimants = services.values().flat_map(|remembered| {
        let created_at = remembered.service.as_ref().map_or(0, |s| s.created_at);
        let entries = remembered.entries.iter().cloned();
        entries.map(move |entry| Claimant { entry, created_at })
    });
    let claimants: Vec<_> = claimants.collect();
    let lost = conflicts::losses(&claimants);
    let mut reasons = Vec::with_capacity(lost.len());
    let mut losses = lost.iter().peekable();
    let mut first = 0;
    for (name, remembered) in services {
        let range = first..first + remembered.entries.len();
        first = range.end;
        if losses.peek().is_none_or(|loss| loss.loser >= range.end) {
            remembered.shown.clone_from(&remembered.entries);
            continue;
        }
        let mut shown = Few::with_capacity(range.len());
        let mut said = 0;
        for (index, entry) in range.zip(&remembered.entries) {
            let mut taken = BTreeSet::new();
            while let Some(loss) = losses.next_if(|loss| loss.loser == index) {
                taken.insert((loss.address, loss.port));
                said += 1;
                if said > MAX_REASONS {
                    continue;
                }
                let protocol = entry.key.protocol;
                let endpoint = SocketAddr::new(loss.address, loss.port);
                let (winner, why) = (&claimants[loss.winner].entry.key, loss.why);
                let reason = format!("{endpoint}/{protocol} belongs to {winner}: {why}");
                reasons.push((name.clone(), reason));
            }
            let frontends = entry.frontends.iter().copied();
            let frontends: Vec<Frontend> = frontends
                .filter(|f| !taken.contains(&(f.address, f.port)))
                .collect();
            shown.push(match taken.is_empty() {
                true => entry.clone(),
                false => keep_equal(
                    &[&remembered.shown],
                    ServiceEntry {
                        frontends: frontends.into(),
                        ..ServiceEntry::clone(entry)
                    },
                ),
            });
        }
        remembered.shown = shown;
        if let Some(more) = said.checked_sub(MAX_REASONS).filter(|more| *more > 0) {
            reasons.push((
                name.clone(),
                format!("and {more} more addresses and ports that others have"),
            ));
        }
    }
    reasons
}
