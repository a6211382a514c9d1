//! The kinds that decide where Service traffic goes, field by field.
//!
//! Each function is the whole list of what is read of its kind, with the API's defaults.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::names::Names;
use super::object::Object;
use super::value::Keep::{self, All, Only, Under};
use super::value::{
    MAX_VALUES, Value, Wrong, at, boolean, each, each_up_to, entries, name_of, text,
};
use crate::model::{
    AddressFamily, Endpoint, EndpointPod, EndpointPort, EndpointSlice, Hints, Kind, MAX_PORTS,
    NamespacedName, Node, NodeBucket, NodePool, Placement, ServiceCidr,
};

mod fields;
mod pod;
mod service;
#[cfg(test)]
mod sizes;
#[cfg(test)]
mod tests;

use fields::{
    DISCARD, FLANNEL, HEADLESS, LISTEN, MAX_LABEL_KEY, POOL_NAME, PREFIXES, SERVICE_NAME,
    TO_BE_DELETED, TOPOLOGY_KEYS, address, annotations, cidr, known_name, known_to_apiservers,
    label, port_number, present, protocol, required,
};
use pod::{CONTAINER, pod};
use service::{pool_service, service};

/// Every field of every kind that is read: the rest is not even kept while parsing.
pub(super) static ROOT: Keep = Only(&[
    ("apiVersion", All),
    ("kind", All),
    (
        "metadata",
        Only(&[
            ("namespace", All),
            ("name", All),
            // Service
            ("creationTimestamp", All),
            // Node
            ("deletionTimestamp", All),
            // Pod
            ("uid", All),
            ("labels", All),
            (
                "annotations",
                Under(&[TOPOLOGY_KEYS, LISTEN, DISCARD, PREFIXES[0], PREFIXES[1]]),
            ),
        ]),
    ),
    (
        "spec",
        Only(&[
            // Service
            ("type", All),
            ("clusterIP", All),
            ("clusterIPs", All),
            ("externalIPs", All),
            ("sessionAffinity", All),
            (
                "sessionAffinityConfig",
                Only(&[("clientIP", Only(&[("timeoutSeconds", All)]))]),
            ),
            ("loadBalancerSourceRanges", All),
            ("healthCheckNodePort", All),
            ("internalTrafficPolicy", All),
            ("externalTrafficPolicy", All),
            (
                "ports",
                Only(&[
                    ("name", All),
                    ("protocol", All),
                    ("port", All),
                    ("nodePort", All),
                ]),
            ),
            // Node
            ("podCIDR", All),
            ("podCIDRs", All),
            ("taints", Only(&[("key", All)])),
            // ServiceCIDR
            ("cidrs", All),
            // Pod
            ("nodeName", All),
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
        ]),
    ),
    (
        "status",
        Only(&[
            // Service, PoolService
            (
                "loadBalancer",
                Only(&[("ingress", Only(&[("ip", All), ("ipMode", All)]))]),
            ),
            // Node
            ("addresses", Only(&[("type", All), ("address", All)])),
            // NodePool
            ("nodes", All),
        ]),
    ),
    // EndpointSlice
    ("addressType", All),
    (
        "ports",
        Only(&[("name", All), ("protocol", All), ("port", All)]),
    ),
    (
        "endpoints",
        Only(&[
            ("addresses", All),
            ("nodeName", All),
            ("targetRef", Only(&[("kind", All), ("name", All)])),
            (
                "conditions",
                Only(&[("ready", All), ("serving", All), ("terminating", All)]),
            ),
            (
                "hints",
                Only(&[
                    ("forZones", Only(&[("name", All)])),
                    ("forNodes", Only(&[("name", All)])),
                ]),
            ),
        ]),
    ),
    // NodeBucket
    ("nodes", Only(&[("name", All)])),
]);

/// An object that is left out, with as much of its identity as could be read.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) reason: String,
}

impl Refusal {
    /// Of something that is no object at all.
    pub(super) fn nameless(reason: String) -> Self {
        Self {
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            reason,
        }
    }

    /// Says which item of a list an object is that has no name to find it by.
    pub(super) fn within_item(mut self, index: Option<usize>) -> Self {
        if let (Some(index), true) = (index, self.name.is_empty()) {
            self.reason.insert_str(0, &format!("items[{index}]: "));
        }
        self
    }
}

