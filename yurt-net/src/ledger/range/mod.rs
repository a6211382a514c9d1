//! Ranges that addresses are taken from. Pure.
//!
//! The rules are host-local's (containernetworking/plugins, plugins/ipam/host-local): each set gives an interface one
//! address, from any of its ranges. The gateway, the network and the IPv4 broadcast address are never given.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::go_json;

#[cfg(test)]
mod tests;

/// A range as a configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConfig {
    /// The subnet.
    #[serde(deserialize_with = "go_json::some_network")]
    pub subnet: IpNetwork,
    /// The first address to give; by default the one after the network.
    #[serde(default, deserialize_with = "go_json::address")]
    pub range_start: Option<IpAddr>,
    /// The last address to give; by default the one before the broadcast address.
    #[serde(default, deserialize_with = "go_json::address")]
    pub range_end: Option<IpAddr>,
    /// The gateway, which is never given; by default the first address.
    #[serde(default, deserialize_with = "go_json::address")]
    pub gateway: Option<IpAddr>,
}

/// A configuration that gives no addresses.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// `10.1.0.5/24`.
    #[error("subnet {subnet} has host bits set: write {network}/{}", subnet.prefix())]
    HostBits {
        /// As configured.
        subnet: IpNetwork,
        /// As it should be.
        network: IpAddr,
    },
    /// It has no more than a network, a gateway and a broadcast address.
    #[error("subnet {subnet} is too small: it needs two host bits at least")]
    TooSmall {
        /// As configured.
        subnet: IpNetwork,
    },
    /// One of its addresses lies elsewhere.
    #[error("{what} {address} is not in subnet {subnet}")]
    Outside {
        /// `rangeStart` or `rangeEnd`.
        what: &'static str,
        /// The address.
        address: IpAddr,
        /// The subnet that it should be in.
        subnet: IpNetwork,
    },
    /// It ends before it begins.
    #[error("rangeStart {start} is after rangeEnd {end}")]
    Empty {
        /// First.
        start: IpAddr,
        /// Last.
        end: IpAddr,
    },
    /// A range set without ranges.
    #[error("a range set is empty: name a subnet, or leave the set out")]
    NoRange,
    /// No range sets.
    #[error("no ranges are configured: name at least one subnet")]
    NoSet,
    /// IPv4 and IPv6 in one set.
    #[error("a range set mixes IPv4 and IPv6: make a set for each family")]
    Mixed,
    /// Two ranges overlap, so an address would be given twice.
    #[error("ranges {first} and {second} overlap")]
    Overlap {
        /// One range.
        first: IpNetwork,
        /// The other range.
        second: IpNetwork,
    },
}

/// A part of a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNetwork,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

impl Range {
    /// Checks a configuration, and fills in what it leaves out.
    fn new(config: &RangeConfig) -> Result<Self, RangeError> {
        let subnet = config.subnet;
        let host_bits = width(subnet.network()) - subnet.prefix();
        if subnet.ip() != subnet.network() {
            return Err(RangeError::HostBits {
                subnet,
                network: subnet.network(),
            });
        }
        if host_bits < 2 {
            return Err(RangeError::TooSmall { subnet });
        }
        let first = number(subnet.network()) + 1;
        let last = number(subnet.broadcast()) - u128::from(subnet.is_ipv4());
        let inside = |what, address: Option<IpAddr>, default: u128| {
            let address = address.unwrap_or_else(|| address_like(subnet.network(), default));
            if subnet.contains(address) {
                Ok(address)
            } else {
                Err(RangeError::Outside {
                    what,
                    address,
                    subnet,
                })
            }
        };
        let range = Self {
            subnet,
            start: inside("rangeStart", config.range_start, first)?,
            end: inside("rangeEnd", config.range_end, last)?,
            // The gateway may be outside the subnet; the operator knows best.
            gateway: config
                .gateway
                .unwrap_or_else(|| address_like(subnet.network(), first)),
        };
        if range.start > range.end {
            return Err(RangeError::Empty {
                start: range.start,
                end: range.end,
            });
        }
        Ok(range)
    }

