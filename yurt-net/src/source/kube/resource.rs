//! The requests to an apiserver: one LIST and WATCH shape for each resource, for ever.
//!
//! Pure. The shapes are fixed because YurtHub caches one list shape for each component and resource, and refuses every
//! other one while it is offline (openyurt pkg/yurthub/cachemanager `CanCacheFor`). Services and EndpointSlices come
//! whole: what is not served is sorted out by the policy.
#![forbid(unsafe_code)]

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

use crate::model::Kind;

/// A resource that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// v1 Services.
    Services,
    /// discovery.k8s.io EndpointSlices.
    EndpointSlices,
    /// The own v1 Node.
    Nodes,
    /// networking.k8s.io ServiceCIDRs.
    ServiceCidrs,
    /// The own apps.openyurt.io NodePool.
    NodePools,
    /// The apps.openyurt.io NodeBuckets of the own pool.
    NodeBuckets,
    /// network.openyurt.io PoolServices, of all pools.
    PoolServices,
    /// The v1 Pods of the own Node; only where retention asks for them.
    Pods,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Nodes,
        Self::ServiceCidrs,
        Self::NodePools,
        Self::NodeBuckets,
        Self::PoolServices,
        Self::Pods,
    ];

    /// Its name in the API's paths; also in `status` and in the checkpoint.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
            Self::ServiceCidrs => "servicecidrs",
            Self::NodePools => "nodepools",
            Self::NodeBuckets => "nodebuckets",
            Self::PoolServices => "poolservices",
            Self::Pods => "pods",
        }
    }

    /// The kind of its objects: the items of a list do not say it.
    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::Services => Kind::Service,
            Self::EndpointSlices => Kind::EndpointSlice,
            Self::Nodes => Kind::Node,
            Self::ServiceCidrs => Kind::ServiceCidr,
            Self::NodePools => Kind::NodePool,
            Self::NodeBuckets => Kind::NodeBucket,
            Self::PoolServices => Kind::PoolService,
            Self::Pods => Kind::Pod,
        }
    }

    /// The API versions that are read, best first: an older cluster may serve only a later one.
    pub(super) const fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Services | Self::Nodes | Self::Pods => &["v1"],
            Self::EndpointSlices => &["discovery.k8s.io/v1"],
            Self::ServiceCidrs => &["networking.k8s.io/v1", "networking.k8s.io/v1beta1"],
            Self::NodePools => &["apps.openyurt.io/v1beta2", "apps.openyurt.io/v1beta1"],
            Self::NodeBuckets => &["apps.openyurt.io/v1alpha1"],
            Self::PoolServices => &["network.openyurt.io/v1alpha1"],
        }
    }

    /// Without it there is no table. The others may be missing in a cluster, or not be ours to read.
    pub(super) const fn is_required(self) -> bool {
        matches!(self, Self::Services | Self::EndpointSlices)
    }

    /// A table may depend on it.
    pub(super) const fn is_of_table(self) -> bool {
        !matches!(self, Self::Pods)
    }

    /// YurtHub serves it from a cache of its own, which goes on sending bookmarks while the cloud is out of reach
    /// (openyurt pkg/yurthub/multiplexer). Of all others it relays the cloud's watch, or one that says nothing.
    pub(super) const fn is_multiplexed(self) -> bool {
        matches!(self, Self::Services | Self::EndpointSlices)
    }

    /// The request depends on the pool.
    pub(super) const fn is_of_pool(self) -> bool {
        matches!(self, Self::NodePools | Self::NodeBuckets)
    }

    /// YurtHub's own rights do not reach these (its ClusterRole `yurt-hub`): the ServiceAccount's token goes along.
    pub(super) const fn needs_token_at_hub(self) -> bool {
        matches!(
            self,
            Self::NodeBuckets | Self::PoolServices | Self::ServiceCidrs
        )
    }

    /// To ask for one of them costs the server as little as it seems: it need not look through all of them for those
    /// that match.
    pub(super) const fn is_cheap_to_probe(self) -> bool {
        !matches!(self, Self::Pods | Self::NodeBuckets)
    }

    /// The selector of the one shape; `name` is the node's or the pool's name.
    fn selector(self, name: &str) -> Option<(&'static str, String)> {
        match self {
            // A Service that is shared out to other pools only must not look as if it was shared out to none.
            Self::Services | Self::EndpointSlices | Self::ServiceCidrs | Self::PoolServices => None,
            Self::Nodes | Self::NodePools => {
                Some(("fieldSelector", format!("metadata.name={name}")))
            }
            Self::Pods => Some(("fieldSelector", format!("spec.nodeName={name}"))),
            Self::NodeBuckets => Some(("labelSelector", format!("openyurt.io/pool-name={name}"))),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One resource as this node requests it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) resource: Resource,
    /// The node or the pool in the request; "" if it has neither.
    pub(super) name: String,
}

