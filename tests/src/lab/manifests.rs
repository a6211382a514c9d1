//! Kubernetes objects of a lab, as the YAML that `kubectl get -o yaml` would print.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;

use super::Node;
use super::Pod;
use super::Proto;

/// The label that puts a Node into a pool.
const POOL_LABEL: &str = "apps.openyurt.io/nodepool";

/// The objects of a cluster. The pools' status follows from the Nodes' labels.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    nodes: BTreeMap<String, NodeObject>,
    services: BTreeMap<String, ServiceObject>,
    raw: Vec<String>,
}

impl Manifests {
    /// No objects yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The Node object of a node of the lab; made if it is not there.
    pub fn node(&mut self, node: &Node) -> &mut NodeObject {
        let name = node.name().to_owned();
        self.nodes.entry(name).or_insert_with(|| NodeObject {
            pool: None,
            addresses: vec![node.ip4().into(), node.ip6().into()],
            cidrs: vec![node.pod_cidr4(), node.pod_cidr6()],
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        })
    }

    /// The Service of this name in namespace `default`; made if it is not there.
    pub fn service(&mut self, name: &str) -> &mut ServiceObject {
        self.services.entry(name.to_owned()).or_default()
    }

    /// Removes a Service and its EndpointSlices.
    pub fn remove_service(&mut self, name: &str) -> &mut Self {
        self.services.remove(name);
        self
    }

    /// Adds a document as it is.
    pub fn raw(&mut self, yaml: &str) -> &mut Self {
        self.raw.push(yaml.trim_matches('\n').to_owned());
        self
    }

    /// All objects, in one multi-document file.
    pub fn to_yaml(&self) -> String {
        let mut documents = Vec::new();
        for (name, node) in &self.nodes {
            documents.push(node.to_yaml(name));
        }
        documents.extend(self.pools());
        for (name, service) in &self.services {
            documents.push(service.to_yaml(name));
            documents.extend(service.slices(name));
        }
        documents.extend(self.raw.iter().map(|raw| format!("{raw}\n")));
        documents.join("---\n")
    }

    fn pools(&self) -> Vec<String> {
        let mut pools: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, node) in &self.nodes {
            if let Some(pool) = &node.pool {
                pools.entry(pool).or_default().push(name);
            }
        }
        pools
            .into_iter()
            .map(|(pool, nodes)| {
                format!(
                    "apiVersion: apps.openyurt.io/v1beta2\nkind: NodePool\n\
                     metadata:\n  name: {pool}\nspec:\n  type: Edge\n\
                     status:\n  readyNodeNum: {}\n  nodes: [{}]\n",
                    nodes.len(),
                    nodes.join(", ")
                )
            })
            .collect()
    }

    /// Replaces a file by rename, so that a reader sees a complete one.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        // A dotfile is no manifest.
        let name = path.file_name().context("no file name")?.to_string_lossy();
        let draft = path.with_file_name(format!(".{name}.new"));
        fs::write(&draft, self.to_yaml()).with_context(|| draft.display().to_string())?;
        fs::rename(&draft, path).with_context(|| path.display().to_string())
    }
}

/// A Node.
#[derive(Clone, Debug)]
pub struct NodeObject {
    pool: Option<String>,
    addresses: Vec<IpAddr>,
    cidrs: Vec<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl NodeObject {
    /// Moves it into a pool.
    pub fn pool(&mut self, pool: &str) -> &mut Self {
        self.pool = Some(pool.to_owned());
        self
    }

    /// Takes it out of its pool.
    pub fn no_pool(&mut self) -> &mut Self {
        self.pool = None;
        self
    }

    /// Sets a label.
    pub fn label(&mut self, key: &str, value: &str) -> &mut Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets an annotation.
    pub fn annotation(&mut self, key: &str, value: &str) -> &mut Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The network hands out Pods' addresses by itself.
    pub fn without_pod_cidrs(&mut self) -> &mut Self {
        self.cidrs.clear();
        self
    }

    fn to_yaml(&self, name: &str) -> String {
        let mut labels = self.labels.clone();
        labels.insert("kubernetes.io/hostname".to_owned(), name.to_owned());
        if let Some(pool) = &self.pool {
            labels.insert(POOL_LABEL.to_owned(), pool.clone());
        }
        let mut yaml =
            format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n");
        for (key, value) in labels {
            let _ = writeln!(yaml, "    {key}: {value:?}");
        }
        for (index, (key, value)) in self.annotations.iter().enumerate() {
            if index == 0 {
                yaml += "  annotations:\n";
            }
            let _ = writeln!(yaml, "    {key}: {value:?}");
        }
        yaml += "spec:\n  podCIDRs:\n";
        for cidr in &self.cidrs {
            let _ = writeln!(yaml, "  - {cidr:?}");
        }
        yaml += "status:\n  addresses:\n";
        for address in &self.addresses {
            let address = address.to_string();
            let _ = writeln!(yaml, "  - type: InternalIP\n    address: {address:?}");
        }
        let _ = writeln!(yaml, "  - type: Hostname\n    address: {name}");
        yaml
    }
}

#[derive(Clone, Debug)]
struct Port {
    proto: Proto,
    port: u16,
    target: u16,
    node_port: Option<u16>,
}

impl Port {
    fn name(&self) -> String {
        match self.proto {
            Proto::Tcp => format!("tcp-{}", self.port),
            Proto::Udp => format!("udp-{}", self.port),
        }
    }

