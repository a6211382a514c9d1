//! Small clusters for tests.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{ClosureFailure, Memo, Memory, NodeView, PolicyConfig, Reasons, compile};
use crate::ledger::tests::{entry, key};
use crate::ledger::{Key, Ledger, Record, State};
use crate::model::{
    AddressFamily, Endpoint, EndpointPod, EndpointPort, EndpointSlice, Hints, Kind, Manifest,
    ManifestObject, NamespacedName, Node, NodeBucket, NodePool, Placement, PoolService, Protocol,
    Service, ServiceCidr, ServicePort, ServiceType, Snapshot, Touched, TrafficPolicy,
};
use crate::pods::truth::Truth;
use crate::policy::Suspects;
use crate::table::{Dropped, Scope, ServiceEntry, ServiceTable};

/// A cluster as seen from the node `a1`.
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) config: PolicyConfig,
    pub(crate) view: NodeView,
    pub(crate) memory: Memory,
    pub(crate) memo: Memo,
    /// What the last compile said.
    pub(crate) lost: Suspects,
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl World {
    /// Nothing but the node `a1` of pool `hangzhou`, with the address 192.0.2.11.
    pub(crate) fn new() -> Self {
        let mut world = Self::empty();
        world.node("a1", Some("hangzhou"), |node| {
            node.internal_ips = vec![ip("192.0.2.11")];
            node.pod_cidrs = vec!["10.1.0.0/24".parse().unwrap()];
        });
        world
    }

    /// Not even that.
    pub(crate) fn empty() -> Self {
        Self {
            snapshot: Snapshot::default(),
            config: PolicyConfig::new("a1"),
            view: NodeView::default(),
            memory: Memory::default(),
            memo: Memo::default(),
            lost: Suspects::default(),
        }
    }

    /// `default/web`, 10.96.0.10:80, with an endpoint on `a1`, one on `a2` and one on `b1`, closed by `keys`.
    pub(crate) fn web(keys: Option<&str>) -> Self {
        let mut world = Self::new();
        world.service("web", |service| service.topology_keys = keys.map(Arc::from));
        world.slice(
            "web-1",
            "web",
            &[
                ("10.1.0.2", Some("a1")),
                ("10.1.1.2", Some("a2")),
                ("10.2.0.2", Some("b1")),
            ],
        );
        world
    }

    pub(crate) fn node(&mut self, name: &str, pool: Option<&str>, edit: impl FnOnce(&mut Node)) {
        let labels = pool.map(|pool| (super::POOL_LABEL.to_owned(), pool.to_owned()));
        let mut node = Node {
            annotations: Default::default(),
            is_leaving: false,
            name: name.into(),
            labels: labels.into_iter().collect(),
            internal_ips: Vec::new(),
            external_ips: Vec::new(),
            pod_cidrs: Vec::new(),
        };
        edit(&mut node);
        self.snapshot.nodes.insert(name.into(), Arc::new(node));
    }

    pub(crate) fn pool(&mut self, name: &str, nodes: &[&str]) {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        let pool = NodePool {
            name: name.into(),
            nodes,
        };
        self.snapshot.pools.insert(name.into(), Arc::new(pool));
    }

    pub(crate) fn bucket(&mut self, name: &str, pool: &str, nodes: &[&str]) {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        let bucket = NodeBucket {
            name: name.into(),
            pool: pool.to_owned(),
            nodes,
        };
        self.snapshot.buckets.insert(name.into(), Arc::new(bucket));
    }

    pub(crate) fn service_cidr(&mut self, name: &str, cidrs: &[&str]) {
        let cidr = ServiceCidr {
            name: name.into(),
            cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        };
        self.snapshot
            .service_cidrs
            .insert(name.into(), Arc::new(cidr));
    }

    /// The addresses that a Service's load balancer has in a pool.
    pub(crate) fn pool_service(&mut self, service: &str, pool: &str, ips: &[&str]) {
        let name = NamespacedName::new("default", format!("{service}-{pool}"));
        let object = PoolService {
            name: name.clone(),
            service: service.into(),
            pool: pool.into(),
            load_balancer_ips: ips.iter().map(|address| ip(address)).collect(),
        };
        self.snapshot.pool_services.insert(name, Arc::new(object));
    }

    /// Adds or edits a Service of the namespace `default`; new ones are 10.96.0.10:80, port `http`.
    pub(crate) fn service(&mut self, name: &str, edit: impl FnOnce(&mut Service)) {
        let name = NamespacedName::new("default", name);
        let old = self.snapshot.services.get(&name);
        let mut service = match old {
            Some(old) => Service::clone(old),
            None => Service {
                name: name.clone(),
                created_at: 0,
                service_type: ServiceType::ClusterIp,
                cluster_ips: [ip("10.96.0.10")].into(),
                external_ips: Default::default(),
                load_balancer_ips: Default::default(),
                ports: [port("http", 80, 0)].into(),
                internal_policy: TrafficPolicy::Cluster,
                external_policy: TrafficPolicy::Cluster,
                affinity_seconds: 0,
                source_ranges: Default::default(),
                topology_keys: None,
                listen: None,
                is_discarded: false,
                is_proxied_elsewhere: false,
                health_check_node_port: 0,
            },
        };
        edit(&mut service);
        self.snapshot.services.insert(name, Arc::new(service));
    }

    /// Has a Service said by a document of this file, and no other; "" for none.
    pub(crate) fn found_in(&mut self, file: &str, document: u32, service: &NamespacedName) {
        let said = ManifestObject {
            kind: Kind::Service,
            name: service.clone(),
            document,
        };
        let manifests = &mut self.snapshot.manifests;
        for manifest in manifests.values_mut() {
            let others = manifest
                .objects
                .iter()
                .filter(|other| other.name != *service);
            *manifest = Arc::new(Manifest::new(
                manifest.name.clone(),
                others.cloned().collect(),
            ));
        }
        manifests.retain(|_, manifest| !manifest.objects.is_empty());
        if !file.is_empty() {
            let manifest = manifests.entry(file.into());
            let manifest =
                manifest.or_insert_with(|| Arc::new(Manifest::new(file.into(), Vec::new())));
            let others = manifest.objects.iter().cloned();
            *manifest = Arc::new(Manifest::new(file.into(), others.chain([said]).collect()));
        }
    }

    /// Adds a slice with the port `http` 8080 and ready endpoints.
    pub(crate) fn slice(&mut self, name: &str, service: &str, endpoints: &[(&str, Option<&str>)]) {
        self.slice_with(name, service, endpoints, |_| ());
    }

    pub(crate) fn slice_with(
        &mut self,
        name: &str,
        service: &str,
        endpoints: &[(&str, Option<&str>)],
        edit: impl FnOnce(&mut EndpointSlice),
    ) {
        let name = NamespacedName::new("default", name);
        let endpoints: Vec<Endpoint> = endpoints
            .iter()
            .map(|&(address, node)| Endpoint {
                address: ip(address),
                is_ready: true,
                is_serving: true,
                is_terminating: false,
                placement: Placement::new(node.map(Arc::from), Hints::default()).map(Arc::new),
            })
            .collect();
        let mut slice = EndpointSlice {
            pods: Box::default(),
            name: name.clone(),
            service: service.into(),
            family: endpoints
                .first()
                .map_or(AddressFamily::V4, |e| AddressFamily::from(e.address)),
            is_headless: false,
            ports: [EndpointPort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 8080,
            }]
            .into(),
            endpoints: endpoints.into(),
        };
        edit(&mut slice);
        self.snapshot.slices.insert(name, Arc::new(slice));
    }

    /// Says which Pods the endpoints of a slice are that are on `a1`, in their order.
    pub(crate) fn pods(&mut self, slice: &str, names: &[&str]) {
        let name = NamespacedName::new("default", slice);
        let slice = Arc::make_mut(self.snapshot.slices.get_mut(&name).unwrap());
        let here = (0..).zip(slice.endpoints.iter());
        let here =
            here.filter(|(_, endpoint)| endpoint.node_name().is_some_and(|node| **node == *"a1"));
        slice.pods = here
            .zip(names)
            .map(|((endpoint, _), name)| EndpointPod {
                endpoint,
                name: (*name).into(),
            })
            .collect();
    }

    /// Says what the ledger has of Pods: an address, or that they are gone.
    pub(crate) fn ledger(&mut self, pods: &[(&str, Option<&str>)]) {
        let mut ledger = Ledger::default();
        for (name, address) in pods {
            let mut entry = entry(address.unwrap_or("10.1.0.99"), "c1");
            if address.is_none() {
                entry.state = State::Retained;
            }
            let key = Key {
                namespace: "default".to_owned(),
                ..key(name)
            };
            ledger.apply(Record::Put { key, entry });
        }
        self.view.truth = Some(Arc::new(Truth::new(&ledger, None)));
    }

    /// Says of which addresses the probes fail, on the port of slices.
    pub(crate) fn failing(&mut self, addresses: &[&str]) {
        let backends = addresses.iter().map(|address| {
            let at = SocketAddr::new(ip(address), 8080);
            ((at, Protocol::Tcp), "a probe fails".into())
        });
        self.view.failing = Arc::new(backends.collect());
    }

    pub(crate) fn fail(mut self, closure_failure: ClosureFailure) -> Self {
        self.config.closure_failure = closure_failure;
        self
    }

    /// Compiles as the agent does: memo and memory stay.
    pub(crate) fn compile(&mut self) -> ServiceTable {
        let compiled = compile(
            &self.snapshot,
            &Touched::Anything,
            &self.config,
            &self.view,
            &self.memory,
            &mut self.memo,
        );
        self.memory = compiled.memory;
        self.lost = compiled.lost;
        compiled.table.clone()
    }

    pub(crate) fn reasons(&self) -> Reasons<'_> {
        Reasons::new(&self.snapshot, &self.config, &self.view, &self.memory)
    }

    /// Selected IPv4 endpoints of the only service port.
    pub(crate) fn selected(&mut self) -> Vec<String> {
        selected(only(&self.compile()))
    }

    /// Reasons for which the first frontend of the only service port drops IPv4 endpoints.
    pub(crate) fn dropped(&mut self) -> Vec<String> {
        let table = self.compile();
        let entry = only(&table);
        let why = self
            .reasons()
            .why(entry, &entry.frontends[0], Scope::Internal);
        why.dropped.iter().map(words).collect()
    }

    /// `kind name: reason` of each rejection.
    pub(crate) fn rejections(&mut self) -> Vec<String> {
        let rejections = self.compile().rejections.into_iter();
        rejections
            .map(|r| format!("{} {}: {}", r.kind, r.name, r.reason))
            .collect()
    }
}

