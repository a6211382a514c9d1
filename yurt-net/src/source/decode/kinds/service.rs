//! Services, and what OpenYurt says about them in one pool.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use jiff::Timestamp;

use super::fields::{
    DISCARD, LISTEN, POOL_NAME, POOL_SERVICE_OF, PROXY_NAME, TOPOLOGY_KEYS, address, label,
    port_number, protocol, required,
};
use crate::model::{
    MAX_ADDRESSES, MAX_PORTS, MAX_SOURCE_RANGES, NamespacedName, PoolService, Service, ServicePort,
    ServiceType, TrafficPolicy,
};
use crate::source::decode::addresses::parse_cidr;
use crate::source::decode::names::Names;
use crate::source::decode::value::{Value, Wrong, annotation, at, each, each_up_to, name_of, text};

/// kube-apiserver's default and limit of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours, a day.
const AFFINITY_DEFAULT: u32 = 10_800;
const AFFINITY_MAX: u32 = 86_400;
/// Bytes of `openyurt.io/topologyKeys` that are kept: longer than all values that mean something.
const MAX_TOPOLOGY_KEYS: usize = 256;

pub(super) fn service(
    value: &Value<'_>,
    name: NamespacedName,
    names: &mut Names,
) -> Result<Service, Wrong> {
    let text_of = |key: &str| {
        at(value, "metadata", |m| {
            at(m, "annotations", |all| at(all, key, text))
        })
    };
    // What is longer is none of those that are known, however it goes on.
    let start = |keys: &str| names.intern(&keys[..keys.floor_char_boundary(MAX_TOPOLOGY_KEYS)]);
    let topology_keys = text_of(TOPOLOGY_KEYS)?.map(start);
    let listen = text_of(LISTEN)?.map(|pools| names.intern(annotation(pools)));
    let is_discarded = text_of(DISCARD)? == Some("true");
    let is_proxied_elsewhere = label(value, PROXY_NAME, |label| Ok(*label != Value::Null))?;
    let load_balancer_ips = load_balancer_ips(value)?;
    let created_at = at(value, "metadata", |m| {
        at(m, "creationTimestamp", seconds_since_1970)
    })?;
    let service = at(value, "spec", |spec| {
        // Who strips objects of it would have all Services be without ports.
        if *spec == Value::Null {
            return Err(Wrong::new("an object", spec));
        }
        let mut cluster_ips = at(spec, "clusterIPs", |all| each(all, cluster_ip))?;
        if cluster_ips.is_empty() {
            cluster_ips.push(at(spec, "clusterIP", cluster_ip)?);
        }
        let external_ips = at(spec, "externalIPs", |all| {
            each_up_to(MAX_ADDRESSES, all, external_ip)
        })?;
        Ok(Service {
            name,
            created_at,
            service_type: at(spec, "type", service_type)?,
            cluster_ips: cluster_ips.into_iter().flatten().collect(),
            external_ips,
            load_balancer_ips,
            ports: at(spec, "ports", |all| {
                each_up_to(MAX_PORTS, all, |port| service_port(port, names).map(Some))
            })?,
            internal_policy: at(spec, "internalTrafficPolicy", traffic_policy)?,
            external_policy: at(spec, "externalTrafficPolicy", traffic_policy)?,
            affinity_seconds: affinity_seconds(spec)?,
            source_ranges: at(spec, "loadBalancerSourceRanges", source_ranges)?,
            topology_keys,
            listen,
            is_discarded,
            is_proxied_elsewhere,
            health_check_node_port: at(spec, "healthCheckNodePort", port_number)?,
        })
    })?;
    at(value, "spec", |spec| has_its_ports(&service, spec))?;
    Ok(service)
}

/// Refuses what an apiserver refuses (pkg/apis/core/validation, ValidateService): it was damaged on its way, and would
/// take a Service out of force that works.
fn has_its_ports(service: &Service, spec: &Value<'_>) -> Result<(), Wrong> {
    let is_external = service.service_type == ServiceType::ExternalName;
    match service.ports.is_empty() && !is_external && !is_headless(spec)? {
        true => at(spec, "ports", |ports| {
            Err(Wrong::new("at least one port", ports))
        }),
        false => Ok(()),
    }
}

/// 0 where there is no such time: it is the apiserver's to write, and a manifest is right without. One that says
/// nothing is refused, as by kubectl: who is older than whom decides who has an address.
fn seconds_since_1970(value: &Value<'_>) -> Result<u64, Wrong> {
    let Some(time) = text(value)?.filter(|time| !time.is_empty()) else {
        return Ok(0);
    };
    let time: Option<Timestamp> = time.parse().ok();
    let time = time.ok_or_else(|| Wrong::new("a time as 2006-01-02T15:04:05Z", value))?;
    // Of a time before 1970 it is enough that it is long ago.
    Ok(time.as_second().try_into().unwrap_or(1))
}

pub(super) fn pool_service(
    value: &Value<'_>,
    name: NamespacedName,
    names: &mut Names,
) -> Result<PoolService, Wrong> {
    let of_label = |key, expected| label(value, key, |text| required(text, expected));
    Ok(PoolService {
        name,
        service: of_label(POOL_SERVICE_OF, "the name of a Service")?.into(),
        pool: names.intern(of_label(POOL_NAME, "the name of a NodePool")?),
        load_balancer_ips: load_balancer_ips(value)?,
    })
}