    fn protocol(&self) -> &'static str {
        match self.proto {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
        }
    }
}

#[derive(Clone, Debug)]
struct Endpoint {
    address: IpAddr,
    node: Option<String>,
    ready: bool,
    /// Terminating, and still serving.
    terminating: bool,
}

/// A Service and its endpoints.
#[derive(Clone, Debug, Default)]
pub struct ServiceObject {
    cluster_ips: Vec<String>,
    external_ips: Vec<String>,
    load_balancer_ips: Vec<String>,
    topology_keys: Option<String>,
    /// Lines of its spec.
    policies: BTreeMap<&'static str, String>,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
}

impl ServiceObject {
    /// Adds a ClusterIP; the first of each family counts.
    pub fn cluster_ip(&mut self, ip: &str) -> &mut Self {
        self.cluster_ips.push(ip.to_owned());
        self
    }

    /// Adds an external IP.
    pub fn external_ip(&mut self, ip: &str) -> &mut Self {
        self.external_ips.push(ip.to_owned());
        self
    }

    /// Adds an address that a load balancer has given it.
    pub fn load_balancer_ip(&mut self, ip: &str) -> &mut Self {
        self.load_balancer_ips.push(ip.to_owned());
        self
    }

    /// Sets the annotation `openyurt.io/topologyKeys`; the empty string removes it.
    pub fn topology_keys(&mut self, keys: &str) -> &mut Self {
        self.topology_keys = (!keys.is_empty()).then(|| keys.to_owned());
        self
    }

