//! Which MACs the node's own vxlan devices and bridges should have, and which address a vxlan device should send from.
//! Pure.
//!
//! Peers know a vxlan device by permanent entries that change only when the cloud says so: with another MAC, the node
//! is unreachable for them. The first of these that is known is the right MAC: the one that the cloud announces to
//! peers now, the recorded one, the one that the device has.
//!
//! The caller tells [`Keeper`] what it observes ([`Keeper::see`], [`Keeper::hear`]), and [`Keeper::decide`] says what
//! to do. Times are milliseconds of a monotonic clock.

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

/// Milliseconds until an action that failed is tried again.
const AGAIN: u64 = 1_000;

/// A device as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Index.
    pub ifindex: u32,
    /// MAC.
    pub mac: Mac,
    /// Its kind.
    pub what: What,
}

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A vxlan device.
    Vxlan(Vxlan),
    /// A bridge.
    Bridge {
        /// Whether it has ports. Before it has one, nobody can have learnt its MAC.
        has_ports: bool,
    },
    /// Any other device.
    Other,
}

/// How a vxlan device reaches its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port that it receives at.
    pub port: u16,
    /// The address that it sends from, if it is bound to one.
    pub local: Option<IpAddr>,
    /// The index of the device that it sends out of, if it is bound to one.
    pub underlay: Option<u32>,
}

/// The addresses of the machine, and the sources of its default routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    /// The addresses, each with the index of its interface, in the kernel's order.
    pub by_interface: Vec<(u32, IpAddr)>,
    /// The source addresses of the default routes.
    pub default_source: (Option<Ipv4Addr>, Option<Ipv6Addr>),
}

/// An action for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set the MAC of a device, even to the one that it has: a bridge keeps its MAC only if it was set.
    SetMac {
        /// Device.
        name: String,
        /// Its index.
        ifindex: u32,
        /// The MAC that it has.
        from: Mac,
        /// The MAC that it should have.
        to: Mac,
    },
    /// Set the address that a vxlan device sends from.
    SetLocal {
        /// Device.
        name: String,
        /// Its index.
        ifindex: u32,
        /// Its network identifier.
        vni: u32,
        /// The address that it sends from, which is on no interface any more.
        from: IpAddr,
        /// The address that it should send from.
        to: IpAddr,
    },
    /// Write the records to disk.
    Save,
}

#[derive(Debug)]
struct Kept {
    kind: Kind,
    record: Option<Mac>,
    device: Option<Device>,
    /// What the cloud announces to peers, while that is fresh, and since when it has been so.
    fresh: Option<(AnnouncedVtep, u64)>,
    /// What was last announced to peers, fresh or not.
    heard: Option<AnnouncedVtep>,
    limit: Limit,
    local_limit: Limit,
    /// The index of the bridge whose MAC was set by us.
    pinned: Option<u32>,
    /// When the underlay address was first seen to be on no interface.
    missing_since: Option<u64>,
    /// The last change of the underlay address, until it is announced to peers.
    moved: Option<(IpAddr, IpAddr)>,
    /// Until then, no action is tried again.
    again_at: Option<u64>,
    complaint: Option<String>,
    repairs: u64,
    underlay_changes: u64,
}

/// The addresses that are kept for the node's own devices.
#[derive(Debug)]
pub struct Keeper {
    kept: BTreeMap<String, Kept>,
    announced: Announced,
    underlay: Option<Underlay>,
    due: Option<u64>,
}

impl Keeper {
    /// Starts with these devices and the records of earlier runs.
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

    /// The records to write to disk.
    pub fn records(&self) -> BTreeMap<String, Mac> {
        let kept = self.kept.iter();
        kept.filter_map(|(name, kept)| Some((name.clone(), kept.record?)))
            .collect()
    }

    /// Takes up the state of a device; `None` if it does not exist.
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

    /// Takes up the addresses of the machine.
    pub fn see_underlay(&mut self, underlay: Underlay) {
        self.underlay = Some(underlay);
    }

    /// Takes up what a source says of this node's Node. `is_fresh`: the cloud says so at present.
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

    /// Notes that an action on a device has failed.
    pub fn failed(&mut self, name: &str, now: u64) {
        if let Some(kept) = self.kept.get_mut(name) {
            let again_at = now.saturating_add(AGAIN);
            kept.again_at = Some(again_at);
            kept.pinned = None;
            self.due = Some(self.due.map_or(again_at, |due| due.min(again_at)));
        }
    }

    /// When to decide again, unless something is observed before.
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    /// The actions to take now. They count as done; the caller reports one that fails to [`Self::failed`].
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

    /// The state of the devices, for `status` and metrics.
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

    /// The device, if it is of the kind that it is configured as.
    fn fitting(&self) -> Option<Device> {
        self.device.filter(|device| {
            matches!(
                (self.kind, device.what),
                (Kind::Vtep, What::Vxlan(_)) | (Kind::Bridge, What::Bridge { .. })
            )
        })
    }

    /// The right MAC, if it is known yet.
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
                let (kind, flag) = match self.kind {
                    Kind::Vtep => ("vxlan device", "--vtep"),
                    Kind::Bridge => ("bridge", "--pin-bridge"),
                };
                format!(
                    "{name} is not a {kind}, so the agent keeps no addresses for it: correct {flag}"
                )
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
                "{name} sends from {from}, which is on no interface, and the node has no other address for it: peers cannot be reached until the node has an address again"
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

    /// The times at which a decision may change without a new observation.
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
                "{name}: another program changes its MAC again and again; the agent leaves it alone until it has been quiet for a \
                 minute. Find that program: udev (MACAddressPolicy), NetworkManager, or a flannel that restarts"
            )
        });
        let moved = self.moved.map(|(from, to)| {
            format!(
                "{name}: sends from {to} now, because {from} is gone from this node; peers still send to {from} until flannel \
                 announces {to}: restart flannel once the cloud can be reached"
            )
        });
        [left_alone, moved, self.complaint.clone()]
            .into_iter()
            .flatten()
    }
}

/// Another address of the same family: of the interface that the device is bound to, else the source of the default
/// route.
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