fn load_balancer_ips(value: &Value<'_>) -> Result<Box<[IpAddr]>, Wrong> {
    at(value, "status", |status| {
        at(status, "loadBalancer", |balancer| {
            at(balancer, "ingress", |all| {
                each_up_to(MAX_ADDRESSES, all, ingress_ip)
            })
        })
    })
}

/// All of them, each once, while they can be served; of more only so many that this can be told. One of length 0 admits
/// all others of its family, so it is kept wherever it stands.
fn source_ranges(value: &Value<'_>) -> Result<Box<[IpNetwork]>, Wrong> {
    let (mut kept, mut known, mut counts) = (Vec::new(), BTreeSet::new(), [0; 2]);
    each(value, |element| {
        let Some(range) = source_range(element)? else {
            return Ok(());
        };
        let count = &mut counts[usize::from(range.is_ipv6())];
        if (*count <= MAX_SOURCE_RANGES || range.prefix() == 0) && known.insert(range) {
            *count += 1;
            kept.push(range);
        }
        Ok(())
    })?;
    Ok(kept.into())
}

/// 0 = none.
fn affinity_seconds(spec: &Value<'_>) -> Result<u32, Wrong> {
    let is_sticky = at(spec, "sessionAffinity", |affinity| match text(affinity)? {
        None | Some("" | "None") => Ok(false),
        Some("ClientIP") => Ok(true),
        Some(_) => Err(Wrong::new("None or ClientIP", affinity)),
    })?;
    if !is_sticky {
        return Ok(0);
    }
    at(spec, "sessionAffinityConfig", |config| {
        at(config, "clientIP", |client| {
            at(client, "timeoutSeconds", |seconds| match seconds {
                Value::Null => Ok(AFFINITY_DEFAULT),
                Value::Int(number) => u32::try_from(*number)
                    .ok()
                    .filter(|number| (1..=AFFINITY_MAX).contains(number))
                    .ok_or_else(|| Wrong::new("seconds from 1 to 86400", seconds)),
                _ => Err(Wrong::new("seconds from 1 to 86400", seconds)),
            })
        })
    })
}

fn traffic_policy(value: &Value<'_>) -> Result<TrafficPolicy, Wrong> {
    match text(value)? {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(_) => Err(Wrong::new("Cluster or Local", value)),
    }
}

/// The API's validation lets blanks through, around a prefix and alone; kube-proxy trims and skips them.
fn source_range(value: &Value<'_>) -> Result<Option<IpNetwork>, Wrong> {
    match text(value)?.map(str::trim) {
        None | Some("") => Ok(None),
        Some(range) => parse_cidr(range)
            .map(Some)
            .ok_or_else(|| Wrong::new("a prefix like 203.0.113.0/24", value)),
    }
}

/// The API's validation did not always see these; kube-proxy skips blanks without a word.
fn external_ip(value: &Value<'_>) -> Result<Option<IpAddr>, Wrong> {
    match text(value)?.map(str::trim) {
        None | Some("") => Ok(None),
        Some(_) => address(value).map(Some),
    }
}

fn service_type(value: &Value<'_>) -> Result<ServiceType, Wrong> {
    match text(value)? {
        None | Some("" | "ClusterIP") => Ok(ServiceType::ClusterIp),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(_) => Err(Wrong::new(
            "ClusterIP, NodePort, LoadBalancer or ExternalName",
            value,
        )),
    }
}

/// It has no address on purpose.
fn is_headless(spec: &Value<'_>) -> Result<bool, Wrong> {
    let is_none = |ip: &Value<'_>| Ok(text(ip)? == Some("None"));
    let all = at(spec, "clusterIPs", |all| each(all, is_none))?;
    Ok(at(spec, "clusterIP", is_none)? || all.contains(&true))
}

/// Headless ("None") and not yet allocated ("") are no address.
fn cluster_ip(value: &Value<'_>) -> Result<Option<IpAddr>, Wrong> {
    match text(value)? {
        None | Some("" | "None") => Ok(None),
        Some(_) => address(value).map(Some),
    }
}

/// kube-proxy short-circuits only addresses whose mode is absent or VIP; a host name is none.
fn ingress_ip(value: &Value<'_>) -> Result<Option<IpAddr>, Wrong> {
    let is_vip = at(value, "ipMode", text)?.is_none_or(|mode| mode == "VIP");
    at(value, "ip", |ip| match text(ip)? {
        Some(ip_text) if is_vip && !ip_text.is_empty() => address(ip).map(Some),
        _ => Ok(None),
    })
}

fn service_port(value: &Value<'_>, names: &mut Names) -> Result<ServicePort, Wrong> {
    Ok(ServicePort {
        name: names.intern(at(value, "name", name_of)?.unwrap_or_default()),
        protocol: at(value, "protocol", protocol)?,
        port: at(value, "port", |port| match port_number(port)? {
            0 => Err(Wrong::new("a port from 1 to 65535", port)),
            number => Ok(number),
        })?,
        node_port: at(value, "nodePort", port_number)?,
    })
}
