//! Which Pods appear with another address than they have, and what that takes: from Pods, devices and routes to writes.
//!
//! Pure. The ledger says what a Pod has (*live*) and what was promised to it (*promised*), where these differ. It is translated where
//! nobody else can be given the promised address; else the reason is told, and the Pod uses what it has. Of each
//! family one address is translated, the first.
//!
//! The promised address must lead to the Pod on this node: through the bridge that its device is a port of, or through the device
//! itself. Where no route does, one is made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::device::{Complaint, HostSide, Link, Route};

/// What the operator decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Whether Pods are translated whose annotation does not say otherwise.
    pub is_on: bool,
    /// Prefixes that the other IPAM leaves out, so that nobody else is given an address of them.
    pub exclusive: Vec<IpNetwork>,
}

impl Policy {
    /// Whether another IPAM gives this address to nobody.
    pub fn is_exclusive(&self, address: IpAddr) -> bool {
        self.exclusive.iter().any(|prefix| prefix.contains(address))
    }
}

/// An interface of a Pod that has other addresses than were promised to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The Pod, as `namespace/name`.
    pub pod: String,
    /// Name of the interface inside.
    pub interface: String,
    /// Its link-layer address.
    pub mac: Option<[u8; 6]>,
    /// The addresses that it has.
    pub live: Vec<IpAddr>,
    /// The addresses that were promised to it instead.
    pub promised: Vec<IpAddr>,
    /// `yurt-ipam` gave it what is promised, and gives that to nobody else.
    pub is_ours: bool,
    /// Where it is, as far as that is known.
    pub host: Option<HostSide>,
    /// What its annotation says.
    pub wish: Wish,
}

/// Whether a Pod is to be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Its annotation says so, or that it is not.
    Pods(bool),
    /// As `--translate` says.
    Nodes,
    /// Its annotation is not known at the moment: as `--translate` says, and what is translated stays so.
    Unknown,
}

/// The addresses of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<A> {
    /// What the Pod has.
    pub live: A,
    /// What it appears with.
    pub promised: A,
}

/// What is translated on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TranslateRow {
    /// The Pod's link-layer address.
    pub mac: [u8; 6],
    /// IPv4.
    pub v4: Option<Pair<Ipv4Addr>>,
    /// IPv6.
    pub v6: Option<Pair<Ipv6Addr>>,
}

impl TranslateImage {
    /// Both programs are on this device.
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

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// What is sent to the promised address goes to the live one.
    ToPod,
    /// What comes from the live address appears to come from the promised one.
    FromPod,
}

/// All that the kernel holds of translation, or should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TranslateImage {
    /// By device.
    pub rows: BTreeMap<u32, TranslateRow>,
    /// Which program is on which device.
    pub attached: BTreeSet<(Direction, u32)>,
    /// Where programs were, and are no more.
    pub lost: BTreeSet<(Direction, u32)>,
    /// Routes of ours: address and device.
    pub routes: BTreeSet<(IpAddr, u32)>,
}

/// Why a promise is not kept. The Pod runs with the address that it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another IPAM may give it to another Pod.
    #[error(
        "another IPAM may give {0} to somebody else: have it leave that address out, and name the prefix with --translate-exclusive"
    )]
    NotExclusive(IpAddr),
    /// It is an address of the node.
    #[error("{0} is the node's own")]
    Nodes(IpAddr),
    /// Another Pod has it.
    #[error("{0} is Pod {1}'s")]
    Anothers(IpAddr, String),
    /// A route leads it elsewhere.
    #[error("the node leads {address} elsewhere, by its route to {prefix}")]
    LedElsewhere {
        /// The address.
        address: IpAddr,
        /// The route.
        prefix: IpNetwork,
    },
    /// The Pod has no address of its family to put it on.
    #[error("the Pod has no other address of the family of {0}")]
    NoLive(IpAddr),
    /// Its family has one already.
    #[error("{0} is one address too many: of each family one is translated")]
    OneTooMany(IpAddr),
    /// Its MAC is not known, so ARP and NDP cannot be answered for it.
    #[error("the link-layer address of the Pod is not known")]
    NoMac,
    /// The interface has no end on the node, or `yurt-cni` has not seen it.
    #[error(
        "no device of the node is known that leads to the Pod alone: it needs a veth device, and yurt-cni behind its main plugin"
    )]
    NoHost,
    /// The index is another device's by now.
    #[error("device {0} leads elsewhere by now")]
    NoDevice(String),
    /// It is a port of something other than a bridge.
    #[error("its device {device} is part of {controller}, which is not a bridge")]
    NoBridge {
        /// The Pod's device.
        device: String,
        /// What it belongs to.
        controller: String,
    },
}

/// What there is on the node.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Who owns which address, those that are kept too.
    pub owners: &'a BTreeMap<IpAddr, String>,
    /// Its devices.
    pub links: &'a [Link],
    /// Its own addresses: nobody else's.
    pub local: &'a BTreeSet<IpAddr>,
    /// Its routes.
    pub routes: &'a [Route],
    /// The devices on which something is translated now.
    pub translated: &'a BTreeSet<u32>,
}

/// What the kernel should hold.
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

    /// The address that a promised one is put on.
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

    /// The device that routes to the Pod lead out of: the bridge, or its own; `None`: there is none.
    fn way_out(&self, host: HostSide) -> Result<Option<u32>, Refusal> {
        let find = |ifindex| self.node.links.iter().find(|link| link.ifindex == ifindex);
        let Some(device) = find(host.ifindex) else {
            // On its way in or out: it will come, or the Pod is gone.
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

    /// The route that leads an address out of a device; `None` where one does already.
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

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TranslateOp {
    /// An address leads out of a device.
    PutRoute(IpAddr, u32),
    /// This is translated on a device.
    PutRow(u32, TranslateRow),
    /// A program is to be on a device.
    Attach(Direction, u32),
    /// A program is to be on a device no more.
    Detach(Direction, u32),
    /// Nothing is translated on a device.
    DeleteRow(u32),
    /// An address leads out of a device no more.
    DeleteRoute(IpAddr, u32),
}

/// The writes from one image to another, in an order of which every prefix is safe: a Pod appears with an address only while that leads
/// to it on this node and is translated there.
pub fn plan(observed: &TranslateImage, wanted: &TranslateImage) -> Vec<TranslateOp> {
    let mut ops = Vec::new();
    let routes = wanted.routes.difference(&observed.routes);
    ops.extend(routes.map(|&(addr, device)| TranslateOp::PutRoute(addr, device)));
    // Where the row goes, what comes from there is left alone first.
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
    // To the Pod first: they sort so.
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
