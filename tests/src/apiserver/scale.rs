//! Clusters of any size.

use std::net::IpAddr;
use std::net::Ipv4Addr;

use serde_json::Value;
use serde_json::json;

use super::objects;

const SERVICE_PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;
/// The distance between the endpoints of a Service on the ring of nodes.
const STRIDE: usize = 11;
const FIRST_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const FIRST_POD_IP: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
const FIRST_NODE_IP: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);

/// A cluster in which all Services are alike, with objects as a controller would have written them.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Services.
    pub services: usize,
    /// Endpoints of each, in one EndpointSlice.
    pub endpoints: usize,
    /// Nodes.
    pub nodes: usize,
    /// Pools; each has its share of the nodes.
    pub pools: usize,
    /// `openyurt.io/topologyKeys` of all Services.
    pub topology_keys: Option<String>,
    /// Whether objects have managed fields, as those of a real cluster do: that about doubles a small object.
    pub has_managed_fields: bool,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            services: 10_000,
            endpoints: 10,
            nodes: 40,
            pools: 8,
            topology_keys: None,
            has_managed_fields: true,
        }
    }
}

impl Scale {
    /// All objects: nodes, pools, Services and their slices.
    pub fn objects(&self) -> impl Iterator<Item = Value> + '_ {
        let nodes = (0..self.nodes).map(|node| self.node(node));
        let pools = (0..self.pools).map(|pool| self.pool(pool));
        let services = (0..self.services).map(|service| self.service(service));
        let slices = (0..self.services).map(|service| self.slice(service, 0));
        let all = nodes.chain(pools).chain(services).chain(slices);
        all.map(|mut object| {
            if self.has_managed_fields {
                object["metadata"]["managedFields"] = managed_fields(&object);
            }
            object
        })
    }

    /// Name of a node.
    pub fn node_name(&self, node: usize) -> String {
        format!("edge-{node:04}")
    }

    /// Name of a pool.
    pub fn pool_name(&self, pool: usize) -> String {
        format!("pool-{pool:03}")
    }

    /// The pool that a node is in.
    pub fn pool_of(&self, node: usize) -> usize {
        node * self.pools / self.nodes.max(1)
    }

    /// Name of a Service.
    pub fn service_name(&self, service: usize) -> String {
        format!("service-{service:05}")
    }

    /// ClusterIP of a Service.
    pub fn cluster_ip(&self, service: usize) -> Ipv4Addr {
        address(FIRST_CLUSTER_IP, service)
    }

    /// The node of an endpoint of a Service.
    pub fn node_of(&self, service: usize, endpoint: usize) -> usize {
        (service + endpoint * STRIDE) % self.nodes.max(1)
    }

    /// Address of an endpoint of a Service.
    pub fn endpoint_ip(&self, service: usize, endpoint: usize) -> Ipv4Addr {
        address(FIRST_POD_IP, service * self.endpoints + endpoint)
    }

    fn node(&self, node: usize) -> Value {
        let pool = (self.pools > 0).then(|| self.pool_name(self.pool_of(node)));
        let ip = address(FIRST_NODE_IP, node);
        objects::node(&self.node_name(node), pool.as_deref(), ip.into())
    }

    fn pool(&self, pool: usize) -> Value {
        let nodes = (0..self.nodes).filter(|node| self.pool_of(*node) == pool);
        let nodes: Vec<_> = nodes.map(|node| self.node_name(node)).collect();
        objects::node_pool(&self.pool_name(pool), &nodes)
    }

    /// A Service.
    pub fn service(&self, service: usize) -> Value {
        let name = self.service_name(service);
        let mut object = objects::service(&name, self.cluster_ip(service).into(), SERVICE_PORT);
        if let Some(keys) = &self.topology_keys {
            objects::set_topology_keys(&mut object, keys);
        }
        object
    }

    /// The slice of a Service, with this many of its endpoints not ready: a change to it.
    pub fn slice(&self, service: usize, not_ready: usize) -> Value {
        let name = self.service_name(service);
        let endpoints = (0..self.endpoints).map(|endpoint| {
            let address = IpAddr::from(self.endpoint_ip(service, endpoint));
            let node = self.node_of(service, endpoint);
            let mut value = objects::endpoint(address, &self.node_name(node));
            if endpoint < not_ready {
                value["conditions"]["ready"] = json!(false);
                value["conditions"]["serving"] = json!(false);
            }
            value["targetRef"] = json!({
                "kind": "Pod",
                "name": format!("{name}-{:010x}", service * self.endpoints + endpoint),
                "namespace": "default",
                "uid": uid(1, service * self.endpoints + endpoint),
            });
            value
        });
        let mut slice = objects::slice(&format!("{name}-x7k2p"), &name, TARGET_PORT, endpoints);
        slice["metadata"]["generateName"] = json!(format!("{name}-"));
        slice["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1",
            "kind": "Service",
            "name": name,
            "uid": uid(2, service),
            "controller": true,
            "blockOwnerDeletion": true,
        }]);
        slice
    }
}

fn uid(kind: u16, number: usize) -> String {
    format!("00000000-0000-4000-{kind:04x}-{number:012x}")
}

fn address(first: Ipv4Addr, number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(first.to_bits().saturating_add(number))
}

/// All fields, each owned by the controller that would have written it.
fn managed_fields(object: &Value) -> Value {
    let mut fields = owned(object);
    for unowned in ["f:apiVersion", "f:kind"] {
        if let Value::Object(fields) = &mut fields {
            fields.remove(unowned);
        }
    }
    json!([{
        "manager": "kube-controller-manager",
        "operation": "Update",
        "apiVersion": object["apiVersion"],
        "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }])
}

/// Lists are owned as a whole.
fn owned(value: &Value) -> Value {
    let Value::Object(members) = value else {
        return json!({});
    };
    let members = members.iter();
    members
        .map(|(name, member)| (format!("f:{name}"), owned(member)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn endpoints_are_spread_over_the_pools() {
        let scale = Scale::default();
        let nodes: BTreeSet<_> = (0..10).map(|e| scale.node_of(77, e)).collect();
        assert_eq!(nodes.len(), 10);
        let pools: BTreeSet<_> = nodes.iter().map(|node| scale.pool_of(*node)).collect();
        assert!(pools.len() >= 6, "{pools:?}");
        assert_eq!(scale.pool_of(39), 7);
        assert_eq!(scale.objects().count(), 40 + 8 + 2 * 10_000);
    }
}
