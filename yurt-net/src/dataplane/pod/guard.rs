//! The guard in the kernel: its maps, its program, and the devices that the program is on.
//!
//! ```text
//! <bpffs>/yurt-net/guard-v1/  locked (flock) by whoever loads; by guard ABI
//!     yurt_guard              what each Pod may use
//!     yurt_plain              the same in short, for most frames
//!     yurt_owner              whose an address is, of IP or of the link
//!     yurt_spoof              what was found on each device
//!     yurt_spoof_all          and on all of them
//!     yurt_guard_in           the program, for the plugin, which attaches it without an agent
//! ```
//!
//! A row may outlive its device, and the device's index may be used again. The program cannot outlive its device: it is
//! attached after the row of the device is written, and goes with the device.
#![expect(
    unsafe_code,
    reason = "entries that the programs read while they are written"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use yurt_ebpf::abi;
use yurt_ebpf::claims::mac_key;

use crate::dataplane::DataplaneError;
use crate::dataplane::attach::bpffs::{map_array, open_map};
use crate::dataplane::attach::devices::OnDevices;
use crate::dataplane::attach::kept::KeptPins;
use crate::dataplane::attach::pinned::{PinDir, directory, keep_all};
use crate::dataplane::attach::strays::{self, Strays};
use crate::dataplane::attach::tc::{Attached, Hook, Method, TcProgram};
use crate::dataplane::error::{on_map, on_program};
use crate::dataplane::load::maps::guard_maps;
use crate::dataplane::load::{hooks, load_guard};
use crate::dataplane::sys::{self, MappedArray, possible_cpus};
use crate::pods::guard::{GuardImage, GuardOp, GuardRow, Identity, Mode, Owner, plan};

/// The program's name, and its pin's.
const PROGRAM: &str = hooks::GUARD.0;
const FEATURE: &str = "guard";

/// The counters of a device, by the names of [`abi::REASON_NAMES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spoofs {
    /// Frames that were found spoofed and went on.
    pub audited: BTreeMap<&'static str, u64>,
    /// Frames that were found spoofed and were dropped.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// The result of applying a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Devices that the guard is newly attached to.
    pub attached: Vec<u32>,
    /// Failures; everything else was done.
    pub failures: Vec<DataplaneError>,
}

/// The kernel's side of the guard.
#[derive(Debug)]
pub struct Guard {
    devices: OnDevices<()>,
    rows: OwnedFd,
    plain: MappedArray<abi::PlainRow>,
    owners: OwnedFd,
    spoofs: OwnedFd,
    all_spoofs: OwnedFd,
    /// The number of values that an entry of the counting maps has.
    cpus: usize,
    pins: KeptPins,
    bpffs: PathBuf,
}

impl Guard {
    /// For the agent: takes the maps over, and replaces the pinned program with that of this binary.
    pub fn load(bpffs: &Path, method: Option<Method>) -> Result<Self, DataplaneError> {
        let pins = PinDir::lock(bpffs, FEATURE, abi::GUARD_ABI)?;
        finish(&pins, load(&pins)?, method)
    }

