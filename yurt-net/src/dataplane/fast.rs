//! The fast path in the kernel: until when it may be taken, and to which Pods of this node. And what others have on
//! this node that it would skip.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use yurt_ebpf::abi::{self, mapped, words};

use super::DataplaneError;
use super::attach::bpffs::open_map;
use super::attach::pinned::PinDir;
use super::error::on_map;
use super::load::hooks::{ON_DEVICES, TRANSLATE};
use super::sys::netlink::Connection;
use super::sys::tc::Filters;
use super::sys::{self, Hook, MapInfo, name_of, program_by_id, program_name, stack, tcx_programs};
use crate::edge::EdgeRow;
use crate::edge::fast::{Device, Near, Surroundings};

/// What is written to the maps of the fast path.
#[derive(Debug)]
pub struct FastMaps {
    near: OwnedFd,
    devices: OwnedFd,
    until: OwnedFd,
    /// By place.
    written: BTreeMap<u32, (IpAddr, Near)>,
}

impl FastMaps {
    pub(super) fn open(pins: &PinDir) -> Result<Self, DataplaneError> {
        Ok(Self {
            near: open_map(&pins.dir, "yurt_near")?,
            devices: open_map(&pins.dir, "yurt_near_devs")?,
            until: open_map(&pins.dir, "yurt_fast_until")?,
            written: BTreeMap::new(),
        })
    }

    /// The same maps, to be written to elsewhere.
    pub(super) fn try_clone(&self) -> Result<Self, DataplaneError> {
        let fd = |fd: &OwnedFd, name| fd.try_clone().map_err(on_map("open", name));
        Ok(Self {
            near: fd(&self.near, "yurt_near")?,
            devices: fd(&self.devices, "yurt_near_devs")?,
            until: fd(&self.until, "yurt_fast_until")?,
            written: BTreeMap::new(),
        })
    }

    /// Takes out what an agent before has written.
    pub fn clear(&self) -> Result<(), DataplaneError> {
        self.allow(0)?;
        (0..abi::NEARS).try_for_each(|place| self.forget(place))
    }

    /// Which maps these are: those of another load have another number.
    pub fn id(&self) -> Result<u32, DataplaneError> {
        let info = sys::map_info(self.until.as_fd());
        let MapInfo { id, .. } = info.map_err(on_map("read", "yurt_fast_until"))?;
        Ok(id)
    }

    /// Allows the fast path until a time: nanoseconds of `CLOCK_MONOTONIC`. Not at all: 0.
    pub fn allow(&self, until_ns: u64) -> Result<(), DataplaneError> {
        sys::map_update(self.until.as_fd(), &0_u32, &until_ns)
            .map_err(on_map("write", "yurt_fast_until"))
    }

    /// Writes the difference to these addresses. Of two with one place, the one that is there stays, or the first one
    /// is taken.
    pub fn put(&mut self, nears: &BTreeMap<IpAddr, Near>) -> Result<(), DataplaneError> {
        let mut wanted = BTreeMap::new();
        let is_written = |place: &u32, address: &IpAddr| {
            let written = self.written.get(place);
            written.is_some_and(|(written, _)| written == address)
        };
        for (address, near) in nears {
            let place = place(*address);
            if !wanted.contains_key(&place) || is_written(&place, address) {
                wanted.insert(place, (*address, *near));
            }
        }
        let gone = self
            .written
            .keys()
            .filter(|place| !wanted.contains_key(place));
        for place in gone.copied().collect::<Vec<_>>() {
            self.forget(place)?;
            self.written.remove(&place);
        }
        for (place, (address, near)) in wanted {
            if self.written.get(&place) != Some(&(address, near)) {
                self.forget(place)?;
                self.written.remove(&place);
                if self.write(place, address, near)? {
                    self.written.insert(place, (address, near));
                }
            }
        }
        Ok(())
    }

