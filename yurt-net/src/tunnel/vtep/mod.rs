//! The node's own addresses: which MAC its vxlan devices and bridges should have, and where vxlan devices send from. Pure.
//!
//! Peers know a vxlan device by permanent entries that only the cloud changes: with another MAC the node is not reachable from them. What is
//! right, in this order: what the cloud says now that peers are told, what is recorded, what the device has.
//!
//! It is told what there is ([`Keeper::see`], [`Keeper::hear`]) and says what to do ([`Keeper::decide`]). Times are milliseconds of a
//! monotonic clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::announced::{Announced, AnnouncedVtep};
use super::report::{DeviceReport, Report};
use super::{Kind, SETTLED, is_unicast};
use crate::device::Mac;
use crate::host::limit::Limit;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

/// When what has failed is tried again.
const AGAIN: u64 = 1_000;

/// A device as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Index.
    pub ifindex: u32,
    /// MAC.
    pub mac: Mac,
    /// What it is.
    pub what: What,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A vxlan device.
    Vxlan(Vxlan),
    /// A bridge.
    Bridge {
        /// Only then its MAC is one that anybody has learnt.
        has_ports: bool,
    },
    /// Something else.
    Other,
}

/// How a vxlan device reaches its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port that it receives at.
    pub port: u16,
    /// Where it sends from, if it is bound to an address.
    pub local: Option<IpAddr>,
    /// The device that it sends out of, if it is bound to one.
    pub underlay: Option<u32>,
}

/// The addresses of the machine, and what its default routes send from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// With the index of the interface that has each, in the kernel's order.
    pub by_interface: Vec<(u32, IpAddr)>,
    /// Sources of the default routes.
    pub default_source: (Option<Ipv4Addr>, Option<Ipv6Addr>),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give the device this MAC. What it has may be just this one: a bridge keeps only what somebody has set.
    SetMac {
        /// Device.
        name: String,
        /// Its index.
        ifindex: u32,
        /// What it has.
        from: Mac,
        /// What it should have.
        to: Mac,
    },
    /// Have the vxlan device send from this address.
    SetLocal {
        /// Device.
        name: String,
        /// Its index.
        ifindex: u32,
        /// Its network identifier.
        vni: u32,
        /// What it sends from, and is on no interface any more.
        from: IpAddr,
        /// What it should send from.
        to: IpAddr,
    },
    /// Write the records down.
    Save,
}

#[derive(Debug)]
struct Kept {
    kind: Kind,
    record: Option<Mac>,
    device: Option<Device>,
    /// What peers are told, while that is fresh, and since when without a break.
    fresh: Option<(AnnouncedVtep, u64)>,
    /// The same, fresh or not.
    heard: Option<AnnouncedVtep>,
    limit: Limit,
    local_limit: Limit,
    /// The bridge of this index has its MAC from us.
    pinned: Option<u32>,
    /// Since when the underlay address is on no interface.
    missing_since: Option<u64>,
    /// The last change of the underlay address, until peers are told.
    moved: Option<(IpAddr, IpAddr)>,
    /// What has failed is left alone until then.
    again_at: Option<u64>,
    complaint: Option<String>,
    repairs: u64,
    underlay_changes: u64,
}

/// The MACs that are kept for the node's own devices, and where each comes from.
#[derive(Debug)]
pub struct Keeper {
    kept: BTreeMap<String, Kept>,
    announced: Announced,
    underlay: Option<Underlay>,
    due: Option<u64>,
}

impl Keeper {
    /// Keeps these devices, of which this is recorded.
    pub fn new(
        devices: impl IntoIterator<Item = (String, Kind)>,
        records: &BTreeMap<String, Mac>,
    ) -> Self {
        let kept = devices.into_iter().map(|(name, kind)| {
            let kept = Kept {
                kind,
                record: records.get(&name).copied(),
                device: None,
                fresh: None,
                heard: None,
                limit: Limit::default(),
                local_limit: Limit::default(),
                pinned: None,
                missing_since: None,
                moved: None,
                again_at: None,
                complaint: None,
                repairs: 0,
                underlay_changes: 0,
            };
            (name, kept)
        });
        Self {
            kept: kept.collect(),
            announced: Announced::default(),
            underlay: None,
            due: None,
        }
    }

