//! The part of Kubernetes' and OpenYurt's objects that decides where Service traffic goes.
//!
//! Pure. Built by `source::decode`, read by `policy`. The vocabulary is Kubernetes'; optional fields
//! already have their API defaults, and a field that no rule reads is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::text;

mod endpoints;

pub use endpoints::{Endpoint, Endpoints, Hints, Placement};

/// Namespace and name of a namespaced object; sorts bytewise by namespace, then name. Clones share their text: every
/// table has the name of a Service in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespacedName {
    /// `metadata.namespace`; `default` where the manifest has none.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// Joins the two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Transport protocol of a port. Order and spelling are the API's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// SCTP: listed in the table, and not enforced.
    Sctp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its IANA number, as it stands in IP headers.
    pub const fn number(self) -> u8 {
        match self {
            Self::Sctp => yurt_ebpf::frame::ip::SCTP,
            Self::Tcp => yurt_ebpf::frame::ip::TCP,
            Self::Udp => yurt_ebpf::frame::ip::UDP,
        }
    }

    /// That of an IANA number; `None`: no Service has it.
    pub fn of_number(number: u8) -> Option<Self> {
        let mut all = [Self::Sctp, Self::Tcp, Self::Udp].into_iter();
        all.find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sctp => "SCTP",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Ports of one Service, or of one EndpointSlice, that are served. One more is kept, so that the rest can be told.
pub const MAX_PORTS: usize = 1000;
/// Addresses of one kind (`externalIPs`, a load balancer's) of one Service that are looked at; one more is kept.
pub const MAX_ADDRESSES: usize = 1000;
/// Source ranges of one family that a Service may have; one more is kept. The publish word has no room for more.
pub const MAX_SOURCE_RANGES: usize = 127;

/// Stands for an annotation of more than 4,096 bytes. No reader of annotations knows this word, and complaints show it.
pub const TOO_LONG: &str = "(longer-than-4096-bytes)";

/// Stands for the name of a node or zone, where there are too many to keep them. No node has this name.
pub const TOO_MANY_PLACES: &str = "(one-of-too-many-names)";

/// A v1 Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Identity.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, in seconds since 1970; 0 where a manifest has none. An apiserver writes it,
    /// whatever the author says.
    pub created_at: u64,
    /// `spec.type`.
    pub service_type: ServiceType,
    /// `spec.clusterIPs` (or `clusterIP`); empty when headless (`None`) or not yet allocated.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is absent or `VIP`.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.ports`.
    pub ports: Box<[ServicePort]>,
    /// `spec.internalTrafficPolicy`: for clients of the ClusterIP.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`: for clients elsewhere that dial any other address.
    pub external_policy: TrafficPolicy,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` of a Service with `sessionAffinity: ClientIP`, in seconds,
    /// 1 to 86400; 0 = no affinity.
    pub affinity_seconds: u32,
    /// `spec.loadBalancerSourceRanges`, as written.
    pub source_ranges: Box<[IpNetwork]>,
    /// Annotation `openyurt.io/topologyKeys`, as written; `None` when absent.
    pub topology_keys: Option<Arc<str>>,
    /// Annotation `nodeport.openyurt.io/listen`, as written; `None` when absent.
    pub listen: Option<Arc<str>>,
    /// Annotation `svc.openyurt.io/discard` is `true`.
    pub is_discarded: bool,
    /// Label `service.kubernetes.io/service-proxy-name` is present: another proxy serves it.
    pub is_proxied_elsewhere: bool,
    /// `spec.healthCheckNodePort`: where a load balancer asks each node for local endpoints; 0 when there is none.
    pub health_check_node_port: u16,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// The default.
    ClusterIp,
    /// Also on a port of every node.
    NodePort,
    /// Also on the ingress addresses.
    LoadBalancer,
    /// A DNS alias: nothing to proxy.
    ExternalName,
}

/// Which endpoints a Service's clients may be led to, before closure and readiness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// The default: endpoints on all nodes.
    #[default]
    Cluster,
    /// Endpoints on this node.
    Local,
}

impl fmt::Display for TrafficPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        })
    }
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name; "" when the only port has none.
    pub name: Arc<str>,
    /// Protocol, default TCP.
    pub protocol: Protocol,
    /// Port of the ClusterIP and of the external addresses, 1 to 65535.
    pub port: u16,
    /// Port on the node; 0 when there is none.
    pub node_port: u16,
}

/// Family of the addresses in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for AddressFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl From<IpAddr> for AddressFamily {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// A discovery.k8s.io/v1 EndpointSlice. FQDN slices are not decoded: kube-proxy ignores them too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Identity.
    pub name: NamespacedName,
    /// Label `kubernetes.io/service-name`; slices without it are not decoded.
    pub service: Arc<str>,
    /// `addressType`.
    pub family: AddressFamily,
    /// Label `service.kubernetes.io/headless` is present: kube-proxy does not watch it.
    pub is_headless: bool,
    /// Ports that have a name and a number other than 0 (kube-proxy endpointslicecache.go).
    pub ports: Arc<[EndpointPort]>,
    /// Endpoints.
    pub endpoints: Endpoints,
    /// The Pods of this node among the endpoints, if the source was told which node that is; empty in most slices.
    pub pods: Box<[EndpointPod]>,
}

/// The `targetRef` of an endpoint that is a Pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointPod {
    /// Index of the endpoint in its slice.
    pub endpoint: u32,
    /// Name of the Pod; its namespace is the slice's.
    pub name: Arc<str>,
}

impl EndpointSlice {
    /// The Service whose endpoints these are.
    pub fn owner(&self) -> NamespacedName {
        NamespacedName::new(self.name.namespace.clone(), self.service.clone())
    }
}

/// One entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Name; "" for an unnamed port.
    pub name: Arc<str>,
    /// Protocol, default TCP.
    pub protocol: Protocol,
    /// Port of the Pod, 1 to 65535.
    pub port: u16,
}

/// A v1 Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP, in order.
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs` (or `podCIDR`).
    pub pod_cidrs: Vec<IpNetwork>,
    /// The annotations in which flannel tells other nodes where this Node is. They count only while they are fresh, so
    /// a checkpoint does not keep them.
    #[serde(skip)]
    pub annotations: BTreeMap<String, String>,
    /// It is being deleted, or the cluster autoscaler is about to: load balancers are to leave it alone. Present news,
    /// which a checkpoint does not keep.
    #[serde(skip)]
    pub is_leaving: bool,
}

