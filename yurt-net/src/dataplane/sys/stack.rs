//! What others have in the way of packets through the stack: netfilter, IPsec, devices and neighbours.
//!
//! Structures follow Linux `include/uapi/linux/{netfilter/nf_tables,xfrm,if_link,neighbour}.h`. What a kernel does not
//! have is not in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;

use super::netlink::Connection;
use super::tc::{IFINFOMSG, IFLA_IFNAME, NETLINK_ROUTE, RTM_GETLINK, attributes, text};
use crate::dataplane::netlink::{u16_at, u32_at};
use crate::edge::fast::{Chain, Device, Neighbour};

const NETLINK_XFRM: libc::c_int = 6;
const NETLINK_NETFILTER: libc::c_int = 12;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`.
const GET_CHAINS: u16 = 10 << 8 | 4;
const NFNLGRP_NFTABLES: libc::c_int = 7;
/// `struct nfgenmsg`: family, version, resource.
const NFGENMSG: usize = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_DROP: u32 = 0;

const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// `struct xfrm_userpolicy_id`.
const XFRM_USERPOLICY_ID: usize = 64;

const RTM_GETNEIGH: u16 = 30;
/// `struct ndmsg`.
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT`.
const NUD_KNOWN: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_QDISC: u16 = 6;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;

/// The chains of nftables that are on a hook.
pub(in crate::dataplane) fn chains() -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    let mut ask = || {
        let take = |message: &[u8]| chains.extend(chain(message));
        Connection::open(NETLINK_NETFILTER)?.dump(GET_CHAINS, &[0; NFGENMSG], take)
    };
    if_there(ask())?;
    Ok(chains)
}

/// Tells when something of nftables changes.
pub(in crate::dataplane) fn nftables() -> io::Result<Connection> {
    let connection = Connection::open(NETLINK_NETFILTER)?;
    connection.join(NFNLGRP_NFTABLES)?;
    Ok(connection)
}

/// The tables of iptables (legacy) of both families.
pub(in crate::dataplane) fn legacy_tables() -> io::Result<BTreeSet<String>> {
    let mut tables = BTreeSet::new();
    for file in ["ip_tables_names", "ip6_tables_names"] {
        match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(names) => tables.extend(names.lines().map(str::to_owned)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tables)
}

/// How many policies of IPsec there are.
pub(in crate::dataplane) fn policies() -> io::Result<usize> {
    let mut count = 0;
    let mut ask = || {
        let take = |_: &[u8]| count += 1;
        Connection::open(NETLINK_XFRM)?.dump(XFRM_MSG_GETPOLICY, &[0; XFRM_USERPOLICY_ID], take)
    };
    if_there(ask())?;
    Ok(count)
}

/// The devices of the caller's network namespace, without what is attached to them.
pub(in crate::dataplane) fn devices() -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    let take = |message: &[u8]| devices.extend(device(message));
    Connection::open(NETLINK_ROUTE)?.dump(RTM_GETLINK, &[0; IFINFOMSG], take)?;
    Ok(devices)
}

/// Whose link-layer address is known.
pub(in crate::dataplane) fn neighbours() -> io::Result<Vec<Neighbour>> {
    let mut neighbours = Vec::new();
    let mut connection = Connection::open(NETLINK_ROUTE)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let take = |message: &[u8]| neighbours.extend(neighbour(message));
        connection.dump(RTM_GETNEIGH, &ndmsg(family), take)?;
    }
    Ok(neighbours)
}

/// At which ports of bridges link-layer addresses are.
pub(in crate::dataplane) fn bridge_ports() -> io::Result<BTreeMap<[u8; 6], u32>> {
    let mut ports = BTreeMap::new();
    let take = |message: &[u8]| ports.extend(port(message));
    Connection::open(NETLINK_ROUTE)?.dump(RTM_GETNEIGH, &ndmsg(libc::AF_BRIDGE), take)?;
    Ok(ports)
}

/// What a kernel without the subsystem says is no error.
fn if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn ndmsg(family: libc::c_int) -> [u8; NDMSG] {
    let mut body = [0; NDMSG];
    body[0] = u8::try_from(family).unwrap_or_default();
    body
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let (_, value) = attributes(bytes).find(|(kind, _)| *kind == wanted)?;
    Some(value)
}

fn be32(bytes: &[u8]) -> Option<u32> {
    u32_at(bytes, 0).map(u32::from_be)
}