    /// The names of the devices.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.kept.keys().map(String::as_str)
    }

    /// Whether a MAC of the device is recorded.
    pub fn knows(&self, name: &str) -> bool {
        self.kept
            .get(name)
            .is_some_and(|kept| kept.record.is_some())
    }

    /// What is to be written down.
    pub fn records(&self) -> BTreeMap<String, Mac> {
        let kept = self.kept.iter();
        kept.filter_map(|(name, kept)| Some((name.clone(), kept.record?)))
            .collect()
    }

    /// A device is like this now, or is not there.
    pub fn see(&mut self, name: &str, device: Option<Device>, now: u64) {
        let Some(kept) = self.kept.get_mut(name) else {
            return;
        };
        let identity = |device: &Device| (device.ifindex, device.mac);
        if kept.device.as_ref().map(identity) != device.as_ref().map(identity) {
            kept.limit.stir(now);
        }
        kept.device = device;
    }

    /// The machine has these addresses now.
    pub fn see_underlay(&mut self, underlay: Underlay) {
        self.underlay = Some(underlay);
    }

    /// A source has said this of the own Node; fresh is what is the cloud's present word.
    pub fn hear(&mut self, announced: Announced, is_fresh: bool, now: u64) {
        self.announced = announced;
        for (name, kept) in &mut self.kept {
            kept.heard = self.announced.devices.get(name).copied();
            let before = kept.fresh;
            kept.fresh = kept.heard.filter(|_| is_fresh).map(|heard| match before {
                Some((known, since)) if known.mac == heard.mac => (heard, since),
                _ => (heard, now),
            });
        }
    }

    /// An action on a device has not worked.
    pub fn failed(&mut self, name: &str, now: u64) {
        if let Some(kept) = self.kept.get_mut(name) {
            let again_at = now.saturating_add(AGAIN);
            kept.again_at = Some(again_at);
            kept.pinned = None;
            self.due = Some(self.due.map_or(again_at, |due| due.min(again_at)));
        }
    }

    /// When to decide again, if nothing is heard before.
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    /// What is to be done now. It counts as done; what does not work is to be told to [`Self::failed`].
    pub fn decide(&mut self, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut due: Vec<u64> = Vec::new();
        let mut has_learnt = false;
        for (name, kept) in &mut self.kept {
            kept.limit.pass(now);
            kept.local_limit.pass(now);
            kept.again_at = kept.again_at.filter(|&at| now < at);
            kept.complaint = None;
            let before = kept.record;
            actions.extend(kept.mac(name, now));
            has_learnt |= kept.record != before;
            if let Some(underlay) = &self.underlay {
                actions.extend(kept.local(name, underlay, now));
            }
            due.extend(kept.due(now));
        }
        if has_learnt {
            actions.push(Action::Save);
        }
        self.due = due.into_iter().filter(|&at| now < at).min();
        actions
    }

    /// How things are.
    pub fn report(&self) -> Report {
        let mut report = Report {
            devices: Vec::new(),
            alarms: self.announced.complaints.clone(),
        };
        for (name, kept) in &self.kept {
            report.devices.push(DeviceReport {
                name: name.clone(),
                kind: kept.kind,
                mac: kept.device.map(|device| device.mac),
                wanted: kept.record,
                underlay: kept.vxlan().and_then(|vxlan| vxlan.local),
                repairs: kept.repairs,
                underlay_changes: kept.underlay_changes,
                peers: None,
                peer_repairs: 0,
                is_left_alone: kept.limit.has_stopped(),
            });
            report.alarms.extend(kept.alarms(name));
        }
        report
    }
}

impl Kept {
    fn vxlan(&self) -> Option<Vxlan> {
        match self.device?.what {
            What::Vxlan(vxlan) => Some(vxlan),
            What::Bridge { .. } | What::Other => None,
        }
    }

    /// The device, if it is what it is kept as.
    fn fitting(&self) -> Option<Device> {
        self.device.filter(|device| {
            matches!(
                (self.kind, device.what),
                (Kind::Vtep, What::Vxlan(_)) | (Kind::Bridge, What::Bridge { .. })
            )
        })
    }

    /// Which MAC is right; `None`: that is not known yet.
    fn right(&self, device: Device, now: u64) -> Option<Mac> {
        if let Some((peers, since)) = self.fresh
            && (peers.mac == device.mac || now.saturating_sub(since) >= SETTLED)
        {
            return Some(peers.mac);
        }
        if self.record.is_some() {
            return self.record;
        }
        let is_settled = match device.what {
            What::Bridge { has_ports } => has_ports,
            What::Vxlan(_) | What::Other => self.fresh.is_none(),
        };
        (is_settled && is_unicast(device.mac)).then_some(device.mac)
    }