/// The API versions that objects of a kind are read in.
fn versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service | Kind::Node | Kind::Pod => &["v1"],
        Kind::EndpointSlice => &["discovery.k8s.io/v1"],
        Kind::NodePool => &["apps.openyurt.io/v1beta1", "apps.openyurt.io/v1beta2"],
        Kind::NodeBucket => &["apps.openyurt.io/v1alpha1"],
        Kind::PoolService => &["network.openyurt.io/v1alpha1"],
        Kind::ServiceCidr => &["networking.k8s.io/v1", "networking.k8s.io/v1beta1"],
    }
}

/// Decodes one object; `None` when nothing reads it. Of one that is too large not all is there.
pub(super) fn object(
    value: &Value<'_>,
    is_too_large: bool,
    names: &mut Names,
) -> Result<Option<Object>, Refusal> {
    let mut refusal = Refusal::nameless(String::new());
    decode(value, is_too_large, names, &mut refusal).map_err(|wrong| {
        refusal.reason = match is_too_large {
            true => format!("it has more than {MAX_VALUES} values in the fields that are read"),
            false => wrong.to_string(),
        };
        refusal
    })
}

/// Decodes one object and notes in `identity` what it has learnt of it on the way.
#[expect(clippy::too_many_lines, reason = "one arm for each kind")]
fn decode(
    value: &Value<'_>,
    is_too_large: bool,
    names: &mut Names,
    identity: &mut Refusal,
) -> Result<Option<Object>, Wrong> {
    let kind = at(value, "kind", |kind| {
        required(kind, "the kind of the object")
    })?;
    kind.clone_into(&mut identity.kind);
    let Some(kind) = Kind::of(kind) else {
        tracing::debug!(kind, "no rule reads this kind: object ignored");
        return Ok(None);
    };
    let versions = versions(kind);
    let metadata = |key: &str| at(value, "metadata", |metadata| at(metadata, key, name_of));
    let version = at(value, "apiVersion", text);
    let group = |version: &str| {
        version
            .rsplit_once('/')
            .map_or("", |(group, _)| group)
            .to_owned()
    };
    let is_read = |version: &str| versions.contains(&version);
    if let Ok(Some(version)) = version
        && group(version) != group(versions[0])
    {
        tracing::debug!(
            kind = kind.name(),
            version,
            "a kind of another group that is called the same: object ignored"
        );
        return Ok(None);
    }
    if kind.is_namespaced() {
        // First the name, then the namespace: an object is known by both or by neither.
        let name = metadata("name").ok().flatten().unwrap_or_default();
        let namespace = metadata("namespace")?.filter(|namespace| !namespace.is_empty());
        name.clone_into(&mut identity.name);
        namespace
            .unwrap_or("default")
            .clone_into(&mut identity.namespace);
    } else {
        metadata("name")
            .ok()
            .flatten()
            .unwrap_or_default()
            .clone_into(&mut identity.name);
    }
    if is_too_large {
        return Err(Wrong::new("fewer values", value));
    }
    at(value, "metadata", |metadata| {
        at(metadata, "name", |name| {
            required(name, "the name of the object")?;
            known_to_apiservers(name)
        })?;
        at(metadata, "namespace", known_to_apiservers)
    })?;
    at(value, "apiVersion", |version| {
        let found = required(version, "the API version of the object")?;
        // Fields moved from one to the next: what it says cannot be told without its words.
        if is_read(found) {
            Ok(())
        } else {
            Err(Wrong::new(versions[versions.len() - 1], version))
        }
    })?;

    let name = || identity.name.as_str().into();
    let full_name = |names: &mut Names| {
        NamespacedName::new(names.intern(&identity.namespace), identity.name.as_str())
    };
    Ok(match kind {
        Kind::Service => {
            // Its slices name it too.
            let name = NamespacedName::new(
                names.intern(&identity.namespace),
                names.intern(&identity.name),
            );
            let service = service(value, name, names)?;
            Some(Object::Service(service.into()))
        }
        Kind::EndpointSlice => {
            slice(value, full_name(names), names)?.map(|slice| Object::EndpointSlice(slice.into()))
        }
        Kind::Node => Some(Object::Node(node(value, name())?.into())),
        Kind::NodePool => Some(Object::NodePool(
            NodePool {
                name: name(),
                nodes: at(value, "status", |status| {
                    at(status, "nodes", |nodes| {
                        each(nodes, |node| {
                            Ok(required(node, "the name of a node")?.to_owned())
                        })
                    })
                })?,
            }
            .into(),
        )),
        Kind::NodeBucket => Some(Object::NodeBucket(
            NodeBucket {
                name: name(),
                pool: label(value, POOL_NAME, |pool| {
                    required(pool, "the name of the bucket's pool")
                })?
                .to_owned(),
                nodes: at(value, "nodes", |nodes| {
                    each(nodes, |node| {
                        at(node, "name", |name| {
                            Ok(required(name, "the name of a node")?.to_owned())
                        })
                    })
                })?,
            }
            .into(),
        )),
        Kind::PoolService => {
            let pool_service = pool_service(value, full_name(names), names)?;
            Some(Object::PoolService(pool_service.into()))
        }
        Kind::ServiceCidr => Some(Object::ServiceCidr(
            ServiceCidr {
                name: name(),
                cidrs: at(value, "spec", |spec| {
                    at(spec, "cidrs", |cidrs| each(cidrs, cidr))
                })?,
            }
            .into(),
        )),
        Kind::Pod => Some(Object::Pod(pod(value, full_name(names), names)?.into())),
    })
}