fn chain(message: &[u8]) -> Option<Chain> {
    let family = *message.first()?;
    let rest = message.get(NFGENMSG..)?;
    let name = |kind| find(rest, kind).map(text);
    let hook = be32(find(find(rest, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM)?)?;
    let of_family = match family {
        1 => "inet",
        2 => "ip",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "other",
    };
    Some(Chain {
        family,
        hook,
        name: format!(
            "{of_family} {} {}",
            name(NFTA_CHAIN_TABLE)?,
            name(NFTA_CHAIN_NAME)?
        ),
        // Of one that does not say, anything may be.
        rules: find(rest, NFTA_CHAIN_USE).and_then(be32).unwrap_or(1),
        drops: find(rest, NFTA_CHAIN_POLICY).and_then(be32) == Some(NF_DROP),
    })
}

fn device(message: &[u8]) -> Option<Device> {
    let rest = message.get(IFINFOMSG..)?;
    let number = |kind| find(rest, kind).and_then(|value| u32_at(value, 0));
    let kind = find(rest, IFLA_LINKINFO).and_then(|info| find(info, IFLA_INFO_KIND));
    Some(Device {
        ifindex: u32_at(message, 4)?,
        name: text(find(rest, IFLA_IFNAME)?),
        mac: find(rest, IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        mtu: number(IFLA_MTU)?,
        controller: number(IFLA_MASTER),
        leads_elsewhere: kind.is_some_and(|kind| text(kind) == "veth")
            && find(rest, IFLA_LINK_NETNSID).is_some(),
        queue: find(rest, IFLA_QDISC).map(text).unwrap_or_default(),
        ..Device::default()
    })
}

fn neighbour(message: &[u8]) -> Option<Neighbour> {
    let rest = message.get(NDMSG..)?;
    let address = find(rest, NDA_DST)?;
    let address = match <[u8; 4]>::try_from(address) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    (u16_at(message, 8)? & NUD_KNOWN != 0).then_some(Neighbour {
        ifindex: u32_at(message, 4)?,
        address,
        mac: find(rest, NDA_LLADDR)?.try_into().ok()?,
    })
}

fn port(message: &[u8]) -> Option<([u8; 6], u32)> {
    let mac = find(message.get(NDMSG..)?, NDA_LLADDR)?;
    Some((mac.try_into().ok()?, u32_at(message, 4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn dumped(family: u8, more: &[Vec<u8>]) -> Vec<u8> {
        let names = [
            attribute(NFTA_CHAIN_TABLE, b"filter\0"),
            attribute(NFTA_CHAIN_NAME, b"FORWARD\0"),
        ];
        [&[family, 0, 0, 0][..], &names.concat(), &more.concat()].concat()
    }

    #[test]
    fn a_chain_on_a_hook_is_read_and_one_that_others_jump_to_is_none() {
        let hook = attribute(NFTA_HOOK_HOOKNUM, &2_u32.to_be_bytes());
        let hook = attribute(NFTA_CHAIN_HOOK | 0x8000, &hook);
        let policy = |policy: u32| attribute(NFTA_CHAIN_POLICY, &policy.to_be_bytes());
        let rules = attribute(NFTA_CHAIN_USE, &3_u32.to_be_bytes());
        let message = dumped(2, &[hook.clone(), policy(0), rules.clone()]);
        assert_eq!(
            chain(&message),
            Some(Chain {
                family: 2,
                hook: 2,
                name: "ip filter FORWARD".to_owned(),
                rules: 3,
                drops: true,
            })
        );
        let accepts = chain(&dumped(2, &[hook, policy(1), rules.clone()])).unwrap();
        assert!(!accepts.drops);
        assert_eq!(chain(&dumped(2, &[rules])), None);
        for length in 0..message.len() {
            let read = chain(&message[..length]);
            assert!(read.is_none_or(|chain| chain.rules > 0), "{length}");
        }
    }

    #[test]
    fn a_neighbour_that_nobody_has_found_is_none() {
        let message = |state: u16| {
            let mut head = [0; NDMSG];
            head[4] = 3;
            head[8..10].copy_from_slice(&state.to_ne_bytes());
            let address = attribute(NDA_DST, &[10, 244, 1, 4]);
            let mac = attribute(NDA_LLADDR, &[2, 0, 0, 0, 0, 4]);
            [&head[..], &address, &mac].concat()
        };
        let expected = Neighbour {
            ifindex: 3,
            address: "10.244.1.4".parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 4],
        };
        assert_eq!(neighbour(&message(0x04)), Some(expected));
        // NUD_FAILED, NUD_INCOMPLETE, NUD_NOARP.
        for state in [0x20, 0x01, 0x40] {
            assert_eq!(neighbour(&message(state)), None);
        }
        assert_eq!(port(&message(0)), Some(([2, 0, 0, 0, 0, 4], 3)));
    }
}