    /// The device counts last, and goes first: a row is read only with its device.
    fn write(&self, place: u32, address: IpAddr, near: Near) -> Result<bool, DataplaneError> {
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&near.mac);
        macs[6..].copy_from_slice(&near.from);
        let row = abi::NearRow {
            addr: octets(address),
            ifindex: near.ifindex,
            mtu: near.mtu,
            macs,
            pad: [0; 4],
        };
        sys::map_update(self.near.as_fd(), &place, &row).map_err(on_map("write", "yurt_near"))?;
        match sys::map_update(self.devices.as_fd(), &place, &[near.ifindex, 0]) {
            // It has just gone.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            result => result
                .map(|()| true)
                .map_err(on_map("write", "yurt_near_devs")),
        }
    }

    fn forget(&self, place: u32) -> Result<(), DataplaneError> {
        sys::map_delete(self.devices.as_fd(), &place)
            .map_err(on_map("delete from", "yurt_near_devs"))
    }
}

fn place(address: IpAddr) -> u32 {
    abi::NearRow::place(words(&octets(address)))
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Waits for changes of nftables.
#[derive(Debug)]
pub struct Rules(Connection);

impl Rules {
    /// Subscribes, in the network namespace of the caller.
    pub fn follow() -> io::Result<Self> {
        stack::nftables().map(Self)
    }

    /// Waits for the next change.
    pub fn changed(&mut self) -> io::Result<()> {
        self.0.wait()
    }
}

/// What others have on this node, on the devices that are served and on bridges between them.
pub fn look(rows: &BTreeMap<u32, EdgeRow>) -> Surroundings {
    let mut unread = Vec::new();
    let mut seen = Surroundings {
        chains: read(stack::chains(), "nftables", &mut unread),
        legacy: read(stack::legacy_tables(), "iptables", &mut unread),
        policies: read(stack::policies(), "xfrm", &mut unread),
        devices: read(stack::devices(), "devices", &mut unread),
        neighbours: read(stack::neighbours(), "neighbours", &mut unread),
        ports: read(stack::bridge_ports(), "bridges", &mut unread),
        unread: Vec::new(),
    };
    let served = seen
        .devices
        .iter()
        .filter(|one| rows.contains_key(&one.ifindex));
    let bridges: Vec<u32> = served.filter_map(|device| device.controller).collect();
    let is_on_the_way = |device: &&mut Device| {
        rows.contains_key(&device.ifindex) || bridges.contains(&device.ifindex)
    };
    for device in seen.devices.iter_mut().filter(is_on_the_way) {
        let attached = programs(device.ifindex);
        let (translated, others) = read(attached, &device.name, &mut unread);
        (device.is_translated, device.others) = (translated, others);
    }
    Surroundings { unread, ..seen }
}

fn read<T: Default>(result: io::Result<T>, what: &str, unread: &mut Vec<String>) -> T {
    result.unwrap_or_else(|error| {
        unread.push(format!("{what} cannot be read: {error}"));
        T::default()
    })
}

/// Whether translation is on a device, and which programs and filters of others are.
fn programs(ifindex: u32) -> io::Result<(bool, Vec<String>)> {
    let ours = ON_DEVICES.map(|(name, ..)| name);
    let mut others = Vec::new();
    let mut is_translated = false;
    let mut filters = Filters::open()?;
    for hook in [Hook::Ingress, Hook::Egress] {
        others.extend(filters.others(&ours, hook, ifindex)?);
        let attached = match tcx_programs(hook, ifindex) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Vec::new(),
            attached => attached?,
        };
        for (id, _) in attached {
            let program = program_by_id(id).and_then(|program| program_name(program.as_fd()));
            match program {
                Ok(name) if name == name_of(TRANSLATE[0].0) => is_translated = true,
                Ok(name) if ours.iter().any(|ours| name == name_of(ours)) => {}
                Ok(name) => others.push(shown(&name)),
                // It has just gone.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        let (translates, ..) = TRANSLATE[0];
        is_translated |= matches!(filters.find(translates, hook, ifindex), Ok(Some(_)));
    }
    Ok((is_translated, others))
}

fn shown(name: &[u8; 16]) -> String {
    match String::from_utf8_lossy(name).trim_end_matches('\0') {
        "" => "a program without a name".to_owned(),
        name => name.to_owned(),
    }
}