/// Slices of no Service, and of names instead of addresses, are `None`.
fn slice(
    value: &Value<'_>,
    name: NamespacedName,
    names: &mut Names,
) -> Result<Option<EndpointSlice>, Wrong> {
    // First what every slice has: one that was stripped to its name is of no Service either, and is not gone for that.
    let Some(family) = at(value, "addressType", address_type)? else {
        tracing::debug!(slice = %name, "names instead of addresses: EndpointSlice ignored");
        return Ok(None);
    };
    let service = label(value, SERVICE_NAME, name_of)?.filter(|service| !service.is_empty());
    let is_headless = label(value, HEADLESS, |label| Ok(*label != Value::Null))?;
    let Some(service) = service else {
        tracing::debug!(slice = %name, "no Service to proxy for: EndpointSlice ignored");
        return Ok(None);
    };
    let ports = at(value, "ports", |ports| {
        each_up_to(MAX_PORTS, ports, |port| endpoint_port(port, names))
    })?;
    let found = at(value, "endpoints", |all| {
        each(all, |one| {
            let endpoint = endpoint(one, names)?;
            let is_here = |e: &Endpoint| e.node_name().is_some_and(|n| names.is_own_node(n));
            let pod = match &endpoint {
                Some(endpoint) if is_here(endpoint) => target_pod(one)?,
                _ => None,
            };
            Ok(endpoint.map(|endpoint| (endpoint, pod)))
        })
    })?;
    let (mut endpoints, mut pods) = (Vec::new(), Vec::new());
    for (endpoint, name) in found.into_iter().flatten() {
        // A slice has at most a thousand (pkg/apis/discovery/validation).
        if let (Some(name), Ok(endpoint)) = (name, u32::try_from(endpoints.len())) {
            pods.push(EndpointPod { endpoint, name });
        }
        endpoints.push(endpoint);
    }
    Ok(Some(EndpointSlice {
        name,
        service: names.intern(service),
        family,
        is_headless,
        ports: names.ports(ports),
        endpoints: endpoints.into(),
        pods: pods.into(),
    }))
}

/// The Pod that an endpoint is; `None` where it is none.
fn target_pod(value: &Value<'_>) -> Result<Option<Arc<str>>, Wrong> {
    at(value, "targetRef", |target| {
        let kind = at(target, "kind", text)?;
        let name = at(target, "name", text)?.filter(|name| !name.is_empty());
        let name = name.filter(|_| kind == Some("Pod"));
        Ok(name.map(|name| known_name(name).into()))
    })
}

fn address_type(value: &Value<'_>) -> Result<Option<AddressFamily>, Wrong> {
    match text(value)? {
        Some("IPv4") => Ok(Some(AddressFamily::V4)),
        Some("IPv6") => Ok(Some(AddressFamily::V6)),
        Some("FQDN") => Ok(None),
        _ => Err(Wrong::new("IPv4, IPv6 or FQDN", value)),
    }
}

/// kube-proxy skips a port without a name and a port without a number, each of them null or absent; the
/// empty name is one.
fn endpoint_port(value: &Value<'_>, names: &mut Names) -> Result<Option<EndpointPort>, Wrong> {
    // The apiserver fills a missing name in with "" (pkg/apis/discovery/v1/defaults.go), so no proxy ever sees one.
    let name = names.intern(at(value, "name", name_of)?.unwrap_or_default());
    let protocol = at(value, "protocol", protocol)?;
    let port = at(value, "port", port_number)?;
    Ok((port != 0).then_some(EndpointPort {
        name,
        protocol,
        port,
    }))
}

