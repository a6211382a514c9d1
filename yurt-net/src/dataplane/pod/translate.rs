//! Translation in the kernel: its maps, its two programs, the devices that they are on, and the routes to promised
//! addresses.
//!
//! ```text
//! <bpffs>/yurt-net/translate-v1/  locked (flock) by whoever loads; by its ABI
//!     yurt_xlate              which addresses each Pod has, and which were promised to it
//!     yurt_live               flows that came in at live addresses: they survive agents
//!     yurt_xl_count           what was done
//!     yurt_xlate_out, _in     the programs: to the Pod, from it
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use yurt_ebpf::abi;

use crate::dataplane::DataplaneError;
use crate::dataplane::attach::bpffs::{open_map, remove_dir};
use crate::dataplane::attach::devices::OnDevices;
use crate::dataplane::attach::kept::KeptPins;
use crate::dataplane::attach::pinned::{PinDir, directory, keep_all};
use crate::dataplane::attach::strays::{self, Strays};
use crate::dataplane::attach::tc::{Hook, Method, TcProgram};
use crate::dataplane::counts::Counts;
use crate::dataplane::error::on_map;
use crate::dataplane::load::maps::translate_maps;
use crate::dataplane::load::{hooks, load_translate};
use crate::dataplane::sys;
use crate::node::routes::{RouteError, Routes};
use crate::pods::translate::{Direction, Pair, TranslateImage, TranslateOp, TranslateRow, plan};

const FEATURE: &str = "translate";

/// A write of a plan that failed; it does not stop the others.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// Maps, programs, devices.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// Routes.
    #[error(transparent)]
    Route(#[from] RouteError),
}

/// The kernel's side of translation.
#[derive(Debug)]
pub struct Translate {
    devices: OnDevices<Direction>,
    rows: OwnedFd,
    counts: Counts,
    pins: KeptPins,
    bpffs: PathBuf,
}

/// The hook where the program for a direction belongs, and which of ours run before it there.
fn place(direction: Direction) -> (Hook, &'static [&'static str]) {
    match direction {
        Direction::ToPod => (Hook::Egress, &[]),
        // The guard checks what the Pod itself has sent, and flows have the Pod's own address: both come first.
        Direction::FromPod => (Hook::Ingress, &[hooks::PACKET[2].0, hooks::GUARD.0]),
    }
}

impl Translate {
    /// Takes the maps over, and replaces the pinned programs with those of this binary.
    pub fn load(bpffs: &Path, method: Option<Method>) -> Result<Self, DataplaneError> {
        let pins = PinDir::lock(bpffs, FEATURE, abi::TRANSLATE_ABI)?;
        pins.clear(&translate_maps())?;
        let directions = [Direction::ToPod, Direction::FromPod];
        let mut programs = Vec::new();
        for (direction, (loaded, _)) in directions.into_iter().zip(load_translate(Some(&pins.dir))?)
        {
            pins.pin(&loaded)?;
            let (hook, after) = place(direction);
            programs.push((direction, TcProgram::new(loaded, hook, after)));
        }
        let devices = OnDevices::open(&pins.root, programs, method)?;
        let maps = translate_maps().map(|(name, _)| name).into_iter();
        let counts = open_map(&pins.dir, "yurt_xl_count")?;
        Ok(Self {
            rows: open_map(&pins.dir, "yurt_xlate")?,
            counts: Counts::new(counts, "yurt_xl_count", &abi::TRANSLATION_NAMES)?,
            pins: KeptPins::open(&pins.dir, maps.chain(devices.names()))?,
            bpffs: bpffs.to_owned(),
            devices,
        })
    }