    fn mac(&mut self, name: &str, now: u64) -> Option<Action> {
        let Some(device) = self.fitting() else {
            self.complaint = self.device.map(|_| {
                let kind = match self.kind {
                    Kind::Vtep => "vxlan device",
                    Kind::Bridge => "bridge",
                };
                format!("{name} is no {kind}, and is left as it is: name another to the agent")
            });
            return None;
        };
        let right = self.right(device, now)?;
        self.record = Some(right);
        let is_kept = self.kind == Kind::Vtep || self.pinned == Some(device.ifindex);
        let is_wrong = device.mac != right;
        if (!is_wrong && is_kept) || self.again_at.is_some() || !self.limit.grant(now) {
            return None;
        }
        self.repairs += u64::from(is_wrong);
        self.pinned = Some(device.ifindex);
        Some(Action::SetMac {
            name: name.to_owned(),
            ifindex: device.ifindex,
            from: device.mac,
            to: right,
        })
    }

    fn local(&mut self, name: &str, underlay: &Underlay, now: u64) -> Option<Action> {
        let device = self.fitting()?;
        let vxlan = self.vxlan()?;
        let from = vxlan.local?;
        if let Some((_, to)) = self.moved {
            let is_told = self.heard.and_then(|peers| peers.underlay) == Some(to);
            if is_told || to != from {
                self.moved = None;
            }
        }
        if underlay
            .by_interface
            .iter()
            .any(|&(_, address)| address == from)
        {
            self.missing_since = None;
            return None;
        }
        let since = *self.missing_since.get_or_insert(now);
        if now.saturating_sub(since) < SETTLED {
            return None;
        }
        let Some(to) = other_source(vxlan.underlay, from, underlay) else {
            self.complaint = Some(format!(
                "{name} sends from {from}, which is on no interface, and there is no other address to take: peers are not reached"
            ));
            return None;
        };
        if self.again_at.is_some() || !self.local_limit.grant(now) {
            return None;
        }
        self.missing_since = None;
        self.underlay_changes += 1;
        self.moved = Some((from, to));
        Some(Action::SetLocal {
            name: name.to_owned(),
            ifindex: device.ifindex,
            vni: vxlan.vni,
            from,
            to,
        })
    }

    /// When time alone changes something.
    fn due(&self, now: u64) -> impl Iterator<Item = u64> {
        let settled = |since: u64| since.saturating_add(SETTLED);
        let differs = self.fresh.filter(|_| self.device.is_some());
        [
            differs.map(|(_, since)| settled(since)),
            self.missing_since.map(settled),
            self.limit.until(),
            self.local_limit.until(),
            self.again_at,
        ]
        .into_iter()
        .flatten()
        .filter(move |&at| now < at)
    }

    fn alarms(&self, name: &str) -> impl Iterator<Item = String> {
        let left_alone = self.limit.has_stopped().then(|| {
            format!(
                "{name}: somebody changes its MAC again and again; it is left alone until nobody has for a minute. Find out who: udev (MACAddressPolicy), \
                 NetworkManager, or flannel, which is restarted"
            )
        });
        let moved = self.moved.map(|(from, to)| {
            format!(
                "{name}: sends from {to} now, because {from} is gone from this node; peers go on sending to {from} until flannel announces {to}: restart \
                 flannel once the cloud can be reached"
            )
        });
        [left_alone, moved, self.complaint.clone()]
            .into_iter()
            .flatten()
    }
}

/// Another address of the family, of the interface that the device sends out of; of the default route's if it is bound to none.
fn other_source(interface: Option<u32>, gone: IpAddr, underlay: &Underlay) -> Option<IpAddr> {
    let (v4, v6) = underlay.default_source;
    let default = match gone {
        IpAddr::V4(_) => v4.map(IpAddr::V4),
        IpAddr::V6(_) => v6.map(IpAddr::V6),
    };
    let Some(interface) = interface else {
        return default;
    };
    let has = |&&(index, address): &&(u32, IpAddr)| {
        let is_global = match address {
            IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
            IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
        };
        index == interface && is_global && address.is_ipv4() == gone.is_ipv4()
    };
    let mut addresses = underlay.by_interface.iter().filter(has);
    let is_default = |&&(_, address): &&(u32, IpAddr)| Some(address) == default;
    let preferred = addresses.clone().find(is_default);
    preferred
        .or_else(|| addresses.next())
        .map(|&(_, address)| address)
}
