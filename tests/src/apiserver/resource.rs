//! The resources that are served, and the paths that name them.

use serde_json::Value;

/// A kind of objects that yurt-net reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// v1 Services.
    Services,
    /// discovery.k8s.io/v1 EndpointSlices.
    EndpointSlices,
    /// v1 Nodes.
    Nodes,
    /// apps.openyurt.io NodePools.
    NodePools,
    /// apps.openyurt.io NodeBuckets.
    NodeBuckets,
    /// network.openyurt.io PoolServices.
    PoolServices,
    /// networking.k8s.io ServiceCIDRs.
    ServiceCidrs,
    /// v1 Pods.
    Pods,
}

/// The outward form of a resource.
pub(super) struct Shape {
    pub(super) group: &'static str,
    /// The versions; objects are stored in the last one.
    pub(super) versions: &'static [&'static str],
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) is_namespaced: bool,
    /// Whether it comes from a CustomResourceDefinition, whose lists another encoder writes.
    pub(super) is_custom: bool,
    /// The members beside metadata of an empty object, as bookmarks have it.
    pub(super) blank: &'static str,
}

static SERVICES: Shape = Shape {
    group: "",
    versions: &["v1"],
    plural: "services",
    kind: "Service",
    is_namespaced: true,
    is_custom: false,
    blank: r#","spec":{},"status":{"loadBalancer":{}}"#,
};
static ENDPOINT_SLICES: Shape = Shape {
    group: "discovery.k8s.io",
    versions: &["v1"],
    plural: "endpointslices",
    kind: "EndpointSlice",
    is_namespaced: true,
    is_custom: false,
    blank: r#","addressType":"","endpoints":null,"ports":null"#,
};
static NODES: Shape = Shape {
    group: "",
    versions: &["v1"],
    plural: "nodes",
    kind: "Node",
    is_namespaced: false,
    is_custom: false,
    blank: r#","spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}}}"#,
};
static NODE_POOLS: Shape = Shape {
    group: "apps.openyurt.io",
    versions: &["v1beta1", "v1beta2"],
    plural: "nodepools",
    kind: "NodePool",
    is_namespaced: false,
    is_custom: true,
    blank: "",
};
static NODE_BUCKETS: Shape = Shape {
    group: "apps.openyurt.io",
    versions: &["v1alpha1"],
    plural: "nodebuckets",
    kind: "NodeBucket",
    is_namespaced: false,
    is_custom: true,
    blank: "",
};
static POOL_SERVICES: Shape = Shape {
    group: "network.openyurt.io",
    versions: &["v1alpha1"],
    plural: "poolservices",
    kind: "PoolService",
    is_namespaced: true,
    is_custom: true,
    blank: "",
};
static SERVICE_CIDRS: Shape = Shape {
    group: "networking.k8s.io",
    versions: &["v1"],
    plural: "servicecidrs",
    kind: "ServiceCIDR",
    is_namespaced: false,
    is_custom: false,
    blank: r#","spec":{"cidrs":null},"status":{}"#,
};

static PODS: Shape = Shape {
    group: "",
    versions: &["v1"],
    plural: "pods",
    kind: "Pod",
    is_namespaced: true,
    is_custom: false,
    blank: r#","spec":{"containers":null},"status":{}"#,
};

impl Resource {
    /// All resources.
    pub const ALL: [Self; 8] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Nodes,
        Self::NodePools,
        Self::NodeBuckets,
        Self::PoolServices,
        Self::ServiceCidrs,
        Self::Pods,
    ];

    pub(super) fn shape(self) -> &'static Shape {
        match self {
            Self::Services => &SERVICES,
            Self::EndpointSlices => &ENDPOINT_SLICES,
            Self::Nodes => &NODES,
            Self::NodePools => &NODE_POOLS,
            Self::NodeBuckets => &NODE_BUCKETS,
            Self::PoolServices => &POOL_SERVICES,
            Self::ServiceCidrs => &SERVICE_CIDRS,
            Self::Pods => &PODS,
        }
    }

    /// Its name in paths.
    pub fn plural(self) -> &'static str {
        self.shape().plural
    }

    /// The kind of its objects.
    pub fn kind(self) -> &'static str {
        self.shape().kind
    }

    /// The path of the list of all objects, in the newest version.
    pub fn path(self) -> String {
        let version = self.shape().versions.last().unwrap_or(&"v1");
        match self.shape().group {
            "" => format!("/api/{version}/{}", self.plural()),
            group => format!("/apis/{group}/{version}/{}", self.plural()),
        }
    }

    /// The `apiVersion` of its objects in this version.
    pub(super) fn api_version(self, version: &str) -> String {
        match self.shape().group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }

    /// The resource that an object belongs to, in whatever version.
    pub fn of(object: &Value) -> Option<Self> {
        let kind = object["kind"].as_str()?;
        let group = match object["apiVersion"].as_str()?.split_once('/') {
            Some((group, _version)) => group,
            None => "",
        };
        Self::ALL
            .into_iter()
            .find(|resource| resource.kind() == kind && resource.shape().group == group)
    }
}

/// The resource and the object that a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: Resource,
    pub(super) version: &'static str,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

impl Target {
    /// `None`: not a path of a known resource in a known version.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural] => (Some(*namespace), *plural, None),
            ["namespaces", namespace, plural, name] => (Some(*namespace), *plural, Some(*name)),
            [plural] => (None, *plural, None),
            [plural, name] => (None, *plural, Some(*name)),
            _ => return None,
        };
        let resource = Resource::ALL.into_iter().find(|resource| {
            let shape = resource.shape();
            let is_here = shape.is_namespaced || namespace.is_none();
            // A namespaced object is named only together with its namespace.
            let is_whole = name.is_none() || shape.is_namespaced == namespace.is_some();
            shape.group == group && shape.plural == plural && is_here && is_whole
        })?;
        let known = resource.shape().versions.iter();
        Some(Self {
            resource,
            version: known.copied().find(|known| *known == version)?,
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_found_again_by_its_path() {
        for resource in Resource::ALL {
            let target = Target::parse(&resource.path()).unwrap();
            assert_eq!((target.resource, target.name), (resource, None));
        }
        let target = Target::parse("/api/v1/namespaces/default/services/web").unwrap();
        assert_eq!(target.namespace.as_deref(), Some("default"));
        assert_eq!(target.name.as_deref(), Some("web"));
        let old = Target::parse("/apis/apps.openyurt.io/v1beta1/nodepools/hangzhou").unwrap();
        assert_eq!(
            old.resource.api_version(old.version),
            "apps.openyurt.io/v1beta1"
        );
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in [
            "/",
            "/api/v1",
            "/api/v1/configmaps",
            "/api/v2/services",
            "/api/v1/services/web",
            "/api/v1/namespaces/default/nodes",
            "/apis/apps.openyurt.io/v1/nodepools",
        ] {
            assert_eq!(Target::parse(path), None, "{path}");
        }
    }
}