pub(crate) fn port(name: &str, port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
        node_port,
    }
}

pub(crate) fn only(table: &ServiceTable) -> &ServiceEntry {
    assert_eq!(table.services.len(), 1, "{:?}", table.services);
    &table.services[0]
}

/// What clients of this node get from the first frontend.
pub(crate) fn selected(entry: &ServiceEntry) -> Vec<String> {
    let endpoints = entry.endpoints(&entry.frontends[0], Scope::Internal);
    endpoints.iter().map(|at| at.to_string()).collect()
}

pub(crate) fn words(dropped: &Dropped) -> String {
    format!("{} {}", dropped.endpoint, dropped.reason)
}

/// `Kind scope verdict endpoints` of each kind of frontend and scope.
pub(crate) fn rows(entry: &ServiceEntry) -> Vec<String> {
    let mut rows = Vec::new();
    for frontend in &entry.frontends {
        for scope in [Scope::Internal, Scope::External] {
            let endpoints = entry.endpoints(frontend, scope);
            let endpoints: Vec<String> = endpoints.iter().map(|e| e.ip().to_string()).collect();
            let masquerade = match entry.is_masqueraded(frontend.kind, scope) {
                true => " masquerade",
                false => "",
            };
            let row = format!(
                "{} {scope}{masquerade} {:?} {}",
                frontend.kind,
                entry.verdict(frontend, scope),
                endpoints.join(" ")
            );
            rows.push(row.trim_end().to_owned());
        }
    }
    rows.dedup();
    rows
}

/// `Kind address:port` of each frontend.
pub(crate) fn frontends(entry: &ServiceEntry) -> Vec<String> {
    let frontends = entry.frontends.iter();
    frontends
        .map(|f| format!("{} {}", f.kind, SocketAddr::new(f.address, f.port)))
        .collect()
}
