//! The few prefixes that ClusterIPs come from.
//!
//! Pure. In: `--service-cidr`, ServiceCIDRs, the known ClusterIPs. Out: `ClusterPrefixes`, at most `MAX_PREFIXES` a
//! family. Rules in order: (1) the flag; (2) else the ServiceCIDRs; both with the ClusterIPs outside them as exact
//! prefixes; (3) where there are none, or all that does not fit, prefixes that cover what is known, and unallocated
//! addresses inside are left alone. Reference: KEP-1880; pkg/proxy/nftables/proxier.go, which drops only inside
//! ServiceCIDRs.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::pod_networks::{Networks, pod_cidrs};
use crate::model::{AddressFamily, Kind, NamespacedName, Rejection, Snapshot};
use crate::table::{ClusterPrefixes, FrontendKind, MAX_PREFIXES, ServiceTable};
use crate::text;

/// A cover with this many host bits is not split further: 256 neighbours are narrow enough, every prefix costs each
/// miss a comparison, and a wide cover stays put while Services come and go.
const COVER_HOST_BITS: u8 = 8;

/// A prefix of either family, its address left-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    base: u128,
    length: u8,
}

impl Block {
    fn new(network: IpNetwork) -> Self {
        let base = match network.network() {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Self {
            base,
            length: network.prefix(),
        }
    }

    fn network(self, family: AddressFamily) -> Option<IpNetwork> {
        let address = match family {
            AddressFamily::V4 => {
                let [a, b, c, d, ..] = self.base.to_be_bytes();
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            AddressFamily::V6 => IpAddr::V6(Ipv6Addr::from_bits(self.base)),
        };
        IpNetwork::new(address, self.length).ok()
    }

    /// The `length` leading bits that `self` and `other` share.
    fn common(self, other: Self) -> Self {
        let length = u8::try_from((self.base ^ other.base).leading_zeros()).unwrap_or(128);
        let length = length.min(self.length).min(other.length);
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self {
            base: self.base & mask,
            length,
        }
    }

    fn contains(self, other: Self) -> bool {
        self.length <= other.length && self.common(other) == self
    }

    /// Addresses inside, as a measure to compare.
    fn size(self) -> f64 {
        // A power of two by its exponent: `exp2` would bring the C library's mathematics into every agent's memory.
        f64::from_bits(u64::from(1023 + 128 - u16::from(self.length)) << 52)
    }
}

/// Sorts, drops what is inside another prefix, and joins two halves of one.
fn aggregate(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.sort_unstable();
    let mut joined: Vec<Block> = Vec::new();
    for mut block in blocks {
        if joined.last().is_some_and(|last| last.contains(block)) {
            continue;
        }
        while let Some(last) = joined.last().copied() {
            let parent = last.common(block);
            if last.length != block.length || parent.length + 1 != block.length {
                break;
            }
            joined.pop();
            block = parent;
        }
        joined.push(block);
    }
    joined
}

/// At most `limit` prefixes around the disjoint, sorted `blocks`: starts with the one that covers all, and
/// splits the one where a split frees most, so that no prefix is wider than what it covers needs.
fn cover(blocks: &[Block], limit: usize, address_bits: u8) -> Vec<Block> {
    let around = |part: &[Block]| match part {
        [] => None,
        [only] => Some(*only),
        [first, .., last] => Some(first.common(*last)),
    };
    let split = |part: &[Block]| -> Option<(usize, f64)> {
        let whole = around(part).filter(|_| part.len() > 1)?;
        if whole.length >= address_bits - COVER_HOST_BITS {
            return None;
        }
        let bit = 1u128 << (127 - whole.length);
        let middle = part.partition_point(|block| block.base & bit == 0);
        let (low, high) = part.split_at(middle);
        Some((
            middle,
            whole.size() - around(low)?.size() - around(high)?.size(),
        ))
    };
    let mut parts = vec![blocks];
    while parts.len() < limit {
        let splits = parts.iter().enumerate();
        let splits = splits.filter_map(|(at, part)| split(part).map(|(m, freed)| (at, m, freed)));
        let best = splits.reduce(|best, next| if next.2 > best.2 { next } else { best });
        let Some((at, middle, _)) = best else { break };
        let (low, high) = parts[at].split_at(middle);
        parts.splice(at..=at, [low, high]);
    }
    parts.into_iter().filter_map(around).collect()
}

/// The prefixes of ClusterIPs, as the flag or the ServiceCIDRs give them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GivenCidrs {
    cidrs: Vec<IpNetwork>,
    /// The object to complain about; "" for a flag.
    object: Arc<str>,
}

impl GivenCidrs {
    /// The flag, else the ServiceCIDRs.
    pub(super) fn new(flag: &[IpNetwork], snapshot: &Snapshot) -> Self {
        let objects = &snapshot.service_cidrs;
        match flag {
            [] => Self {
                cidrs: objects.values().flat_map(|o| o.cidrs.clone()).collect(),
                object: objects.keys().next_back().cloned().unwrap_or_default(),
            },
            flag => Self {
                cidrs: flag.to_vec(),
                object: Arc::default(),
            },
        }
    }

