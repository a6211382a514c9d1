//! Listens on underlays to how peers send through vxlan tunnels. Nothing of it is pinned, and nothing is left of it when it is dropped.
//!
//! Packet sockets whose filter (`yurt_vtep_in`) counts what it sees in `yurt_vtep`, and passes nothing on: no packet is copied, and nobody
//! is woken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use yurt_ebpf::abi::{self, VtepKey, VtepSeen};

use super::DataplaneError;
use super::bpf::{LoadedProgram, load_vtep, on_map, possible_cpus};
use super::sys;
use crate::retain::ledger::Mac;
use crate::retain::peers::{Heard, Listened};

const MAP: &str = "yurt_vtep";
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// See the module.
pub struct Listener {
    program: LoadedProgram,
    map: OwnedFd,
    /// Values of an entry.
    cpus: usize,
    /// By the device that they listen at, and `ETH_P_*`.
    sockets: BTreeMap<(u32, u16), OwnedFd>,
    /// With what was seen when it was looked last.
    listened: BTreeMap<Listened, Vec<VtepSeen>>,
}

impl Listener {
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

    /// Listens for these, in the caller's network namespace; for the first [`abi::VTEP_PEERS`] of them. How many it are.
    ///
    /// Whom is known by another MAC now is somebody else.
    pub fn listen(&mut self, wanted: &BTreeSet<Listened>) -> Result<usize, DataplaneError> {
        let most = usize::try_from(abi::VTEP_PEERS).unwrap_or(usize::MAX);
        let wanted: BTreeSet<Listened> = wanted.iter().take(most).copied().collect();
        let kept: BTreeSet<VtepKey> = wanted.iter().map(key).collect();
        let gone = self.listened.keys().filter(|row| !wanted.contains(row));
        for row in gone.copied().collect::<Vec<_>>() {
            let key = key(&row);
            if !kept.contains(&key) {
                sys::map_delete(self.map.as_fd(), &key).map_err(on_map("delete from", MAP))?;
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
            sys::map_update_per_cpu(self.map.as_fd(), &key(row), &values)
                .map_err(on_map("write", MAP))?;
            self.listened.insert(*row, values);
        }
        let at = wanted.iter().map(|row| (row.ifindex, protocol(row.peer)));
        let at: BTreeSet<(u32, u16)> = at.collect();
        self.sockets.retain(|place, _| at.contains(place));
        for (ifindex, protocol) in at {
            if self.sockets.contains_key(&(ifindex, protocol)) {
                continue;
            }
            let socket = sys::packet_socket(ifindex, protocol, self.program.fd.as_fd());
            let socket = socket.map_err(|source| DataplaneError::Device {
                operation: "listen with",
                program: self.program.name.to_owned(),
                ifindex,
                source,
            })?;
            self.sockets.insert((ifindex, protocol), socket);
        }
        Ok(wanted.len())
    }

    /// What was heard since the last time of each that is listened for.
    pub fn heard(&mut self) -> Result<Vec<(Listened, Heard)>, DataplaneError> {
        let mut heard = Vec::with_capacity(self.listened.len());
        for (row, before) in &mut self.listened {
            let mut now = vec![VtepSeen::default(); self.cpus];
            sys::map_lookup(self.map.as_fd(), &key(row), &mut now).map_err(on_map("read", MAP))?;
            heard.push((*row, between(before, &now)));
            *before = now;
        }
        Ok(heard)
    }
}

/// What each CPU has seen, taken together.
fn between(before: &[VtepSeen], now: &[VtepSeen]) -> Heard {
    let mut heard = Heard::Nothing;
    for (before, now) in before.iter().zip(now) {
        if now.known_frames > before.known_frames {
            return Heard::Known;
        }
        if now.other_frames == before.other_frames {
            continue;
        }
        let other = Heard::Other(Mac(now.other.addr));
        let is_one = now.others - before.others <= 1;
        heard = match heard {
            _ if !is_one => Heard::Several,
            Heard::Nothing => other,
            same if same == other => same,
            _ => Heard::Several,
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

fn protocol(peer: IpAddr) -> u16 {
    match peer {
        IpAddr::V4(_) => ETH_P_IP,
        IpAddr::V6(_) => ETH_P_IPV6,
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
    fn expect(earlier: [&[u8]; 2], later: [&[u8]; 2], expected: Heard) {
        let before = earlier.map(|frames| after(VtepSeen::default(), frames));
        let now = [after(before[0], later[0]), after(before[1], later[1])];
        assert_eq!(between(&before, &now), expected, "{earlier:?} {later:?}");
    }

    #[test]
    fn what_cpus_have_seen_is_taken_together() {
        let other = |last| Heard::Other(Mac([0, 0, 0, 0, 0, last]));
        expect([&[], &[]], [&[], &[]], Heard::Nothing);
        expect([&[2, 3, 1], &[4]], [&[], &[]], Heard::Nothing);
        expect([&[], &[]], [&[2, 2], &[]], other(2));
        expect([&[2], &[3]], [&[2], &[2]], other(2));
        expect([&[2], &[]], [&[], &[2]], other(2));
        expect([&[], &[]], [&[2], &[3]], Heard::Several);
        expect([&[], &[]], [&[2, 3, 2], &[]], Heard::Several);
        expect([&[], &[]], [&[2, 1], &[]], Heard::Known);
        expect([&[], &[]], [&[2, 3], &[1]], Heard::Known);
    }
}
