//! Listening on underlays to how peers send through vxlan tunnels.
//!
//! A packet socket on each underlay has a filter, `yurt_vtep_in`, which counts in `yurt_vtep` what it sees and passes
//! nothing on: no packet is cloned or queued, and no process is woken. Nothing is pinned; all of it ends when the
//! listener is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use yurt_ebpf::abi::{self, VtepKey, VtepSeen};

use super::DataplaneError;
use super::error::on_map;
use super::load::maps::VTEP_MAP;
use super::load::{LoadedProgram, load_vtep};
use super::sys::{self, possible_cpus};
use crate::device::Mac;
use crate::tunnel::peers::{Heard, Listened, Others};

/// Sockets that listen to peers, one for each underlay.
pub struct Listener {
    program: LoadedProgram,
    map: OwnedFd,
    /// The number of values that an entry has.
    cpus: usize,
    /// The sockets with their filters, by device.
    sockets: BTreeMap<u32, OwnedFd>,
    /// The peers that are listened for, with the counts of the last look.
    listened: BTreeMap<Listened, Vec<VtepSeen>>,
}

impl Listener {
    /// The most peers that it can listen for.
    pub const MOST: usize = abi::VTEP_PEERS as usize;

    /// Loads the program; no peer is listened for yet.
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

    /// Listens for these peers only, in the caller's network namespace, and for [`Self::MOST`] of them at most. Returns
    /// what failed, which the next call tries again.
    ///
    /// Counts begin anew for a peer that is known by another MAC than before.
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

    /// What was heard of each peer since the last call.
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

/// What was counted between two looks, over all CPUs.
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

    /// The entry of a CPU after frames from these MACs.
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
