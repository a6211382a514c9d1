//! One Service, with the inputs and the result of its last compile.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::super::conflicts::{self, Loss};
use super::super::edge::{self, ServiceAddresses};
use super::super::endpoints::{Slices, endpoint_set};
use super::super::environment::Environment;
use super::super::established::{Suspects, lost_by};
use super::super::health::{Refusal, health_check};
use crate::model::{
    EndpointSlice, Kind, MAX_PORTS, NamespacedName, Places, PoolService, Rejection, Service,
    ServicePort,
};
use crate::table::{Frontend, FrontendKind, HealthCheck, ServiceEntry, ServiceKey};
use crate::text;

/// Things said of one Service, for each kind of reason.
const MAX_REASONS: usize = 20;

/// Most Services have one port, and its endpoints in one slice.
pub(super) type Few<T> = SmallVec<[Arc<T>; 1]>;

/// One Service, with the inputs and the result of its last compile.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    pub(super) service: Option<Arc<Service>>,
    /// In any order, like the PoolServices; without those of headless Services.
    pub(super) slices: Few<EndpointSlice>,
    pub(super) pool_services: Few<PoolService>,
    /// With every frontend that the Service asks for; empty when it is not served.
    pub(super) entries: Few<ServiceEntry>,
    /// Without the frontends that another Service keeps: as they are in the table.
    pub(super) shown: Few<ServiceEntry>,
    pub(super) health_check: Option<HealthCheck>,
    /// `creationTimestamp` of the Service that the entries are of, seconds since 1970; 0 = not known.
    pub(super) created_at: u64,
    /// Reasons of rejections that the Service has by itself.
    pub(super) reasons: Box<[String]>,
    /// The frontends that another Service keeps, sorted.
    losses: Box<[Loss]>,
    /// Why it does not have its health check.
    refusal: Option<Box<Refusal>>,
    /// All that is said of it, sorted.
    pub(super) said: Box<[Arc<Rejection>]>,
    /// `shown` or `said` may be those of an earlier compile.
    is_behind: bool,
}

/// What has to be settled anew between Services, because one of them asks for something else than before.
pub(super) struct Unsettled {
    pub(super) places: conflicts::Places,
    pub(super) are_health_checks: bool,
}

impl Unsettled {
    /// Nothing.
    pub(super) fn nothing() -> Self {
        Self {
            places: conflicts::Places::none(),
            are_health_checks: false,
        }
    }

    /// All there is.
    pub(super) fn everything() -> Self {
        Self {
            places: conflicts::Places::All,
            are_health_checks: true,
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.places.are_none() && !self.are_health_checks
    }

    fn add(&mut self, entries: &[Arc<ServiceEntry>]) {
        for entry in entries {
            self.places.add(entry);
            let mut frontends = entry.frontends.iter();
            self.are_health_checks |= frontends.any(|f| f.kind == FrontendKind::NodePort);
        }
    }
}

impl Remembered {
    /// The Service, if this proxy serves it.
    pub(super) fn served(&self, environment: &Environment) -> Option<&Arc<Service>> {
        let service = self.service.as_ref()?;
        edge::is_served(service, environment).then_some(service)
    }

    /// No object refers to it any more.
    pub(super) fn is_void(&self) -> bool {
        self.service.is_none() && self.slices.is_empty() && self.pool_services.is_empty()
    }

    /// Compiles it again. What it asks for, and has not asked for before, is settled anew.
    pub(super) fn follow(&mut self, environment: &Environment, unsettled: &mut Unsettled) {
        let entries = self.entries.clone();
        let (created_at, health_port) = (self.created_at, self.health_port());
        self.compile(environment);
        let is_same = |(old, new): (&Arc<ServiceEntry>, &Arc<ServiceEntry>)| {
            Arc::ptr_eq(old, new) || old.key == new.key && old.frontends == new.frontends
        };
        let is_as_old = created_at == self.created_at;
        if health_port != self.health_port() || !is_as_old && health_port.is_some() {
            unsettled.are_health_checks = true;
            for port in health_port.into_iter().chain(self.health_port()) {
                let own = environment.protected.own();
                unsettled.places.add_health_check(own, port);
            }
        }
        if !is_as_old
            || entries.len() != self.entries.len()
            || !entries.iter().zip(&self.entries).all(is_same)
        {
            unsettled.add(&entries);
            unsettled.add(&self.entries);
        }
    }

    fn health_port(&self) -> Option<u16> {
        self.health_check.as_ref().map(|check| check.port)
    }

    /// Compiles it again. What is settled between Services stays as it was.
    pub(super) fn compile(&mut self, environment: &Environment) {
        let mut reasons = Vec::new();
        self.compile_into(environment, &mut reasons);
        self.reasons = reasons.into();
        self.is_behind = true;
    }

