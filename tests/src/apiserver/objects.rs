//! Objects for tests, with as few fields as possible. Set more by index: `service["spec"]["type"] = json!("NodePort")`.

use std::net::IpAddr;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;

/// The objects in a text of several YAML documents, with those in a List one by one.
/// [`Manifests`](crate::lab::Manifests) writes such a text.
pub fn documents(yaml: &str) -> Result<Vec<Value>> {
    // The parser's limits are made for configuration files, not for a cluster.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_documents: usize::MAX,
        },
    };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(yaml, options).context("read YAML")?;
    let mut objects = Vec::new();
    for mut document in documents {
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => objects.extend(items),
            _ if document.is_null() => {}
            _ => objects.push(document),
        }
    }
    Ok(objects)
}

/// A Service of type ClusterIP in namespace `default`, with the TCP port `http`.
pub fn service(name: &str, cluster_ip: IpAddr, port: u16) -> Value {
    let family = family(cluster_ip);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [{"name": "http", "protocol": "TCP", "port": port, "targetPort": "http"}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// Closes a Service to something: `openyurt.io/nodepool`.
pub fn set_topology_keys(object: &mut Value, keys: &str) {
    object["metadata"]["annotations"]["openyurt.io/topologyKeys"] = json!(keys);
}

/// A ready endpoint on a node.
pub fn endpoint(address: IpAddr, node: &str) -> Value {
    json!({
        "addresses": [address],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": node,
    })
}

/// An EndpointSlice of the Service of this name, with the TCP port `http`. Its family is that of its first endpoint.
pub fn slice(
    name: &str,
    service: &str,
    port: u16,
    endpoints: impl IntoIterator<Item = Value>,
) -> Value {
    let endpoints: Vec<_> = endpoints.into_iter().collect();
    let first = endpoints.first().and_then(|e| e["addresses"][0].as_str());
    let first = first.and_then(|address| address.parse().ok());
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
        },
        "addressType": first.map_or("IPv4", family),
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
    })
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A Node, in a pool or in none.
pub fn node(name: &str, pool: Option<&str>, address: IpAddr) -> Value {
    let mut node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": name},
            ],
        },
    });
    if let Some(pool) = pool {
        node["metadata"]["labels"]["apps.openyurt.io/nodepool"] = json!(pool);
    }
    node
}

/// A Pod on a node.
pub fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-of-{name}")},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        "status": {},
    })
}

/// A NodePool whose status tells its nodes.
pub fn node_pool<S: AsRef<str>>(name: &str, nodes: &[S]) -> Value {
    let nodes: Vec<_> = nodes.iter().map(AsRef::as_ref).collect();
    json!({
        "apiVersion": "apps.openyurt.io/v1beta2",
        "kind": "NodePool",
        "metadata": {"name": name, "labels": {"nodepool.openyurt.io/type": "edge"}},
        "spec": {"type": "Edge"},
        "status": {"readyNodeNum": nodes.len(), "unreadyNodeNum": 0, "nodes": nodes},
    })
}

/// A NodeBucket of a pool.
pub fn node_bucket<S: AsRef<str>>(name: &str, pool: &str, nodes: &[S]) -> Value {
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| json!({"name": node.as_ref()}))
        .collect();
    json!({
        "apiVersion": "apps.openyurt.io/v1alpha1",
        "kind": "NodeBucket",
        "metadata": {"name": name, "labels": {"openyurt.io/pool-name": pool}},
        "numNodes": nodes.len(),
        "nodes": nodes,
    })
}

/// The PoolService of a Service of namespace `default` and a pool, with these addresses.
pub fn pool_service(service: &str, pool: &str, addresses: &[IpAddr]) -> Value {
    let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "network.openyurt.io/v1alpha1",
        "kind": "PoolService",
        "metadata": {
            "name": format!("{service}-{pool}"),
            "namespace": "default",
            "labels": {
                "openyurt.io/service-name": service,
                "openyurt.io/pool-name": pool,
                "poolservice.openyurt.io/managed-by": "load-balancer-set-controller",
            },
        },
        "spec": {"loadBalancerClass": "example.org/edge"},
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::Resource;
    use crate::lab::Manifests;

    #[test]
    fn the_labs_manifests_are_objects() {
        let mut manifests = Manifests::new();
        let web = manifests.service("web");
        web.cluster_ip("10.96.0.10").port(80, 8080);
        manifests.raw("apiVersion: v1\nkind: List\nitems:\n- kind: Job\n  apiVersion: v1");
        let objects = documents(&manifests.to_yaml()).unwrap();
        let kinds: Vec<_> = objects.iter().map(Resource::of).collect();
        let slices = Some(Resource::EndpointSlices);
        assert_eq!(kinds, [Some(Resource::Services), slices, slices, None]);
        assert_eq!(objects[0]["spec"]["ports"][0]["port"], 80);
        assert_eq!(
            documents("---\n---\n# nothing\n").unwrap(),
            [json!(null); 0]
        );
    }
}
