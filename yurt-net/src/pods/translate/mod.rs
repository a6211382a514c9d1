//! Which Pods appear with another address than their own, and the writes that this takes.
//!
//! Pure. The ledger says which address a Pod has (*live*) and which one was promised to it (*promised*), if these
//! differ. A promised address is translated if it cannot be given to another Pod; otherwise the Pod uses its live
//! address, and the reason is reported. Of each family, only the first address is translated.
//!
//! The promised address must lead to the Pod on this node: through the bridge that the Pod's device is a port of, or
//! through the device itself. If no route does that, the plan adds one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::device::{Complaint, HostSide, Link, Route};

/// The operator's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Whether Pods without an annotation are translated.
    pub is_on: bool,
    /// Prefixes that other IPAMs leave out, so that their addresses are given to nobody else.
    pub exclusive: Vec<IpNetwork>,
}

impl Policy {
    /// Whether no other IPAM can give this address to a Pod.
    pub fn is_exclusive(&self, address: IpAddr) -> bool {
        self.exclusive.iter().any(|prefix| prefix.contains(address))
    }
}

/// An interface of a Pod whose addresses are not those that were promised to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The Pod, as `namespace/name`.
    pub pod: String,
    /// The interface's name in the Pod.
    pub interface: String,
    /// Its link-layer address.
    pub mac: Option<[u8; 6]>,
    /// The addresses that it has.
    pub live: Vec<IpAddr>,
    /// The addresses that were promised to it instead.
    pub promised: Vec<IpAddr>,
    /// Whether `yurt-ipam` manages the promised addresses, and so gives them to no other Pod.
    pub is_ours: bool,
    /// The host's end of the interface, if it is known.
    pub host: Option<HostSide>,
    /// Whether it is to be translated.
    pub wish: Wish,
}

/// Whether an interface is to be translated, and on whose word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The Pod's annotation decides.
    Pods(bool),
    /// The Pod has no annotation: `--translate` decides.
    Nodes,
    /// The annotation is not known at the moment: `--translate` decides, but what is translated stays so.
    Unknown,
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<A> {
    /// The address that the Pod has.
    pub live: A,
    /// The address that it appears with.
    pub promised: A,
}

/// The translation on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TranslateRow {
    /// The Pod's link-layer address.
    pub mac: [u8; 6],
    /// Its IPv4 addresses, if they are translated.
    pub v4: Option<Pair<Ipv4Addr>>,
    /// Its IPv6 addresses, if they are translated.
    pub v6: Option<Pair<Ipv6Addr>>,
}

impl TranslateImage {
    /// Whether both programs are attached to this device.
    pub fn is_complete(&self, ifindex: u32) -> bool {
        let mut both = [Direction::ToPod, Direction::FromPod].into_iter();
        both.all(|direction| self.attached.contains(&(direction, ifindex)))
    }
}

impl TranslateRow {
    /// The addresses that the Pod appears with.
    pub fn promised(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().map(|pair| IpAddr::V4(pair.promised));
        v4.chain(self.v6.iter().map(|pair| IpAddr::V6(pair.promised)))
    }
}

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Rewrites the destination of packets to the Pod, from the promised address to the live one.
    ToPod,
    /// Rewrites the source of packets from the Pod, from the live address to the promised one.
    FromPod,
}

/// The state of translation in the kernel, as it is or as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TranslateImage {
    /// The rows, by index of the device.
    pub rows: BTreeMap<u32, TranslateRow>,
    /// The programs that are attached, and the device of each.
    pub attached: BTreeSet<(Direction, u32)>,
    /// The programs that were attached once and are no longer, and the device of each.
    pub lost: BTreeSet<(Direction, u32)>,
    /// Our routes: an address, and the device that it is routed to.
    pub routes: BTreeSet<(IpAddr, u32)>,
}

/// The reason why a promised address is not translated. The Pod uses its live address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another IPAM may give the address to another Pod.
    #[error(
        "another IPAM may give {0} to another Pod: exclude the address there, and name its prefix with --translate-exclusive"
    )]
    NotExclusive(IpAddr),
    /// It is an address of the node.
    #[error("{0} is an address of the node")]
    Nodes(IpAddr),
    /// Another Pod has the address.
    #[error("{0} is Pod {1}'s")]
    Anothers(IpAddr, String),
    /// A route of the node leads the address elsewhere.
    #[error("the node's route to {prefix} leads {address} elsewhere")]
    LedElsewhere {
        /// The address.
        address: IpAddr,
        /// The route.
        prefix: IpNetwork,
    },
    /// The Pod has no address of this family that could be translated.
    #[error("the Pod has no other address of the same family as {0}")]
    NoLive(IpAddr),
    /// Another address of this family is translated already.
    #[error(
        "{0} is not the first promised address of its family, and only one of each is translated"
    )]
    OneTooMany(IpAddr),
    /// The Pod's MAC is not known, so ARP and NDP cannot be answered in its name.
    #[error("the MAC of the Pod is not known")]
    NoMac,
    /// The interface has no end on the node, or `yurt-cni` did not record it.
    #[error(
        "no device of the node is known to lead to this Pod alone: use a main plugin that makes veth devices, with yurt-cni behind it"
    )]
    NoHost,
    /// The kernel has given the index to another device.
    #[error("device {0} leads elsewhere now")]
    NoDevice(String),
    /// The device is a port of something other than a bridge.
    #[error("its device {device} is part of {controller}, which is not a bridge")]
    NoBridge {
        /// The Pod's device.
        device: String,
        /// The device that it belongs to.
        controller: String,
    },
}

