//! What a document may hold: one object of a kind that some rule reads.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use crate::model::{
    EndpointSlice, Kind, LocalPod, NamespacedName, Node, NodeBucket, NodePool, PoolService,
    Service, ServiceCidr,
};

/// One decoded object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A v1 Service.
    Service(Arc<Service>),
    /// A discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A v1 Node.
    Node(Arc<Node>),
    /// An apps.openyurt.io NodePool.
    NodePool(Arc<NodePool>),
    /// An apps.openyurt.io NodeBucket.
    NodeBucket(Arc<NodeBucket>),
    /// A network.openyurt.io PoolService.
    PoolService(Arc<PoolService>),
    /// A networking.k8s.io ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
    /// A v1 Pod.
    Pod(Arc<LocalPod>),
}

/// Kind, namespace ("" when cluster scoped) and name: no two objects of a snapshot share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId<'a> {
    /// Kind as the API spells it.
    pub kind: &'a str,
    /// `metadata.namespace`.
    pub namespace: &'a str,
    /// `metadata.name`.
    pub name: &'a str,
}

impl fmt::Display for ObjectId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl Object {
    /// Its name; the namespace is "" when it is cluster scoped.
    pub fn name(&self) -> NamespacedName {
        let cluster_scoped = |name: &Arc<str>| NamespacedName::new(Arc::default(), name.clone());
        match self {
            Self::Service(service) => service.name.clone(),
            Self::EndpointSlice(slice) => slice.name.clone(),
            Self::Node(node) => cluster_scoped(&node.name),
            Self::NodePool(pool) => cluster_scoped(&pool.name),
            Self::NodeBucket(bucket) => cluster_scoped(&bucket.name),
            Self::PoolService(object) => object.name.clone(),
            Self::ServiceCidr(cidr) => cluster_scoped(&cidr.name),
            Self::Pod(pod) => pod.name.clone(),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::NodePool(_) => Kind::NodePool,
            Self::NodeBucket(_) => Kind::NodeBucket,
            Self::PoolService(_) => Kind::PoolService,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
            Self::Pod(_) => Kind::Pod,
        }
    }

    /// What tells it from all others.
    pub fn id(&self) -> ObjectId<'_> {
        let (namespace, name) = match self {
            Self::Service(service) => (&*service.name.namespace, &service.name.name),
            Self::EndpointSlice(slice) => (&*slice.name.namespace, &slice.name.name),
            Self::Node(node) => ("", &node.name),
            Self::NodePool(pool) => ("", &pool.name),
            Self::NodeBucket(bucket) => ("", &bucket.name),
            Self::PoolService(object) => (&*object.name.namespace, &object.name.name),
            Self::ServiceCidr(cidr) => ("", &cidr.name),
            Self::Pod(pod) => (&*pod.name.namespace, &pod.name.name),
        };
        ObjectId {
            kind: self.kind().name(),
            namespace,
            name,
        }
    }
}