/// A v1 Pod of this node: the fields that retention reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPod {
    /// Identity.
    pub name: NamespacedName,
    /// `metadata.uid`; "" where a manifest has none.
    pub uid: Arc<str>,
    /// `spec.nodeName`; "" where a manifest has none.
    pub node_name: Arc<str>,
    /// The annotations that are for yurt-net.
    pub annotations: BTreeMap<String, String>,
    /// The readiness probes of its containers that can be asked over the network. Not in the checkpoint: Pods are read
    /// again at every start, and records of its format have no room for more.
    #[serde(skip)]
    pub readiness: Box<[ReadinessProbe]>,
}

/// A `readinessProbe` of a container; it is ready while this passes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadinessProbe {
    /// The question.
    pub question: Question,
    /// The port of the Pod's address.
    pub port: u16,
    /// Time between two, seconds.
    pub period_seconds: u32,
    /// How long an answer may take, seconds.
    pub timeout_seconds: u32,
    /// Failures in a row that make it fail.
    pub failure_threshold: u32,
    /// Answers in a row that make it pass again.
    pub success_threshold: u32,
}

impl ReadinessProbe {
    /// A TCP connect, with the API's defaults.
    pub fn connect(port: u16) -> Self {
        Self {
            question: Question::Connect,
            port,
            period_seconds: 10,
            timeout_seconds: 1,
            failure_threshold: 3,
            success_threshold: 1,
        }
    }
}

