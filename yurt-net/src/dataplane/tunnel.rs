//! Listens on underlays to how peers send through vxlan tunnels. Nothing of it is pinned, and nothing is left of it when it is dropped.
//!
//! Packet sockets whose filter (`yurt_vtep_in`) counts what it sees in `yurt_vtep`, and passes nothing on: no packet is cloned or queued, and
//! nobody is woken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use yurt_ebpf::abi::{self, VtepKey, VtepSeen};

use super::DataplaneError;
use super::error::on_map;
use super::load::{LoadedProgram, VTEP_MAP, load_vtep};
use super::sys::{self, possible_cpus};
use crate::device::Mac;
use crate::tunnel::peers::{Heard, Listened, Others};

/// See the module.
pub struct Listener {
    program: LoadedProgram,
    map: OwnedFd,
    /// Values of an entry.
    cpus: usize,
    /// By the device that they listen at.
    sockets: BTreeMap<u32, OwnedFd>,
    /// With what was seen when it was looked last.
    listened: BTreeMap<Listened, Vec<VtepSeen>>,
}

impl Listener {
    /// For so many it can listen.
    pub const MOST: usize = abi::VTEP_PEERS as usize;

    /// Loads the program; nobody is listened for yet.
    pub fn open() -> Result<Self, DataplaneError> {
        sys::raise_memlock();
        let (map, program, _) = load_vtep()?;
        Ok(Self {
            program,
            map,
            cpus: possible_cpus()?,
            sockets: BTreeMap::new(),
            listened: BTreeMap::new(),
        })
    }

    /// Listens for these, in the caller's network namespace, and for nobody else. Returns what failed of it: that is tried again next time.
    ///
    /// At most [`Self::MOST`], whatever is wanted. Counts begin anew for a peer that is known by another MAC than before.
    pub fn listen(&mut self, wanted: &BTreeSet<Listened>) -> Vec<DataplaneError> {
        let wanted: BTreeSet<Listened> = wanted.iter().take(Self::MOST).copied().collect();
        let mut failures = Vec::new();
        let kept: BTreeSet<VtepKey> = wanted.iter().map(key).collect();
        let gone = self.listened.keys().filter(|row| !wanted.contains(row));
        for row in gone.copied().collect::<Vec<_>>() {
            let key = key(&row);
            if !kept.contains(&key) {
                let deleted = sys::map_delete(self.map.as_fd(), &key);
                failures.extend(deleted.map_err(on_map("delete from", VTEP_MAP)).err());
            }
            self.listened.remove(&row);
        }
        for row in &wanted {
            if self.listened.contains_key(row) {
                continue;
            }
            let known = abi::Mac {
                addr: row.known.0,
                pad: [0; 2],
            };
            let nothing = VtepSeen {
                known,
                ..VtepSeen::default()
            };
            let values = vec![nothing; self.cpus];
            match sys::map_update_per_cpu(self.map.as_fd(), &key(row), &values) {
                Ok(()) => {
                    self.listened.insert(*row, values);
                }
                Err(error) => failures.push(on_map("write", VTEP_MAP)(error)),
            }
        }
        let at: BTreeSet<u32> = wanted.iter().map(|row| row.ifindex).collect();
        self.sockets.retain(|ifindex, _| at.contains(ifindex));
        for ifindex in at {
            if self.sockets.contains_key(&ifindex) {
                continue;
            }
            match sys::packet_socket(ifindex, self.program.fd.as_fd()) {
                Ok(socket) => {
                    self.sockets.insert(ifindex, socket);
                }
                Err(source) => failures.push(DataplaneError::Device {
                    operation: "listen with",
                    program: self.program.name.to_owned(),
                    ifindex,
                    source,
                }),
            }
        }
        failures
    }

    /// What was heard since the last time of each that is listened for.
    pub fn heard(&mut self) -> Result<Vec<(Listened, Heard)>, DataplaneError> {
        let mut heard = Vec::with_capacity(self.listened.len());
        for (row, before) in &mut self.listened {
            let mut now = vec![VtepSeen::default(); self.cpus];
            let is_there = sys::map_lookup(self.map.as_fd(), &key(row), &mut now)
                .map_err(on_map("read", VTEP_MAP))?;
            if is_there {
                heard.push((*row, between(before, &now)));
                *before = now;
            }
        }
        Ok(heard)
    }
}

/// What each CPU has seen, taken together.
fn between(before: &[VtepSeen], now: &[VtepSeen]) -> Heard {
    let mut heard = Heard {
        is_known: false,
        others: Others::None,
    };
    for (before, now) in before.iter().zip(now) {
        heard.is_known |= now.known_frames > before.known_frames;
        if now.other_frames == before.other_frames {
            continue;
        }
        let other = Others::One(Mac(now.other.addr));
        let is_one = now.others.saturating_sub(before.others) <= 1;
        heard.others = match heard.others {
            _ if !is_one => Others::Several,
            Others::None => other,
            same if same == other => same,
            _ => Others::Several,
        };
    }
    heard
}

fn key(row: &Listened) -> VtepKey {
    VtepKey {
        underlay: match row.peer {
            IpAddr::V4(address) => abi::mapped(address.octets()),
            IpAddr::V6(address) => address.octets(),
        },
        vni: row.vni,
        port_be: row.port.to_be_bytes(),
        pad: [0; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: u8 = 1;

    /// What a CPU has seen after frames from these.
    fn after(before: VtepSeen, frames: &[u8]) -> VtepSeen {
        let mut seen = before;
        seen.known.addr[5] = KNOWN;
        for last in frames {
            seen.note([0, 0, 0, 0, 0, *last]);
        }
        seen
    }

    #[track_caller]
    fn expect(earlier: [&[u8]; 2], later: [&[u8]; 2], is_known: bool, others: Others) {
        let before = earlier.map(|frames| after(VtepSeen::default(), frames));
        let now = [after(before[0], later[0]), after(before[1], later[1])];
        let expected = Heard { is_known, others };
        assert_eq!(between(&before, &now), expected, "{earlier:?} {later:?}");
    }

    #[test]
    fn what_cpus_have_seen_is_taken_together() {
        let one = |last| Others::One(Mac([0, 0, 0, 0, 0, last]));
        expect([&[], &[]], [&[], &[]], false, Others::None);
        expect([&[2, 3, 1], &[4]], [&[], &[]], false, Others::None);
        expect([&[], &[]], [&[2, 2], &[]], false, one(2));
        expect([&[2], &[3]], [&[2], &[2]], false, one(2));
        expect([&[2], &[]], [&[], &[2]], false, one(2));
        expect([&[], &[]], [&[2], &[3]], false, Others::Several);
        expect([&[], &[]], [&[2, 3, 2], &[]], false, Others::Several);
        expect([&[], &[]], [&[1], &[]], true, Others::None);
        expect([&[], &[]], [&[2, 1], &[]], true, one(2));
        expect([&[], &[]], [&[2, 3], &[1]], true, Others::Several);
    }
}