/// The state of the node.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The owner of each address, including the addresses that are kept for absent Pods.
    pub owners: &'a BTreeMap<IpAddr, String>,
    /// Its devices.
    pub links: &'a [Link],
    /// Its own addresses, which cannot be a Pod's.
    pub local: &'a BTreeSet<IpAddr>,
    /// Its routes.
    pub routes: &'a [Route],
    /// The devices whose Pods are translated now.
    pub translated: &'a BTreeSet<u32>,
}

/// The state that the kernel should have, and the Pods that cannot be translated.
pub fn compile(
    pods: &[Candidate],
    node: Surroundings<'_>,
    policy: &Policy,
) -> (TranslateImage, Vec<Complaint>) {
    let judge = Judge { node, policy };
    let mut image = TranslateImage::default();
    let mut complaints = Vec::new();
    for pod in pods {
        let ifindex = pod.host.map(|host| host.ifindex);
        let is_translated = ifindex.is_some_and(|ifindex| node.translated.contains(&ifindex));
        let is_wanted = match pod.wish {
            Wish::Pods(wish) => wish,
            Wish::Nodes => policy.is_on,
            Wish::Unknown => policy.is_on || is_translated,
        };
        if !is_wanted {
            continue;
        }
        let mut complain = |refusal: Refusal| {
            complaints.push(Complaint {
                pod: pod.pod.clone(),
                interface: pod.interface.clone(),
                reason: format!("not translated: {refusal}"),
            });
        };
        let Some(host) = pod.host else {
            complain(Refusal::NoHost);
            continue;
        };
        match judge.row(pod, host, &image, &mut complain) {
            Ok(Some((row, routes))) => {
                image.rows.insert(host.ifindex, row);
                image.routes.extend(routes);
                let both = [Direction::ToPod, Direction::FromPod];
                let attached = both.map(|direction| (direction, host.ifindex));
                image.attached.extend(attached);
            }
            Ok(None) => {}
            Err(refusal) => complain(refusal),
        }
    }
    (image, complaints)
}

struct Judge<'a> {
    node: Surroundings<'a>,
    policy: &'a Policy,
}

type Routes = Vec<(IpAddr, u32)>;