impl Shape {
    /// The path and query of a LIST that any cache may answer, or that only a server may answer that knows the latest.
    pub(super) fn list(&self, api_version: &str, is_latest: bool) -> String {
        let mut uri = self.base(api_version);
        match is_latest {
            true => drop(uri.pop()),
            false => uri += "resourceVersion=0",
        }
        uri
    }

    /// The path and query of a LIST of one item at most, whose version is the one that the cluster has reached.
    pub(super) fn probe(&self, api_version: &str) -> String {
        self.base(api_version) + "limit=1"
    }

    /// The path and query of the next page of a list.
    pub(super) fn page(&self, api_version: &str, token: &str) -> String {
        format!("{}continue={}", self.base(api_version), escape(token))
    }

    /// The path and query of a WATCH from `version`, which the server ends after `seconds`.
    pub(super) fn watch(&self, api_version: &str, version: &str, seconds: u64) -> String {
        let mut uri = self.base(api_version);
        uri += &format!(
            "watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={seconds}",
            escape(version)
        );
        uri
    }

    /// Ends with `?` or `&`.
    fn base(&self, api_version: &str) -> String {
        let root = if api_version.contains('/') {
            "apis"
        } else {
            "api"
        };
        let mut uri = format!("/{root}/{api_version}/{}?", self.resource);
        if let Some((key, selector)) = self.resource.selector(&self.name) {
            uri += &format!("{key}={}&", escape(&selector));
        }
        uri
    }
}

/// All but the unreserved characters of RFC 3986.
const NOT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn escape(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, NOT_UNRESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_has_one_list_shape() {
        let shape = |resource, name: &str| Shape {
            resource,
            name: name.to_owned(),
        };
        let list = |resource: Resource, name| {
            shape(resource, name).list(resource.api_versions()[0], false)
        };
        assert_eq!(
            list(Resource::Services, ""),
            "/api/v1/services?resourceVersion=0"
        );
        assert_eq!(
            list(Resource::EndpointSlices, ""),
            "/apis/discovery.k8s.io/v1/endpointslices?resourceVersion=0"
        );
        assert_eq!(
            list(Resource::Nodes, "edge-1"),
            "/api/v1/nodes?fieldSelector=metadata.name%3Dedge-1&resourceVersion=0"
        );
        assert_eq!(
            list(Resource::NodeBuckets, "hangzhou"),
            "/apis/apps.openyurt.io/v1alpha1/nodebuckets?labelSelector=openyurt.io%2Fpool-name%3Dhangzhou&resourceVersion=0"
        );
        assert_eq!(
            list(Resource::Pods, "edge-1"),
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1&resourceVersion=0"
        );
        assert_eq!(
            shape(Resource::Services, "").watch("v1", "7", 300),
            "/api/v1/services?watch=true&allowWatchBookmarks=true&resourceVersion=7&timeoutSeconds=300"
        );
        assert_eq!(
            shape(Resource::Services, "").page("v1", "a/b="),
            "/api/v1/services?continue=a%2Fb%3D"
        );
        assert_eq!(
            shape(Resource::Services, "").probe("v1"),
            "/api/v1/services?limit=1"
        );
        // Without a version it is the latest: an apiserver asks its quorum.
        assert_eq!(
            shape(Resource::Services, "").list("v1", true),
            "/api/v1/services"
        );
        assert_eq!(
            shape(Resource::Nodes, "edge-1").list("v1", true),
            "/api/v1/nodes?fieldSelector=metadata.name%3Dedge-1"
        );
    }
}