    /// Makes missing pins of its maps and programs again, and returns their names.
    pub fn keep_pins(&self) -> Result<Vec<&'static str>, DataplaneError> {
        keep_all(&self.bpffs, FEATURE, abi::TRANSLATE_ABI, &self.pins)
    }

    /// Whether an agent has left pins of translation.
    pub fn is_pinned(bpffs: &Path) -> bool {
        directory(bpffs, FEATURE, abi::TRANSLATE_ABI).exists()
    }

    /// Programs of translation on devices that do not read the maps of `this`: an earlier agent has pinned them
    /// elsewhere.
    pub fn strays(this: Option<&Self>) -> Strays {
        let kept = this.and_then(|this| strays::id(this.rows.as_fd()));
        Strays::on_devices(&hooks::TRANSLATE, &kept.into_iter().collect())
    }

    /// Reads the maps and the routes, and looks where the programs are.
    pub fn observe(&mut self, routes: &Routes) -> Result<TranslateImage, TranslateError> {
        let rows = sys::map_entries(self.rows.as_fd()).map_err(on_map("read", "yurt_xlate"))?;
        let found = self.devices.find()?;
        Ok(TranslateImage {
            rows: rows
                .iter()
                .map(|(ifindex, row)| (*ifindex, decode(row)))
                .collect(),
            routes: routes.ours()?,
            attached: found.attached,
            lost: found.lost,
        })
    }

    /// Reads what there is, and writes the difference to `wanted`.
    pub fn bring_to(
        &mut self,
        wanted: &TranslateImage,
        routes: &Routes,
    ) -> Result<Vec<TranslateError>, TranslateError> {
        let observed = self.observe(routes)?;
        Ok(self.apply(&observed, wanted, routes))
    }

    /// Writes the difference to `wanted`, and returns what failed of it: the next call tries again.
    pub fn apply(
        &mut self,
        observed: &TranslateImage,
        wanted: &TranslateImage,
        routes: &Routes,
    ) -> Vec<TranslateError> {
        let mut failures = Vec::new();
        // Addresses whose route failed: nothing that needs it is written.
        let mut unled: BTreeSet<IpAddr> = BTreeSet::new();
        let mut unready: BTreeSet<u32> = BTreeSet::new();
        for op in plan(observed, wanted) {
            if let TranslateOp::Attach(Direction::FromPod, ifindex) = op {
                let row = wanted.rows.get(&ifindex);
                let mut promised = row.iter().flat_map(|row| row.promised());
                if unready.contains(&ifindex) || promised.any(|address| unled.contains(&address)) {
                    continue;
                }
            }
            if let Err(error) = self.write(&op, routes) {
                match op {
                    TranslateOp::PutRoute(address, _) => {
                        unled.insert(address);
                    }
                    TranslateOp::PutRow(ifindex, _) | TranslateOp::Attach(_, ifindex) => {
                        unready.insert(ifindex);
                    }
                    _ => {}
                }
                failures.push(error);
            }
        }
        failures
    }

    /// Removes maps and programs. The programs must no longer be on any device.
    pub fn remove(self, bpffs: &Path) -> Result<(), DataplaneError> {
        remove_dir(&directory(bpffs, FEATURE, abi::TRANSLATE_ABI))
    }

    fn write(&mut self, op: &TranslateOp, routes: &Routes) -> Result<(), TranslateError> {
        match op {
            TranslateOp::PutRoute(address, device) => routes.put(*address, *device)?,
            TranslateOp::DeleteRoute(address, device) => routes.delete(*address, *device)?,
            TranslateOp::PutRow(ifindex, row) => {
                sys::map_update(self.rows.as_fd(), ifindex, &encode(row))
                    .map_err(on_map("write", "yurt_xlate"))?;
            }
            TranslateOp::DeleteRow(ifindex) => {
                sys::map_delete(self.rows.as_fd(), ifindex)
                    .map_err(on_map("delete from", "yurt_xlate"))?;
            }
            TranslateOp::Attach(direction, ifindex) => {
                self.devices.attach(*direction, *ifindex)?;
            }
            TranslateOp::Detach(direction, ifindex) => {
                self.devices.detach(*direction, *ifindex)?;
            }
        }
        Ok(())
    }

    /// The map of counters, to be read without blocking the thread.
    pub fn counters(&self) -> Result<Counts, DataplaneError> {
        self.counts.try_clone()
    }
}

// === Encoding: translate -> abi, and back ===

fn encode(row: &TranslateRow) -> abi::TranslateRow {
    let v4 = row
        .v4
        .map(|pair| (pair.live.octets(), pair.promised.octets()));
    let v6 = row
        .v6
        .map(|pair| (pair.live.octets(), pair.promised.octets()));
    let ((live4, promised4), (live6, promised6)) = (v4.unwrap_or_default(), v6.unwrap_or_default());
    abi::TranslateRow {
        live4,
        promised4,
        live6,
        promised6,
        mac: abi::Mac {
            addr: row.mac,
            pad: [0; 2],
        },
    }
}

fn decode(row: &abi::TranslateRow) -> TranslateRow {
    TranslateRow {
        mac: row.mac.addr,
        v4: (row.promised4 != [0; 4]).then(|| Pair {
            live: row.live4.into(),
            promised: row.promised4.into(),
        }),
        v6: (row.promised6 != [0; 16]).then(|| Pair {
            live: row.live6.into(),
            promised: row.promised6.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_back_as_it_was_written() {
        let v4 = Some(Pair {
            live: "10.244.1.20".parse().unwrap(),
            promised: "10.99.0.5".parse().unwrap(),
        });
        let v6 = Some(Pair {
            live: "fd00:244:1::20".parse().unwrap(),
            promised: "fd00:99::5".parse().unwrap(),
        });
        let mac = [0x0a, 0x58, 10, 99, 0, 5];
        for (v4, v6) in [(v4, v6), (v4, None), (None, v6)] {
            let row = TranslateRow { mac, v4, v6 };
            assert_eq!(decode(&encode(&row)), row);
        }
    }
}
