//! Fields that several kinds have, and how each is read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::Protocol;
use crate::source::decode::addresses::{parse_address, parse_cidr};
use crate::source::decode::value::{MAX_NAME, Value, Wrong, annotation, at, name_of, text};

pub(super) const TOPOLOGY_KEYS: &str = "openyurt.io/topologyKeys";
pub(super) const LISTEN: &str = "nodeport.openyurt.io/listen";
pub(super) const DISCARD: &str = "svc.openyurt.io/discard";
pub(super) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
pub(super) const POOL_NAME: &str = "openyurt.io/pool-name";
pub(super) const POOL_SERVICE_OF: &str = "openyurt.io/service-name";
/// Taint of a Node that the cluster autoscaler is about to delete.
pub(super) const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// What flannel tells the other nodes of a Node.
pub(super) const FLANNEL: [&str; 5] = [
    "flannel.alpha.coreos.com/backend-type",
    "flannel.alpha.coreos.com/backend-data",
    "flannel.alpha.coreos.com/backend-v6-data",
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
];
/// What a Pod's author tells yurt-net.
pub(super) const OURS: [&str; 3] = [
    "yurt-net.openyurt.io/extra-addresses",
    "yurt-net.openyurt.io/keep-address",
    "yurt-net.openyurt.io/socket-lb",
];
/// Where these begin.
pub(super) const PREFIXES: [&str; 2] = ["flannel.alpha.coreos.com/", "yurt-net.openyurt.io/"];

/// Bytes of the key of a label: a name with a prefix. No rule reads a longer one.
pub(super) const MAX_LABEL_KEY: usize = 317;

/// A name that something else may have. One that is too long for that is kept as a word that nothing has: of a text of
/// a megabyte nothing matters but that it is another.
pub(super) fn known_name(name: &str) -> &str {
    match name.len() <= MAX_NAME {
        true => name,
        false => "(longer than a name may be)",
    }
}

/// Those annotations that are there.
pub(super) fn annotations(
    value: &Value<'_>,
    keys: &[&str],
) -> Result<BTreeMap<String, String>, Wrong> {
    at(value, "metadata", |metadata| {
        at(metadata, "annotations", |all| {
            let mut kept = BTreeMap::new();
            for key in keys {
                if let Some(text) = at(all, key, text)? {
                    kept.insert((*key).to_owned(), annotation(text).to_owned());
                }
            }
            Ok(kept)
        })
    })
}

pub(super) fn label<'v, 'de, T>(
    value: &'v Value<'de>,
    key: &str,
    read: impl FnOnce(&'v Value<'de>) -> Result<T, Wrong>,
) -> Result<T, Wrong> {
    at(value, "metadata", |metadata| {
        at(metadata, "labels", |labels| at(labels, key, read))
    })
}

/// A name that has to be there.
pub(super) fn required<'v>(value: &'v Value<'_>, expected: &'static str) -> Result<&'v str, Wrong> {
    name_of(value)?;
    present(value, expected)
}

/// Refuses names that no apiserver lets an object have (RFC 1123): a manifest may have them, and other tools than this
/// one show them as they are.
pub(super) fn known_to_apiservers(value: &Value<'_>) -> Result<(), Wrong> {
    let name = text(value)?.unwrap_or_default();
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &[u8]| match label {
        [only] => is_alphanumeric(only),
        [first, inner @ .., last] => {
            let mut inner = inner.iter();
            is_alphanumeric(first)
                && inner.all(|byte| is_alphanumeric(byte) || *byte == b'-')
                && is_alphanumeric(last)
        }
        [] => false,
    };
    let is_known = name.is_empty() || name.as_bytes().split(|byte| *byte == b'.').all(is_label);
    match is_known {
        true => Ok(()),
        false => Err(Wrong::new(
            "a name of lower case letters, digits, \"-\" and \".\"",
            value,
        )),
    }
}

/// A text that has to be there, of any length.
pub(super) fn present<'v>(value: &'v Value<'_>, expected: &'static str) -> Result<&'v str, Wrong> {
    text(value)?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Wrong::new(expected, value))
}

pub(super) fn address(value: &Value<'_>) -> Result<IpAddr, Wrong> {
    text(value)?
        .and_then(parse_address)
        .ok_or_else(|| Wrong::new("an IP address", value))
}

pub(super) fn cidr(value: &Value<'_>) -> Result<IpNetwork, Wrong> {
    text(value)?
        .and_then(parse_cidr)
        .ok_or_else(|| Wrong::new("a prefix like 10.96.0.0/12", value))
}

pub(super) fn protocol(value: &Value<'_>) -> Result<Protocol, Wrong> {
    match text(value)? {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(_) => Err(Wrong::new("TCP, UDP or SCTP", value)),
    }
}

/// The number of a port; 0 when the field is absent.
pub(super) fn port_number(value: &Value<'_>) -> Result<u16, Wrong> {
    let number = match value {
        Value::Null => Some(0),
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    };
    number.ok_or_else(|| Wrong::new("a port up to 65535", value))
}