impl Judge<'_> {
    fn row(
        &self,
        pod: &Candidate,
        host: HostSide,
        image: &TranslateImage,
        complain: &mut impl FnMut(Refusal),
    ) -> Result<Option<(TranslateRow, Routes)>, Refusal> {
        if pod.promised.is_empty() {
            return Ok(None);
        }
        let mac = pod.mac.ok_or(Refusal::NoMac)?;
        let Some(out) = self.way_out(host)? else {
            return Ok(None);
        };
        let mut row = TranslateRow {
            mac,
            ..TranslateRow::default()
        };
        let mut routes = Vec::new();
        for &promised in &pod.promised {
            let kept = self.admit(pod, promised, image).and_then(|live| {
                let is_free = match promised {
                    IpAddr::V4(_) => row.v4.is_none(),
                    IpAddr::V6(_) => row.v6.is_none(),
                };
                if !is_free {
                    return Err(Refusal::OneTooMany(promised));
                }
                Ok((live, self.route(promised, out)?))
            });
            match kept {
                Ok((live, route)) => {
                    match (live, promised) {
                        (IpAddr::V4(live), IpAddr::V4(promised)) => {
                            row.v4 = Some(Pair { live, promised });
                        }
                        (IpAddr::V6(live), IpAddr::V6(promised)) => {
                            row.v6 = Some(Pair { live, promised });
                        }
                        _ => {}
                    }
                    routes.extend(route);
                }
                Err(refusal) => complain(refusal),
            }
        }
        let is_any = row.v4.is_some() || row.v6.is_some();
        Ok(is_any.then_some((row, routes)))
    }

    /// The live address that a promised address is translated to.
    fn admit(
        &self,
        pod: &Candidate,
        promised: IpAddr,
        image: &TranslateImage,
    ) -> Result<IpAddr, Refusal> {
        if !pod.is_ours && !self.policy.is_exclusive(promised) {
            return Err(Refusal::NotExclusive(promised));
        }
        if self.node.local.contains(&promised) {
            return Err(Refusal::Nodes(promised));
        }
        if let Some(owner) = self.node.owners.get(&promised)
            && *owner != pod.pod
        {
            return Err(Refusal::Anothers(promised, owner.clone()));
        }
        if image
            .rows
            .values()
            .any(|row| row.promised().any(|other| other == promised))
        {
            let other = "another translated".to_owned();
            return Err(Refusal::Anothers(promised, other));
        }
        let mut live = pod.live.iter();
        let live = live.find(|live| live.is_ipv4() == promised.is_ipv4());
        let live = live.filter(|live| **live != promised);
        live.copied().ok_or(Refusal::NoLive(promised))
    }

    /// The device that routes to the Pod lead out of: the bridge, or the Pod's device; `None` if the device does not
    /// exist.
    fn way_out(&self, host: HostSide) -> Result<Option<u32>, Refusal> {
        let find = |ifindex| self.node.links.iter().find(|link| link.ifindex == ifindex);
        let Some(device) = find(host.ifindex) else {
            // The Pod is about to start, or has just gone.
            return Ok(None);
        };
        if !device.is_still(host) {
            return Err(Refusal::NoDevice(device.name.clone()));
        }
        let Some(controller) = device.controller else {
            return Ok(Some(device.ifindex));
        };
        match find(controller) {
            Some(bridge) if bridge.kind == "bridge" => Ok(Some(controller)),
            other => Err(Refusal::NoBridge {
                device: device.name.clone(),
                controller: other.map_or_else(String::new, |link| link.name.clone()),
            }),
        }
    }

    /// The route that is missing; `None` if a route leads the address out of this device already.
    fn route(&self, address: IpAddr, out: u32) -> Result<Option<(IpAddr, u32)>, Refusal> {
        let leading = self.node.routes.iter().filter(|route| {
            !route.is_ours && route.prefix.prefix() > 0 && route.prefix.contains(address)
        });
        let closest = leading.max_by_key(|route| route.prefix.prefix());
        match closest {
            Some(route) if route.link == Some(out) => Ok(None),
            Some(route) if !route.is_hole => Err(Refusal::LedElsewhere {
                address,
                prefix: route.prefix,
            }),
            Some(_) | None => Ok(Some((address, out))),
        }
    }
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TranslateOp {
    /// Route an address out of a device.
    PutRoute(IpAddr, u32),
    /// Put the row of a device.
    PutRow(u32, TranslateRow),
    /// Attach a program to a device.
    Attach(Direction, u32),
    /// Detach a program from a device.
    Detach(Direction, u32),
    /// Delete the row of a device.
    DeleteRow(u32),
    /// Delete the route of an address out of a device.
    DeleteRoute(IpAddr, u32),
}

/// The writes from one state to another. Every prefix of them is safe: a Pod appears with an address only while that
/// address leads to it on this node and is translated there.
pub fn plan(observed: &TranslateImage, wanted: &TranslateImage) -> Vec<TranslateOp> {
    let mut ops = Vec::new();
    let routes = wanted.routes.difference(&observed.routes);
    ops.extend(routes.map(|&(addr, device)| TranslateOp::PutRoute(addr, device)));
    // Before a row goes, nothing may be sent from the promised address any more.
    let ever: BTreeSet<_> = observed.attached.union(&observed.lost).copied().collect();
    let gone = |direction| {
        let ever = ever.iter().filter(move |(at, _)| *at == direction);
        ever.filter(|at| !wanted.attached.contains(*at))
    };
    let detach = |&(direction, device): &(_, _)| TranslateOp::Detach(direction, device);
    ops.extend(gone(Direction::FromPod).map(detach));
    for (ifindex, row) in &wanted.rows {
        if observed.rows.get(ifindex) != Some(row) {
            ops.push(TranslateOp::PutRow(*ifindex, row.clone()));
        }
    }
    // `ToPod` sorts first, so packets to the promised address arrive before any packet is sent from it.
    let attach = wanted.attached.difference(&observed.attached);
    ops.extend(attach.map(|&(direction, device)| TranslateOp::Attach(direction, device)));
    ops.extend(gone(Direction::ToPod).map(detach));
    let rows = observed.rows.keys();
    let rows = rows.filter(|ifindex| !wanted.rows.contains_key(ifindex));
    ops.extend(rows.copied().map(TranslateOp::DeleteRow));
    let routes = observed.routes.difference(&wanted.routes);
    ops.extend(routes.map(|&(addr, device)| TranslateOp::DeleteRoute(addr, device)));
    ops
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