    /// Makes missing pins of its maps and its program again, and returns their names.
    pub fn keep_pins(&self) -> Result<Vec<&'static str>, DataplaneError> {
        keep_all(&self.bpffs, FEATURE, abi::GUARD_ABI, &self.pins)
    }

    /// For the CNI plugin, which may run before the agent: takes over what is pinned, and loads what is missing.
    pub fn open(bpffs: &Path, method: Option<Method>) -> Result<Self, DataplaneError> {
        let pins = PinDir::lock(bpffs, FEATURE, abi::GUARD_ABI)?;
        if pins.has_maps(&guard_maps())
            && let Ok(fd) = sys::object_get(&pins.dir.join(PROGRAM))
        {
            let id = sys::object_id(fd.as_fd());
            let [_, id] = id.map_err(on_program("inspect", PROGRAM))?;
            let program = TcProgram {
                name: PROGRAM,
                id,
                hook: Hook::Ingress,
                fd,
                after: &[],
            };
            return finish(&pins, program, method);
        }
        finish(&pins, load(&pins)?, method)
    }

    /// The rows that an earlier agent left, by device; empty if there are no maps.
    pub fn left_rows(bpffs: &Path) -> BTreeMap<u32, GuardRow> {
        let map = open_map(&directory(bpffs, FEATURE, abi::GUARD_ABI), "yurt_guard");
        let rows = map.map(|map| sys::map_entries(map.as_fd()).unwrap_or_default());
        let rows = rows.unwrap_or_default().into_iter();
        rows.map(|(ifindex, row)| (ifindex, decode_row(&row)))
            .collect()
    }

    /// Takes the guard off all devices, wherever it is pinned, and removes its maps.
    pub fn withdraw(bpffs: &Path) -> Result<(), DataplaneError> {
        let withdraw = || match directory(bpffs, FEATURE, abi::GUARD_ABI).exists() {
            true => Self::open(bpffs, None)?.bring_to(&GuardImage::default()),
            false => Ok(Applied::default()),
        };
        let applied = withdraw();
        // Programs that are pinned elsewhere go as well, even if those here cannot be removed.
        let strays = Strays::on_devices(&[hooks::GUARD], &BTreeSet::new());
        let failures = applied?.failures.into_iter().chain(strays.mend());
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Programs of the guard on devices that do not read these maps: an earlier agent has pinned them elsewhere.
    pub fn strays(&self) -> Strays {
        let kept = strays::id(self.rows.as_fd());
        Strays::on_devices(&[hooks::GUARD], &kept.into_iter().collect())
    }

    /// Reads the maps, and looks where the program is.
    pub fn observe(&mut self) -> Result<GuardImage, DataplaneError> {
        let rows = sys::map_entries(self.rows.as_fd()).map_err(on_map("read", "yurt_guard"))?;
        let owners = sys::map_entries(self.owners.as_fd()).map_err(on_map("read", "yurt_owner"))?;
        let mut image = GuardImage {
            rows: rows
                .iter()
                .map(|(ifindex, row)| (*ifindex, decode_row(row)))
                .collect(),
            owners: owners
                .iter()
                .map(|(addr, owner)| (decode_identity(*addr), decode_owner(*owner)))
                .collect(),
            ..GuardImage::default()
        };
        self.observe_plain(&mut image);
        let found = self.devices.find()?;
        let devices = |found: BTreeSet<((), u32)>| found.into_iter().map(|((), ifindex)| ifindex);
        image.attached = devices(found.attached).collect();
        image.lost = devices(found.lost).collect();
        Ok(image)
    }

    /// A row whose short form differs counts as missing. A short form without a row counts as a row that is not wanted.
    fn observe_plain(&self, image: &mut GuardImage) {
        for place in 0..abi::GUARD_PLAIN {
            if let Some(ifindex) = self.plain.read(place).map(|plain| plain.ifindex)
                && ifindex != 0
            {
                image.rows.entry(ifindex).or_default();
            }
        }
        image.rows.retain(|ifindex, row| {
            let found = self.plain.read(abi::PlainRow::place(*ifindex));
            *row == GuardRow::default() || is_short_form(&found.unwrap_or_default(), *ifindex, row)
        });
    }

    /// Writes a short form, with the index last: before that, the place belongs to no device.
    fn write_plain(&mut self, row: &abi::PlainRow) {
        self.clear_plain(row.ifindex, true);
        if let Some(entry) = self.plain.entry(abi::PlainRow::place(row.ifindex)) {
            let entry = entry.as_ptr();
            // SAFETY: a valid entry of our mapping; programs take any bytes.
            unsafe {
                (&raw mut (*entry).v4).write_volatile(row.v4);
                (&raw mut (*entry).mac).write_volatile(row.mac);
                (&raw mut (*entry).v6).write_volatile(row.v6);
                let ifindex = AtomicU32::from_ptr(&raw mut (*entry).ifindex);
                ifindex.store(row.ifindex, Ordering::Release);
            }
        }
    }

    /// Clears the short form of a device. If the place has another device's, clears it only with `whoever`.
    fn clear_plain(&mut self, ifindex: u32, whoever: bool) {
        if let Some(entry) = self.plain.entry(abi::PlainRow::place(ifindex)) {
            // SAFETY: a valid entry of our mapping, and one aligned word of it.
            let there = unsafe { AtomicU32::from_ptr(&raw mut (*entry.as_ptr()).ifindex) };
            if whoever || there.load(Ordering::Relaxed) == ifindex {
                there.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Writes the difference to `wanted`.
    pub fn bring_to(&mut self, wanted: &GuardImage) -> Result<Applied, DataplaneError> {
        let observed = self.observe()?;
        Ok(self.apply(&plan(&observed, wanted)))
    }

    /// Writes a plan, in order. A failed write is returned and does not stop the others; the next plan has it again.
    pub fn apply(&mut self, ops: &[GuardOp]) -> Applied {
        let mut applied = Applied::default();
        for op in ops {
            match self.write(op) {
                Ok(Some(ifindex)) => applied.attached.push(ifindex),
                Ok(None) => {}
                Err(error) => applied.failures.push(error),
            }
        }
        applied
    }

    /// Returns the device if the guard is newly attached to it.
    fn write(&mut self, op: &GuardOp) -> Result<Option<u32>, DataplaneError> {
        match op {
            GuardOp::PutRow(ifindex, row) => {
                self.clear_plain(*ifindex, false);
                sys::map_update(self.rows.as_fd(), ifindex, &encode_row(row))
                    .map_err(on_map("write", "yurt_guard"))?;
                let plain = encode_plain(*ifindex, row);
                if plain.ifindex != 0 {
                    self.write_plain(&plain);
                }
            }
            GuardOp::PutOwner(identity, owner) => {
                let (key, owner) = (encode_identity(*identity), encode_owner(*owner));
                sys::map_update(self.owners.as_fd(), &key, &owner)
                    .map_err(on_map("write", "yurt_owner"))?;
            }
            GuardOp::Attach(ifindex) => {
                let attached = self.devices.attach((), *ifindex)?;
                // `Kept`: the program was attached, and only its pin was missing.
                let is_new = matches!(attached, Attached::Made | Attached::Kept);
                return Ok(is_new.then_some(*ifindex));
            }
            GuardOp::Detach(ifindex) => {
                self.devices.detach((), *ifindex)?;
                sys::map_delete(self.spoofs.as_fd(), ifindex)
                    .map_err(on_map("forget in", "yurt_spoof"))?;
            }
            GuardOp::DeleteRow(ifindex) => {
                self.clear_plain(*ifindex, false);
                sys::map_delete(self.rows.as_fd(), ifindex)
                    .map_err(on_map("delete from", "yurt_guard"))?;
            }
            GuardOp::DeleteOwner(identity) => {
                sys::map_delete(self.owners.as_fd(), &encode_identity(*identity))
                    .map_err(on_map("delete from", "yurt_owner"))?;
            }
        }
        Ok(None)
    }

    /// The map of counters, to be read without blocking the thread.
    pub fn counters(&self) -> Result<SpoofCounters, DataplaneError> {
        let clone = |map: &OwnedFd, name| map.try_clone().map_err(on_map("open", name));
        Ok(SpoofCounters {
            by_device: clone(&self.spoofs, "yurt_spoof")?,
            all: clone(&self.all_spoofs, "yurt_spoof_all")?,
            cpus: self.cpus,
        })
    }
}

/// The counters of the guard.
#[derive(Debug)]
pub struct SpoofCounters {
    by_device: OwnedFd,
    all: OwnedFd,
    /// Values of an entry.
    cpus: usize,
}

impl SpoofCounters {
    /// The counts of a device, since the guard is on it.
    pub fn of_device(&self, ifindex: u32) -> Result<Spoofs, DataplaneError> {
        self.read(&self.by_device, "yurt_spoof", ifindex)
    }

    /// The counts of all devices, including those that are gone.
    pub fn of_all(&self) -> Result<Spoofs, DataplaneError> {
        self.read(&self.all, "yurt_spoof_all", 0)
    }

    fn read(&self, map: &OwnedFd, name: &'static str, key: u32) -> Result<Spoofs, DataplaneError> {
        let mut per_cpu = vec![abi::SpoofCounts::default(); self.cpus];
        sys::map_lookup(map.as_fd(), &key, &mut per_cpu).map_err(on_map("read", name))?;
        let sum = |counts: fn(&abi::SpoofCounts) -> &[u64; abi::REASON_PLACES]| {
            let names = abi::REASON_NAMES.into_iter().enumerate();
            names
                .map(|(reason, name)| {
                    let cpus = per_cpu.iter();
                    (name, cpus.map(|cpu| counts(cpu)[reason]).sum())
                })
                .collect()
        };
        Ok(Spoofs {
            audited: sum(|cpu| &cpu.audited),
            dropped: sum(|cpu| &cpu.dropped),
        })
    }
}

/// Loads the program against the pinned maps, makes missing maps, and pins the program.
fn load(pins: &PinDir) -> Result<TcProgram, DataplaneError> {
    pins.clear(&guard_maps())?;
    let (program, _) = load_guard(Some(&pins.dir))?;
    pins.pin(&program)?;
    Ok(TcProgram::new(program, Hook::Ingress, &[]))
}

fn finish(
    pins: &PinDir,
    program: TcProgram,
    method: Option<Method>,
) -> Result<Guard, DataplaneError> {
    let maps = guard_maps().map(|(name, _)| name).into_iter();
    Ok(Guard {
        rows: open_map(&pins.dir, "yurt_guard")?,
        plain: map_array(&pins.dir, "yurt_plain", abi::GUARD_PLAIN)?,
        owners: open_map(&pins.dir, "yurt_owner")?,
        spoofs: open_map(&pins.dir, "yurt_spoof")?,
        all_spoofs: open_map(&pins.dir, "yurt_spoof_all")?,
        cpus: possible_cpus()?,
        devices: OnDevices::open(&pins.root, [((), program)], method)?,
        pins: KeptPins::open(&pins.dir, maps.chain([PROGRAM]))?,
        bpffs: pins.bpffs.clone(),
    })
}

// === Encoding: guard -> abi, and back ===

fn encode_mode(mode: Mode) -> u32 {
    match mode {
        Mode::Audit => abi::GUARD_AUDIT,
        Mode::Enforce => abi::GUARD_ENFORCE,
    }
}

fn decode_mode(mode: u32) -> Mode {
    if mode == abi::GUARD_ENFORCE {
        Mode::Enforce
    } else {
        Mode::Audit
    }
}

fn encode_identity(identity: Identity) -> [u8; 16] {
    match identity {
        Identity::Ip(IpAddr::V4(addr)) => abi::mapped(addr.octets()),
        Identity::Ip(IpAddr::V6(addr)) => addr.octets(),
        Identity::Mac(mac) => mac_key(mac),
    }
}

fn decode_identity(key: [u8; 16]) -> Identity {
    let [.., a, b, c, d, e, f, _, _] = key;
    let mac = [a, b, c, d, e, f];
    if mac_key(mac) == key {
        Identity::Mac(mac)
    } else {
        Identity::Ip(Ipv6Addr::from(key).to_canonical())
    }
}

fn encode_owner(owner: Owner) -> abi::OwnerRow {
    abi::OwnerRow {
        ifindex: owner.ifindex.unwrap_or(0),
        mode: encode_mode(owner.mode),
    }
}

fn decode_owner(owner: abi::OwnerRow) -> Owner {
    Owner {
        ifindex: (owner.ifindex != 0).then_some(owner.ifindex),
        mode: decode_mode(owner.mode),
    }
}

/// Entries that do not fit are left out; the compiler of rows stays within the room.
fn encode_row(row: &GuardRow) -> abi::GuardRow {
    let mut raw = abi::GuardRow {
        mode: encode_mode(row.mode),
        ..abi::GuardRow::default()
    };
    for (place, mac) in raw.macs.iter_mut().zip(&row.macs) {
        place.addr = *mac;
        raw.macs_len += 1;
    }
    for prefix in &row.own {
        push(&mut raw, prefix);
    }
    (raw.v4_own, raw.v6_own) = (raw.v4_len, raw.v6_len);
    for prefix in &row.extra {
        push(&mut raw, prefix);
    }
    raw
}

/// Zero if the row has no link-layer address, because without one the short form cannot tell two senders apart.
fn encode_plain(ifindex: u32, row: &GuardRow) -> abi::PlainRow {
    let Some(mac) = row.macs.first() else {
        return abi::PlainRow::default();
    };
    let is_link_local = |addr: &Ipv6Addr| addr.is_unicast_link_local();
    let mut v4 = row.own.iter().filter_map(|prefix| match prefix.ip() {
        IpAddr::V4(addr) => Some(addr.octets()),
        IpAddr::V6(_) => None,
    });
    let mut v6 = row.own.iter().filter_map(|prefix| match prefix.ip() {
        IpAddr::V6(addr) if !is_link_local(&addr) => Some(addr.octets()),
        _ => None,
    });
    abi::PlainRow {
        ifindex,
        v4: v4.next().unwrap_or_default(),
        mac: abi::Mac {
            addr: *mac,
            pad: [0; 2],
        },
        v6: v6.next().unwrap_or_default(),
    }
}

/// Whether the place of a device's short form holds what it should. It may belong to another device.
fn is_short_form(found: &abi::PlainRow, ifindex: u32, row: &GuardRow) -> bool {
    if found.ifindex == ifindex {
        return *found == encode_plain(ifindex, row);
    }
    // If the index is 0, the place belongs to no device, and the other fields are left over from the last one.
    found.ifindex != 0 || encode_plain(ifindex, row).ifindex == 0
}

fn push(raw: &mut abi::GuardRow, prefix: &IpNetwork) {
    match prefix {
        IpNetwork::V4(prefix) => {
            if let Some(place) = raw.v4.get_mut(raw.v4_len as usize) {
                let (addr, mask) = (prefix.network().octets(), prefix.mask().octets());
                *place = abi::Prefix4 { addr, mask };
                raw.v4_len += 1;
            }
        }
        IpNetwork::V6(prefix) => {
            if let Some(place) = raw.v6.get_mut(raw.v6_len as usize) {
                let (addr, mask) = (prefix.network().octets(), prefix.mask().octets());
                *place = abi::Prefix6 { addr, mask };
                raw.v6_len += 1;
            }
        }
    }
}

/// Prefixes of IPv4 come first, as in compiled [`GuardRow`]s. A row that no plan has written decodes to one that no
/// plan wants.
fn decode_row(raw: &abi::GuardRow) -> GuardRow {
    let v4 = raw.v4.iter().take(raw.v4_len as usize).map(|prefix| {
        let prefix = Ipv4Network::with_netmask(prefix.addr.into(), prefix.mask.into());
        prefix.map_or(IpNetwork::V4(NO_PREFIX), IpNetwork::V4)
    });
    let v6 = raw.v6.iter().take(raw.v6_len as usize).map(|prefix| {
        let prefix = Ipv6Network::with_netmask(prefix.addr.into(), prefix.mask.into());
        prefix.map_or(IpNetwork::V4(NO_PREFIX), IpNetwork::V6)
    });
    let (v4, v6): (Vec<_>, Vec<_>) = (v4.collect(), v6.collect());
    let (v4_own, v4_extra) = v4.split_at(v4.len().min(raw.v4_own as usize));
    let (v6_own, v6_extra) = v6.split_at(v6.len().min(raw.v6_own as usize));
    GuardRow {
        mode: decode_mode(raw.mode),
        macs: raw
            .macs
            .iter()
            .take(raw.macs_len as usize)
            .map(|mac| mac.addr)
            .collect(),
        own: [v4_own, v6_own].concat(),
        extra: [v4_extra, v6_extra].concat(),
    }
}

/// A prefix that no row has: a mask that is not contiguous is decoded to it.
const NO_PREFIX: Ipv4Network = match Ipv4Network::new_checked(std::net::Ipv4Addr::UNSPECIFIED, 0) {
    Some(prefix) => prefix,
    None => panic!("a prefix of no bits"),
};

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> GuardRow {
        let own = ["10.244.1.10/32", "fd00::10/128", "fe80::10/128"];
        let extra = ["192.0.2.0/24", "2001:db8::/64"];
        GuardRow {
            mode: Mode::Enforce,
            macs: vec![[1, 2, 3, 4, 5, 6], [0, 0, 0x5e, 0, 1, 51]],
            own: own.map(|prefix| prefix.parse().unwrap()).into(),
            extra: extra.map(|prefix| prefix.parse().unwrap()).into(),
        }
    }

    #[test]
    fn a_row_is_read_back_as_it_was_written() {
        let raw = encode_row(&row());
        assert_eq!(
            (raw.macs_len, raw.v4_own, raw.v4_len, raw.v6_own, raw.v6_len),
            (2, 1, 2, 2, 3)
        );
        assert_eq!(decode_row(&raw), row());
    }

    #[test]
    fn a_row_that_somebody_else_has_written_is_read_as_another_and_is_no_panic() {
        let mut raw = encode_row(&row());
        raw.v6_len = u32::MAX;
        raw.v4_own = u32::MAX;
        raw.macs_len = u32::MAX;
        raw.v4[0].mask = [0xff, 0, 0xff, 0];
        assert_ne!(decode_row(&raw), row());
    }

    #[test]
    fn a_short_form_that_was_cleared_is_none_whatever_is_left_of_it() {
        let with_mac = row();
        let without = GuardRow {
            macs: Vec::new(),
            ..row()
        };
        let written = encode_plain(7, &with_mac);
        let at = |ifindex| abi::PlainRow { ifindex, ..written };
        for (found, of_mac, of_none) in [
            (abi::PlainRow::default(), false, true),
            (at(0), false, true),
            (at(7), true, false),
            (at(7 + abi::GUARD_PLAIN), true, true),
        ] {
            assert_eq!(is_short_form(&found, 7, &with_mac), of_mac, "{found:?}");
            assert_eq!(is_short_form(&found, 7, &without), of_none, "{found:?}");
        }
        let other = abi::PlainRow {
            v4: [10, 244, 1, 11],
            ..written
        };
        assert!(!is_short_form(&other, 7, &with_mac));
    }

    #[test]
    fn an_owner_is_read_back_as_it_was_written() {
        let addresses = ["10.1.0.2", "fd00::2"].map(|addr| addr.parse::<IpAddr>().unwrap());
        let mac = Identity::Mac([0x0a, 0x58, 10, 1, 0, 2]);
        let [v4, v6] = addresses.map(Identity::from);
        for (identity, ifindex) in [(v4, Some(7)), (v6, None), (mac, Some(9))] {
            let owner = Owner {
                ifindex,
                mode: Mode::Enforce,
            };
            assert_eq!(decode_identity(encode_identity(identity)), identity);
            assert_eq!(decode_owner(encode_owner(owner)), owner);
        }
    }
}