/// The question of a probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// Whether a TCP connection is accepted.
    Connect,
    /// Whether an HTTP GET is answered with 200 to 399.
    Get {
        /// With its leading slash.
        path: String,
        /// Names and values.
        headers: Vec<(String, String)>,
    },
    /// Whether the gRPC health check (grpc.health.v1.Health) says SERVING.
    Grpc {
        /// The service; "" for the server as a whole.
        service: String,
    },
}

/// An apps.openyurt.io NodePool (v1beta1, v1beta2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePool {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.nodes`.
    pub nodes: Vec<String>,
}

/// An apps.openyurt.io/v1alpha1 NodeBucket: a part of the members of a large pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBucket {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Label `openyurt.io/pool-name`.
    pub pool: String,
    /// `nodes[].name`.
    pub nodes: Vec<String>,
}

/// A networking.k8s.io ServiceCIDR (v1, v1beta1): addresses that ClusterIPs are allocated from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNetwork>,
}

/// A network.openyurt.io/v1alpha1 PoolService: what a LoadBalancer Service has in one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolService {
    /// Identity.
    pub name: NamespacedName,
    /// Label `openyurt.io/service-name`: a Service of the same namespace.
    pub service: Arc<str>,
    /// Label `openyurt.io/pool-name`.
    pub pool: Arc<str>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is absent or `VIP`.
    pub load_balancer_ips: Box<[IpAddr]>,
}

impl PoolService {
    /// The Service that it is about.
    pub fn owner(&self) -> NamespacedName {
        NamespacedName::new(self.name.namespace.clone(), self.service.clone())
    }
}

/// Everything a source knows at one moment: whole or absent, never a half list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Services.
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// EndpointSlices.
    pub slices: BTreeMap<NamespacedName, Arc<EndpointSlice>>,
    /// Nodes by name; a source may hold only the own one.
    pub nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// NodePools by name.
    pub pools: BTreeMap<Arc<str>, Arc<NodePool>>,
    /// NodeBuckets by name.
    pub buckets: BTreeMap<Arc<str>, Arc<NodeBucket>>,
    /// PoolServices of every pool: one of another pool says that a Service's addresses are shared out.
    pub pool_services: BTreeMap<NamespacedName, Arc<PoolService>>,
    /// ServiceCIDRs by name.
    pub service_cidrs: BTreeMap<Arc<str>, Arc<ServiceCidr>>,
    /// Pods of this node, where retention asks for them; no table depends on them.
    pub pods: BTreeMap<NamespacedName, Arc<LocalPod>>,
    /// The manifests that objects were read from, by path relative to the source; empty for an apiserver.
    pub manifests: BTreeMap<OsString, Arc<Manifest>>,
    /// Objects that the source had to leave out or to keep in an older version.
    pub rejections: Vec<Rejection>,
}

/// The last good version of a manifest, kept while the manifest cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Path relative to the source.
    pub name: OsString,
    /// The objects of the snapshot that are from it, sorted by kind and name.
    pub objects: Box<[ManifestObject]>,
}

impl Manifest {
    /// A manifest that says these, in any order.
    pub fn new(name: OsString, mut objects: Vec<ManifestObject>) -> Self {
        objects.sort_unstable_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        let objects = objects.into_boxed_slice();
        Self { name, objects }
    }

    /// The document that an object is from, as [`Rejection::source`] shows it.
    fn place_of(&self, kind: Kind, name: &NamespacedName) -> Option<String> {
        let order = |said: &ManifestObject| (said.kind, &said.name).cmp(&(kind, name));
        let at = self.objects.binary_search_by(order).ok()?;
        Some(self.place(&self.objects[at]))
    }

    fn place(&self, said: &ManifestObject) -> String {
        format!("{}#{}", self.name.to_string_lossy(), said.document)
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestObject {
    /// Its kind.
    pub kind: Kind,
    /// Its name; the namespace is "" when it is cluster scoped.
    pub name: NamespacedName,
    /// The document that it is from. From 1.
    pub document: u32,
}

/// A kind of object that a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A v1 Service.
    Service,
    /// A discovery.k8s.io EndpointSlice.
    EndpointSlice,
    /// A v1 Node.
    Node,
    /// An apps.openyurt.io NodePool.
    NodePool,
    /// An apps.openyurt.io NodeBucket.
    NodeBucket,
    /// A network.openyurt.io PoolService.
    PoolService,
    /// A networking.k8s.io ServiceCIDR.
    ServiceCidr,
    /// A v1 Pod.
    Pod,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::NodePool,
        Self::NodeBucket,
        Self::PoolService,
        Self::ServiceCidr,
        Self::Pod,
    ];