    #[expect(
        clippy::too_many_lines,
        reason = "the parts of a compiled Service, each of which needs those before it"
    )]
    fn compile_into(&mut self, environment: &Environment, reasons: &mut Vec<String>) {
        self.created_at = self.service.as_ref().map_or(0, |s| s.created_at);
        let unread = self.service.as_deref().and_then(edge::unread_listen);
        reasons.extend(unread);
        let Some(service) = self.served(environment).cloned() else {
            self.entries.clear();
            self.health_check = None;
            return;
        };
        let topology_keys = service.topology_keys.as_deref();
        let (closure, unknown_key) = environment.topology.closure(topology_keys);
        reasons.extend(unknown_key);
        let source_ranges = edge::source_ranges(&service);
        let addresses = ServiceAddresses::new(
            &service,
            &source_ranges,
            &self.pool_services,
            environment,
            reasons,
        );
        let mut ports: Vec<&ServicePort> = service.ports.iter().take(MAX_PORTS).collect();
        if service.ports.len() > MAX_PORTS {
            reasons.push(format!(
                "it has more than {MAX_PORTS} ports: those after the first {MAX_PORTS} are left out"
            ));
        }
        let mut slices = Slices::new(&self.slices, environment);
        reasons.extend(slices.unfit(environment));
        self.health_check =
            health_check(&service, &self.pool_services, &slices, environment, reasons);
        reasons.extend(slices.keep_within_limits(&ports));
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
                reasons.push(format!(
                    "port {} with {} is there twice: the later one is left out",
                    text::quoted(&key.port),
                    key.protocol
                ));
                continue;
            }
            let frontends = addresses.frontends(port, reasons);
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
        let more = reasons.len().saturating_sub(MAX_REASONS);
        if more > 1 {
            reasons.truncate(MAX_REASONS);
            reasons.push(format!("and {more} more of the same Service"));
        }
    }

    /// After a change of endpoints alone: says how many are ready here, if the Service has its health check.
    pub(super) fn count_in_place(&self, table: &mut [HealthCheck]) {
        if let Some(check) = &self.health_check
            && let Ok(at) = table.binary_search_by_key(&check.port, |other| other.port)
            && table[at].service == check.service
        {
            table[at].local_endpoints = check.local_endpoints;
        }
    }

    /// After a change of endpoints alone: puts each entry in its old place, with its old frontends.
    pub(super) fn show_in_place(&mut self, table: &mut [Arc<ServiceEntry>], lost: &mut Suspects) {
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
                lost_by(shown, Some(&new), lost);
                table[at] = new.clone();
                *shown = new;
            }
        }
        self.is_behind = false;
    }

    /// Takes up which frontends other Services keep: `new` of those places that were settled anew.
    pub(super) fn lose(&mut self, new: Vec<Loss>, places: &conflicts::Places) {
        if !new.is_empty() || !self.losses.is_empty() {
            let old = self
                .losses
                .iter()
                .filter(|loss| !places.contain(loss.place()));
            let mut losses: Vec<Loss> = old.cloned().chain(new).collect();
            losses.sort_unstable();
            if *losses != *self.losses {
                self.losses = losses.into();
                self.is_behind = true;
            }
        }
        if self.is_behind {
            self.show();
        }
    }

    fn show(&mut self) {
        let mut losses = self.losses.iter().peekable();
        let mut all = Few::with_capacity(self.entries.len());
        for (index, entry) in (0..).zip(&self.entries) {
            let mut taken = BTreeSet::new();
            while let Some(loss) = losses.next_if(|loss| loss.index == index) {
                taken.insert((loss.address, loss.port));
            }
            if taken.is_empty() {
                all.push(entry.clone());
                continue;
            }
            let frontends = entry.frontends.iter().copied();
            let frontends: Vec<Frontend> = frontends
                .filter(|f| !taken.contains(&(f.address, f.port)))
                .collect();
            let entry = ServiceEntry {
                frontends: frontends.into(),
                ..ServiceEntry::clone(entry)
            };
            all.push(keep_equal(&[&self.shown], entry));
        }
        self.shown = all;
    }

    /// Takes up whether it has its health check.
    pub(super) fn refuse_health_check(&mut self, refusal: Option<Refusal>) {
        let refusal = refusal.map(Box::new);
        self.is_behind |= refusal != self.refusal;
        self.refusal = refusal;
    }

    /// Brings what is said of it in step; true if that is something else than before.
    pub(super) fn say(&mut self, name: &NamespacedName, places: &mut Places<'_>) -> bool {
        self.is_behind = false;
        let lost = self.losses.iter().take(MAX_REASONS).map(Loss::told);
        let more = self
            .losses
            .len()
            .checked_sub(MAX_REASONS)
            .filter(|more| *more > 0);
        let more = more.map(|more| format!("and {more} more addresses and ports that others have"));
        let refusal = self.refusal.as_ref().zip(self.health_port());
        let refusal = refusal.map(|(refusal, port)| refusal.told(port));
        let own = self.reasons.iter().cloned();
        let reasons = own.chain(lost).chain(more).chain(refusal);
        let said = reasons.map(|reason| places.reject(Kind::Service, name, reason));
        let mut said: Vec<Arc<Rejection>> = said.map(Arc::new).collect();
        said.sort_unstable();
        said.dedup();
        if *said == *self.said {
            return false;
        }
        for new in &mut said {
            if let Ok(at) = self.said.binary_search(new) {
                new.clone_from(&self.said[at]);
            }
        }
        self.said = said.into();
        true
    }

    /// Whether [`Self::say`] has something to do.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
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
