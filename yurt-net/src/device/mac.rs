//! Link-layer addresses, and the conversion between them and network addresses.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is not six hexadecimal bytes with colons between them.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a MAC address such as 0a:58:0a:01:00:02")]
pub struct BadMac(String);

impl std::str::FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let is_hex =
                |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(is_hex);
            let parsed = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = parsed.ok_or_else(bad)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(bad()),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// The MAC that is made of an address: locally administered, unicast, and different for all addresses of a subnet. For
/// IPv4 it is the one that container networks have long used (`0a:58` and the address); an IPv6 address contributes its
/// last four bytes.
pub fn mac_of(address: IpAddr) -> Mac {
    let ([a, b], [c, d, e, f]) = match address {
        IpAddr::V4(address) => ([0x0a, 0x58], address.octets()),
        IpAddr::V6(address) => {
            let [.., c, d, e, f] = address.octets();
            ([0x0a, 0x59], [c, d, e, f])
        }
    };
    Mac([a, b, c, d, e, f])
}

/// The link-local address that an interface derives from its MAC (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let low = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_of_an_address_is_local_and_unicast() {
        let v4 = mac_of("10.1.2.3".parse().unwrap());
        assert_eq!(v4.to_string(), "0a:58:0a:01:02:03");
        let v6 = mac_of("fd00:1::a2:3".parse().unwrap());
        assert_eq!(v6.to_string(), "0a:59:00:a2:00:03");
        for mac in [v4, v6] {
            assert_eq!(mac.0[0] & 3, 2);
        }
    }

    #[test]
    fn a_link_local_address_is_derived_as_the_kernel_does() {
        let mac = "52:74:f2:b1:a8:7f".parse().unwrap();
        assert_eq!(
            link_local(mac),
            "fe80::5074:f2ff:feb1:a87f".parse::<Ipv6Addr>().unwrap()
        );
    }
}