    /// The kind with this spelling in the API; `None` if snapshots hold no such objects.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its objects belong to namespaces.
    pub fn is_namespaced(self) -> bool {
        matches!(
            self,
            Self::Service | Self::EndpointSlice | Self::PoolService | Self::Pod
        )
    }

    /// The spelling of the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::NodePool => "NodePool",
            Self::NodeBucket => "NodeBucket",
            Self::PoolService => "PoolService",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Pod => "Pod",
        }
    }
}

impl Snapshot {
    /// A rejection of one of these objects for what only the whole snapshot shows.
    pub fn reject(&self, kind: Kind, object: &NamespacedName, reason: String) -> Rejection {
        self.places().reject(kind, object, reason)
    }

    /// For the rejections of many of them.
    pub fn places(&self) -> Places<'_> {
        Places {
            manifests: &self.manifests,
            few: FEW_PLACES,
            all: Vec::new(),
        }
    }
}

/// So many objects are looked for in each manifest; then all places are put in order, which takes as long.
const FEW_PLACES: usize = 8;

/// Where objects of a snapshot were read.
pub struct Places<'a> {
    manifests: &'a BTreeMap<OsString, Arc<Manifest>>,
    /// How many are still looked for in each manifest.
    few: usize,
    /// After that: all objects in the order of their names, and of several with one name in that of their manifests.
    all: Vec<(&'a ManifestObject, &'a Manifest)>,
}

impl Places<'_> {
    /// A rejection of an object, with the document that it is from.
    pub fn reject(&mut self, kind: Kind, object: &NamespacedName, reason: String) -> Rejection {
        Rejection {
            kind: kind.name().to_owned(),
            namespace: object.namespace.to_string(),
            name: object.name.to_string(),
            source: self.place_of(kind, object).unwrap_or_default(),
            reason: text::message(&reason).to_string(),
        }
    }

    fn place_of(&mut self, kind: Kind, object: &NamespacedName) -> Option<String> {
        let mut manifests = self.manifests.values();
        if let Some(left) = self.few.checked_sub(1) {
            self.few = left;
            return manifests.find_map(|manifest| manifest.place_of(kind, object));
        }
        if self.all.is_empty() {
            self.all = manifests
                .flat_map(|manifest| manifest.objects.iter().map(move |said| (said, &**manifest)))
                .collect();
            self.all
                .sort_by(|(a, _), (b, _)| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        }
        let at = self
            .all
            .partition_point(|(said, _)| (said.kind, &said.name) < (kind, object));
        let (said, manifest) = self.all.get(at)?;
        (said.kind == kind && said.name == *object).then(|| manifest.place(said))
    }
}

/// The objects that may differ from the snapshot that was examined before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Touched {
    /// These EndpointSlices, and rejections.
    Slices(BTreeSet<NamespacedName>),
    /// Not known: every object may differ.
    #[default]
    Anything,
}

impl Touched {
    /// A slice may differ.
    pub fn slice(&mut self, name: NamespacedName) {
        if let Self::Slices(names) = self {
            names.insert(name);
        }
    }

    /// No object differs.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Slices(names) if names.is_empty())
    }

    /// Takes what may differ now, and begins anew with nothing.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Slices(BTreeSet::new()))
    }
}

/// An invalid object, and why. It affects nothing else: the rest of the table takes effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rejection {
    /// Kind as written; "" when the document could not be read that far.
    pub kind: String,
    /// Namespace; "" when cluster scoped or unknown.
    pub namespace: String,
    /// Name; "" when unknown.
    pub name: String,
    /// `web.yaml#3`: path relative to the source, document from 1; "" for an apiserver.
    pub source: String,
    /// The fault, and what to do about it.
    pub reason: String,
}