    /// Sets the session affinity; 0 seconds removes it.
    pub fn affinity(&mut self, seconds: u32) -> &mut Self {
        let affinity = format!(
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}\n"
        );
        self.policy("affinity", affinity, seconds > 0)
    }

    /// Sets the internal traffic policy: Local, or Cluster.
    pub fn internal_policy_local(&mut self, is_local: bool) -> &mut Self {
        let policy = "  internalTrafficPolicy: Local\n".to_owned();
        self.policy("internal", policy, is_local)
    }

    /// Sets the external traffic policy to Local, with this port for the health check of a load balancer; 0: to
    /// Cluster.
    pub fn health_check(&mut self, port: u16) -> &mut Self {
        let policy = format!("  externalTrafficPolicy: Local\n  healthCheckNodePort: {port}\n");
        self.policy("external", policy, port != 0)
    }

    /// Sets the source ranges of its load balancer's addresses; none removes them.
    pub fn source_ranges(&mut self, ranges: &[&str]) -> &mut Self {
        let policy = format!("  loadBalancerSourceRanges: {ranges:?}\n");
        self.policy("ranges", policy, !ranges.is_empty())
    }

    fn policy(&mut self, name: &'static str, lines: String, is_set: bool) -> &mut Self {
        self.policies.remove(name);
        self.policies.extend(is_set.then_some((name, lines)));
        self
    }

    /// Adds a TCP port and the port of its Pods.
    pub fn port(&mut self, port: u16, target: u16) -> &mut Self {
        self.add_port(Proto::Tcp, port, target, None)
    }

    /// Adds a UDP port and the port of its Pods.
    pub fn udp_port(&mut self, port: u16, target: u16) -> &mut Self {
        self.add_port(Proto::Udp, port, target, None)
    }

    /// Adds a port that nodes serve too.
    pub fn node_port(&mut self, proto: Proto, port: u16, target: u16, node: u16) -> &mut Self {
        self.add_port(proto, port, target, Some(node))
    }

    fn add_port(&mut self, proto: Proto, port: u16, target: u16, node: Option<u16>) -> &mut Self {
        self.ports.push(Port {
            proto,
            port,
            target,
            node_port: node,
        });
        self
    }

    /// Sets the endpoints: these Pods, ready, by both families.
    pub fn endpoints<'a>(&mut self, pods: impl IntoIterator<Item = &'a Pod>) -> &mut Self {
        self.endpoints.clear();
        for pod in pods {
            for address in [IpAddr::from(pod.ip4()), IpAddr::from(pod.ip6())] {
                self.add_endpoint(address, Some(pod.node()), true);
            }
        }
        self
    }

    /// Adds one endpoint, with unusual properties if wanted.
    pub fn add_endpoint(&mut self, ip: IpAddr, node: Option<&str>, ready: bool) -> &mut Self {
        self.endpoints.push(Endpoint {
            address: ip,
            node: node.map(str::to_owned),
            ready,
            terminating: false,
        });
        self
    }

    /// Adds the endpoints of a Pod that is terminating and still serves.
    pub fn terminating(&mut self, pod: &Pod) -> &mut Self {
        for address in [IpAddr::from(pod.ip4()), IpAddr::from(pod.ip6())] {
            self.endpoints.push(Endpoint {
                address,
                node: Some(pod.node().to_owned()),
                ready: false,
                terminating: true,
            });
        }
        self
    }

    fn to_yaml(&self, name: &str) -> String {
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\n"
        );
        if let Some(keys) = &self.topology_keys {
            let _ = writeln!(
                yaml,
                "  annotations:\n    openyurt.io/topologyKeys: {keys:?}"
            );
        }
        let kind = if !self.load_balancer_ips.is_empty() {
            "LoadBalancer"
        } else if self.ports.iter().any(|port| port.node_port.is_some()) {
            "NodePort"
        } else {
            "ClusterIP"
        };
        let none = "None".to_owned();
        let first = self.cluster_ips.first().unwrap_or(&none);
        let _ = writeln!(yaml, "spec:\n  type: {kind}\n  clusterIP: {first:?}");
        list(&mut yaml, "  clusterIPs", &self.cluster_ips);
        list(&mut yaml, "  externalIPs", &self.external_ips);
        yaml.extend(self.policies.values().map(String::as_str));
        yaml += "  ports:\n";
        for port in &self.ports {
            let _ = writeln!(
                yaml,
                "  - name: {}\n    protocol: {}\n    port: {}\n    targetPort: {}",
                port.name(),
                port.protocol(),
                port.port,
                port.target
            );
            if let Some(node_port) = port.node_port {
                let _ = writeln!(yaml, "    nodePort: {node_port}");
            }
        }
        if !self.load_balancer_ips.is_empty() {
            yaml += "status:\n  loadBalancer:\n    ingress:\n";
            for ip in &self.load_balancer_ips {
                let _ = writeln!(yaml, "    - ip: {ip:?}");
            }
        }
        yaml
    }

    /// One EndpointSlice per family, also if it is empty: that is how a Service without endpoints looks.
    fn slices(&self, name: &str) -> [String; 2] {
        [("IPv4", "ipv4", true), ("IPv6", "ipv6", false)].map(|(family, suffix, is_v4)| {
            let mut yaml = format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata:\n  name: {name}-{suffix}\n  namespace: default\n  labels:\n    \
                 kubernetes.io/service-name: {name}\naddressType: {family}\nports:\n"
            );
            for port in &self.ports {
                let _ = writeln!(
                    yaml,
                    "- name: {}\n  protocol: {}\n  port: {}",
                    port.name(),
                    port.protocol(),
                    port.target
                );
            }
            let mut endpoints = String::new();
            for endpoint in self
                .endpoints
                .iter()
                .filter(|e| e.address.is_ipv4() == is_v4)
            {
                let address = endpoint.address.to_string();
                let _ = writeln!(
                    endpoints,
                    "- addresses: [{address:?}]\n  conditions:\n    ready: {ready}\n    \
                     serving: {serving}\n    terminating: {terminating}",
                    ready = endpoint.ready,
                    serving = endpoint.ready || endpoint.terminating,
                    terminating = endpoint.terminating,
                );
                if let Some(node) = &endpoint.node {
                    let _ = writeln!(endpoints, "  nodeName: {node}");
                }
            }
            if endpoints.is_empty() {
                yaml + "endpoints: []\n"
            } else {
                yaml + "endpoints:\n" + &endpoints
            }
        })
    }
}

fn list(yaml: &mut String, key: &str, values: &[String]) {
    if !values.is_empty() {
        let _ = writeln!(yaml, "{key}:");
        for value in values {
            let _ = writeln!(yaml, "  - {value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_and_its_slices_read_as_kubernetes_prints_them() {
        let mut manifests = Manifests::new();
        manifests
            .service("web")
            .cluster_ip("10.96.0.10")
            .topology_keys("openyurt.io/nodepool")
            .port(80, 8080)
            .add_endpoint("10.244.1.10".parse().unwrap(), Some("edge-a1"), true);
        let expected = r#"apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: default
  annotations:
    openyurt.io/topologyKeys: "openyurt.io/nodepool"
spec:
  type: ClusterIP
  clusterIP: "10.96.0.10"
  clusterIPs:
  - "10.96.0.10"
  ports:
  - name: tcp-80
    protocol: TCP
    port: 80
    targetPort: 8080
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-ipv4
  namespace: default
  labels:
    kubernetes.io/service-name: web
addressType: IPv4
ports:
- name: tcp-80
  protocol: TCP
  port: 8080
endpoints:
- addresses: ["10.244.1.10"]
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: edge-a1
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-ipv6
  namespace: default
  labels:
    kubernetes.io/service-name: web
addressType: IPv6
ports:
- name: tcp-80
  protocol: TCP
  port: 8080
endpoints: []
"#;
        assert_eq!(manifests.to_yaml(), expected);
    }
}