/// An endpoint without addresses is no endpoint; of several addresses kube-proxy uses the first. That of another family
/// than the slice's costs only the endpoint, which the policy leaves out.
fn endpoint(value: &Value<'_>, names: &mut Names) -> Result<Option<Endpoint>, Wrong> {
    let mut first = None;
    at(value, "addresses", |all| {
        let mut is_first = true;
        each(all, |one| {
            if std::mem::take(&mut is_first) {
                first = Some(address(one)?);
            }
            Ok(())
        })
    })?;
    let node_name = at(value, "nodeName", text)?.filter(|node| !node.is_empty());
    let condition = |name: &str| {
        at(value, "conditions", |conditions| {
            at(conditions, name, boolean)
        })
    };
    let (ready, serving) = (condition("ready")?, condition("serving")?);
    let terminating = condition("terminating")?;
    let hints = at(value, "hints", |hints| {
        let mut named = |field| {
            at(hints, field, |all| {
                each(all, |one| {
                    at(one, "name", |name| {
                        let name = present(name, "the name of a zone or node")?;
                        Ok(place_name(name, names))
                    })
                })
            })
        };
        Ok(Hints {
            zones: named("forZones")?.into(),
            nodes: named("forNodes")?.into(),
        })
    })?;
    let placement = Placement::new(node_name.map(|node| place_name(node, names)), hints);
    Ok(first.map(|address| Endpoint {
        address,
        is_ready: ready.unwrap_or(true),
        is_serving: serving.unwrap_or(true),
        is_terminating: terminating.unwrap_or(false),
        placement: placement.map(|placement| names.placement(placement)),
    }))
}

/// The name of a node or zone, shared.
fn place_name(name: &str, names: &mut Names) -> Arc<str> {
    names.place(known_name(name))
}

fn node(value: &Value<'_>, name: Arc<str>) -> Result<Node, Wrong> {
    let labels = at(value, "metadata", |metadata| {
        at(metadata, "labels", |labels| {
            let mut all = BTreeMap::new();
            for (key, label) in entries(labels)? {
                let label = text(label).map_err(|wrong| wrong.within_field(key))?;
                if key.len() > MAX_LABEL_KEY {
                    continue;
                }
                all.insert(
                    key.to_owned(),
                    known_name(label.unwrap_or_default()).to_owned(),
                );
            }
            Ok(all)
        })
    })?;
    let addresses = |of_type: &str| {
        let addresses = at(value, "status", |status| {
            at(status, "addresses", |all| {
                each(all, |one| node_address(one, of_type))
            })
        })?;
        Ok(addresses.into_iter().flatten().collect())
    };
    let pod_cidrs = at(value, "spec", |spec| {
        let cidrs = at(spec, "podCIDRs", |all| each(all, cidr))?;
        if !cidrs.is_empty() {
            return Ok(cidrs);
        }
        at(spec, "podCIDR", |one| match text(one)? {
            None | Some("") => Ok(Vec::new()),
            Some(_) => Ok(vec![cidr(one)?]),
        })
    })?;
    Ok(Node {
        name,
        labels,
        internal_ips: addresses("InternalIP")?,
        external_ips: addresses("ExternalIP")?,
        pod_cidrs,
        annotations: annotations(value, &FLANNEL)?,
        is_leaving: is_leaving(value)?,
    })
}

/// Whether load balancers are to leave a Node alone (kube-proxy's `NodeEligible`, KEP-3836).
fn is_leaving(value: &Value<'_>) -> Result<bool, Wrong> {
    let deleted_at = at(value, "metadata", |m| at(m, "deletionTimestamp", text))?;
    let taints = at(value, "spec", |spec| {
        at(spec, "taints", |all| {
            each(all, |taint| {
                Ok(at(taint, "key", text)? == Some(TO_BE_DELETED))
            })
        })
    })?;
    Ok(deleted_at.is_some_and(|time| !time.is_empty()) || taints.contains(&true))
}

fn node_address(value: &Value<'_>, of_type: &str) -> Result<Option<IpAddr>, Wrong> {
    if at(value, "type", text)? != Some(of_type) {
        return Ok(None);
    }
    at(value, "address", address).map(Some)
}