    /// Whether an address is one that ClusterIPs are allocated from.
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        self.cidrs.iter().any(|cidr| cidr.contains(address))
    }
}

/// The prefixes of ClusterIPs, at most [`MAX_PREFIXES`] of a family; what is wrong with the given ones goes to
/// `rejections`.
pub(super) fn cluster_prefixes(
    given: &GivenCidrs,
    snapshot: &Snapshot,
    cluster_ips: &[IpAddr],
    rejections: &mut Vec<Rejection>,
) -> ClusterPrefixes {
    let GivenCidrs { cidrs, object } = given;
    let families = [(AddressFamily::V4, 32), (AddressFamily::V6, 128)].map(|(family, bits)| {
        let is_ours = |network: &IpNetwork| AddressFamily::from(network.ip()) == family;
        let given: Vec<Block> = cidrs
            .iter()
            .copied()
            .filter(is_ours)
            .map(Block::new)
            .collect();
        let given = aggregate(given);
        let known = cluster_ips
            .iter()
            .map(|&ip| IpNetwork::from(ip))
            .filter(is_ours);
        let mut all: Vec<Block> = known.map(Block::new).collect();
        all.extend(&given);
        (family, bits, given.len(), aggregate(all))
    });
    let fits = |(_, _, _, all): &(_, _, _, Vec<Block>)| all.len() <= MAX_PREFIXES;
    let are_service_cidrs = !cidrs.is_empty() && families.iter().all(fits);
    if !cidrs.is_empty() && !are_service_cidrs {
        let too_many = families
            .iter()
            .any(|(_, _, given, _)| *given > MAX_PREFIXES);
        let what = match too_many {
            true => format!("more than {MAX_PREFIXES} service CIDRs of one family"),
            false => "many ClusterIPs are outside the service CIDRs".to_owned(),
        };
        rejections.push(snapshot.reject(
            Kind::ServiceCidr,
            &NamespacedName::new("", object.clone()),
            format!("{what}: connections to unallocated ClusterIPs are not refused"),
        ));
    }
    let mut prefixes = Vec::new();
    for (family, bits, _, all) in families {
        let kept = match are_service_cidrs {
            true => all,
            false => cover(&all, MAX_PREFIXES, bits),
        };
        prefixes.extend(kept.into_iter().filter_map(|block| block.network(family)));
    }
    ClusterPrefixes {
        prefixes,
        are_service_cidrs,
    }
}

/// A warning if the addresses of Pods overlap those of Services: about this node first, else about the first Node. The
/// two ranges are often given by different people, and each works without the other.
pub fn pods_among_services(snapshot: &Snapshot, table: &ServiceTable) -> Option<String> {
    let whose =
        |pods: IpNetwork, node: &str| format!("podCIDR {pods} of Node {}", text::name(node));
    const REMEDY: &str = "give the Pods or the Services another range";
    let is_other = |node: &str| *node != *table.node;
    let ranges = || pod_cidrs(snapshot).map(|(cidr, node, _)| (cidr, node));
    let prefixes = &table.cluster_prefixes;
    let known: Vec<&IpNetwork> = match prefixes.are_service_cidrs {
        true => prefixes.prefixes.iter().filter(|p| !is_one(p)).collect(),
        false => Vec::new(),
    };
    let overlaps = ranges().filter_map(|(pods, node)| {
        let is_common = |services: &&&IpNetwork| {
            services.contains(pods.network()) || pods.contains(services.network())
        };
        Some((pods, &node.name, **known.iter().find(is_common)?))
    });
    if let Some((pods, node, services)) = overlaps.min_by_key(|(_, node, _)| is_other(node)) {
        return Some(format!(
            "{} overlaps the service CIDR {services}: connections to Pods there are refused, as to ClusterIPs that no \
             Service has; {REMEDY}",
            whose(pods, node)
        ));
    }
    let networks: Networks<&str> = ranges().map(|(cidr, node)| (cidr, &*node.name)).collect();
    let frontends = table.services.iter().flat_map(|entry| &entry.frontends);
    let frontends = frontends.filter(|f| f.kind == FrontendKind::ClusterIp);
    let inside = frontends.filter_map(|f| Some((networks.find(f.address)?, f.address)));
    let ((pods, node), address) = inside.min_by_key(|((_, node), _)| (is_other(node), *node))?;
    Some(format!(
        "{} contains the ClusterIP {address}: a Pod that is given this address is not reached; {REMEDY}",
        whose(pods, node)
    ))
}

/// A ClusterIP that is outside what the cluster says of them.
fn is_one(prefix: &IpNetwork) -> bool {
    prefix.prefix() == if prefix.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests;
