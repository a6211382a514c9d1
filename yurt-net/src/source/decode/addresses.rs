//! Addresses and prefixes as Kubernetes writes them. Pure.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

/// Parses an address as Kubernetes does: the parts of an IPv4 address are decimal even with leading zeros
/// (`010.096.000.010` is 10.96.0.10), and an IPv4-mapped IPv6 address is that IPv4 address.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_ipv4(text).map(IpAddr::V4);
    }
    let address: IpAddr = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => {
            format!("{head}:{}", parse_ipv4(tail)?).parse().ok()?
        }
        _ => text.parse().ok()?,
    };
    Some(address.to_canonical())
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// Digits only: `u8::from_str` alone would take a sign.
fn parse_decimal(text: &str) -> Option<u8> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// Parses a prefix as Kubernetes does: leading zeros are fine, bits behind the prefix are cleared.
pub fn parse_cidr(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let network = IpNetwork::new(parse_address(address)?, parse_decimal(length)?).ok()?;
    IpNetwork::new(network.network(), network.prefix()).ok()
}