    /// Whether an interface may have this address.
    fn admits(&self, address: IpAddr) -> bool {
        let is_broadcast = self.subnet.is_ipv4() && address == self.subnet.broadcast();
        address.is_ipv4() == self.subnet.is_ipv4()
            && (self.start..=self.end).contains(&address)
            && address != self.gateway
            && address != self.subnet.network()
            && !is_broadcast
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4()
            && self.start <= other.end
            && other.start <= self.end
    }
}

/// Ranges that give an interface one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// An address as the plugin answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// With the prefix length of its subnet.
    pub address: IpNetwork,
    /// The gateway of its range.
    pub gateway: IpAddr,
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{}-{}", range.start, range.end)?;
        }
        Ok(())
    }
}

impl RangeSet {
    /// Checks all sets of a configuration.
    pub fn all(config: &[Vec<RangeConfig>]) -> Result<Vec<Self>, RangeError> {
        let sets: Vec<Self> = config
            .iter()
            .map(|set| Self::new(set))
            .collect::<Result<_, _>>()?;
        let ranges: Vec<&Range> = sets.iter().flat_map(|set| &set.0).collect();
        for (i, first) in ranges.iter().enumerate() {
            if let Some(second) = ranges[i + 1..].iter().find(|other| first.overlaps(other)) {
                return Err(RangeError::Overlap {
                    first: first.subnet,
                    second: second.subnet,
                });
            }
        }
        if sets.is_empty() {
            return Err(RangeError::NoSet);
        }
        Ok(sets)
    }

    fn new(config: &[RangeConfig]) -> Result<Self, RangeError> {
        let ranges: Vec<Range> = config.iter().map(Range::new).collect::<Result<_, _>>()?;
        let first = ranges.first().ok_or(RangeError::NoRange)?;
        let is_ipv4 = first.subnet.is_ipv4();
        if ranges.iter().any(|range| range.subnet.is_ipv4() != is_ipv4) {
            return Err(RangeError::Mixed);
        }
        Ok(Self(ranges))
    }

    /// What the set is called by: its first address, which no other set has.
    pub fn name(&self) -> IpAddr {
        self.0[0].start
    }

    /// The address with what belongs to it, if it is one of this set.
    pub fn assign(&self, address: IpAddr) -> Option<Assigned> {
        let range = self.0.iter().find(|range| range.admits(address))?;
        let address = IpNetwork::new(address, range.subnet.prefix()).ok()?;
        Some(Assigned {
            address,
            gateway: range.gateway,
        })
    }

    /// Every address of the set once, beginning behind `last`, the ranges in their order and around.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let at = last.and_then(|last| {
            let holds = |range: &Range| (range.start..=range.end).contains(&last);
            let index = self.0.iter().position(holds)?;
            Some((index, number(last)))
        });
        let family = self.name();
        let span = |range: &Range| number(range.start)..=number(range.end);
        // The rest of the range that `last` is in, the other ranges, and that one up to `last`.
        let (index, begin) = at.map_or((0, None), |(index, last)| (index, Some(last)));
        let rest = begin.map(|last| last.saturating_add(1)..=*span(&self.0[index]).end());
        let skip = index + usize::from(begin.is_some());
        let others = (self.0.iter().cycle().skip(skip))
            .take(self.0.len() - usize::from(begin.is_some()))
            .map(span);
        let until = begin.map(|last| *span(&self.0[index]).start()..=last);
        rest.into_iter()
            .chain(others)
            .chain(until)
            .flatten()
            .map(move |number| address_like(family, number))
            .filter(|&address| self.0.iter().any(|range| range.admits(address)))
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of this number, in the family of another one.
fn address_like(family: IpAddr, number: u128) -> IpAddr {
    match family {
        // No number of the family is larger.
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
}
