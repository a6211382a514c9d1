//! The packet path in the kernel: its maps, its programs, and the devices that the programs are on.
//!
//! ```text
//! <bpffs>/yurt-net/packet-v2/     locked (flock) while it is loaded into; by its ABI
//!     yurt_flow4, yurt_flow6      connections that are up: they survive agents
//!     yurt_dgram4, yurt_dgram6    flows of datagrams that are, likewise
//!     yurt_open4, yurt_open6      flows that are opening
//!     yurt_flows4, yurt_flows6    the three maps above: programs reach them through here
//!     yurt_snat_turn              which port stands for a client next
//!     yurt_edge                   the devices that lead outside or to Pods, and this node's addresses there
//!     yurt_pk_count               what was done
//!     yurt_near, yurt_near_devs   Pods that packets are led to past the stack, see `fast`
//!     yurt_fast_until             until when that may be done
//!     yurt_refused                hosts that were refused something of late
//!     yurt_edge_more              the programs that decide on first packets: those below call them. Without a pin or a
//!                                 descriptor the kernel empties it, and first packets are dropped
//!     yurt_pk_work4, _work6       what is looked up for the packet at hand
//!     yurt_edge_in, _out          the programs at devices that lead outside: what comes in, what leaves
//!     yurt_pod_in, _out           those at devices of Pods: what a Pod sends, what goes to it
//!     l3/yurt_edge_more, l3/tc/   the array and the links of the programs at layer-3 devices, once there is one
//! ```
//!
//! The programs read the table of Services, so they are loaded against its pins.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use yurt_ebpf::abi;

use super::DataplaneError;
use super::attach::bpffs::{create_dir, open_map, remove_dir};
use super::attach::devices::OnDevices;
use super::attach::kept::KeptPins;
use super::attach::pinned::{PinDir, clear, directory, keep_all};
use super::attach::strays::{self, Strays};
use super::attach::tc::{Hook, Method, TcProgram};
use super::counts::Counts;
use super::error::on_map;
use super::fast::FastMaps;
pub use super::load::maps::FlowCapacity;
use super::load::maps::{FLOW_MAPS, packet_maps};
use super::load::{LoadedProgram, PacketPins, Pins, hooks, load_packet, load_packet_l3};
use super::sys::{self, MapInfo};
use crate::edge::{Direction, EdgeImage, EdgeOp, EdgeRow, plan};

pub(super) const FEATURE: &str = "packet";
const STAGES: &str = "yurt_edge_more";

/// How the packet path is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// Entries of the flow tables.
    pub flows: FlowCapacity,
    /// First port to masquerade with, and how many there are.
    pub ports: (u16, u16),
    /// Whether the fast path may ever be taken.
    pub has_fast_path: bool,
}

impl PacketOptions {
    /// What the flags say by default.
    pub const DEFAULT: Self = Self {
        flows: FlowCapacity {
            v4: 32768,
            v6: 8192,
        },
        ports: (12000, 18000),
        has_fast_path: false,
    };
}

/// The kernel's side of the packet path.
#[derive(Debug)]
pub struct Packets {
    devices: OnDevices<Direction>,
    /// The programs for layer-3 devices, once there was one.
    l3: Option<L3>,
    /// A map that shows which programs are these.
    flows: OwnedFd,
    edges: OwnedFd,
    fast: FastMaps,
    counts: Counts,
    pins: KeptPins,
    bpffs: PathBuf,
}

/// The programs that read packets from the IP header on.
#[derive(Debug)]
struct L3 {
    devices: OnDevices<Direction>,
    pins: KeptPins,
}

/// The hook where the programs for a direction belong, and which of ours run before them there.
fn place(direction: Direction) -> (Hook, &'static [&'static str]) {
    match direction {
        Direction::Arriving => (Hook::Ingress, &[]),
        Direction::Leaving => (Hook::Egress, &[]),
        // It sees what the Pod itself has sent and the guard has let through.
        Direction::FromPod => (Hook::Ingress, &[hooks::GUARD.0]),
        // Flows have the Pod's own address, not one that it is translated from.
        Direction::ToPod => (Hook::Egress, &[hooks::TRANSLATE[0].0]),
    }
}

impl Packets {
    /// Takes the maps over, and replaces the pinned programs with those of this binary. The maps of Services must
    /// exist. Programs for layer-3 devices are apart, see [`Self::load_l3`].
    pub fn load(
        bpffs: &Path,
        options: PacketOptions,
        method: Option<Method>,
    ) -> Result<Self, DataplaneError> {
        let pins = PinDir::lock(bpffs, FEATURE, abi::PACKET_ABI)?;
        pins.clear(&packet_maps(options.flows))?;
        let services = services(&pins);
        let at = PacketPins {
            services: &services,
            own: &pins.dir,
        };
        let PacketOptions {
            flows,
            ports,
            has_fast_path,
        } = options;
        let (mut stages, _) = load_packet(Some(at), flows, ports, has_fast_path)?;
        let on_devices = stages.split_off(hooks::PACKET_STAGES.len());
        join_flows(&pins.dir)?;
        let fast = FastMaps::open(&pins)?;
        if !has_fast_path {
            // Programs of an earlier agent take it until they are replaced.
            fast.allow(0)?;
        }
        // Before any program that calls them is on a device. Programs of an earlier agent can call them, too.
        write_stages(&pins.dir, &stages)?;
        let directions = [
            Direction::Arriving,
            Direction::Leaving,
            Direction::FromPod,
            Direction::ToPod,
        ];
        let mut programs = Vec::new();
        for (direction, loaded) in directions.into_iter().zip(on_devices) {
            pins.pin(&loaded)?;
            let (hook, after) = place(direction);
            programs.push((direction, TcProgram::new(loaded, hook, after)));
        }
        let devices = OnDevices::open(&pins.root, programs, method)?;
        let maps = packet_maps(options.flows).map(|(name, _)| name).into_iter();
        let counts = open_map(&pins.dir, "yurt_pk_count")?;
        Ok(Self {
            flows: open_map(&pins.dir, "yurt_flows4")?,
            edges: open_map(&pins.dir, "yurt_edge")?,
            fast,
            counts: Counts::new(counts, "yurt_pk_count", &abi::HANDLED_NAMES)?,
            pins: KeptPins::open(&pins.dir, maps.chain(devices.names()))?,
            bpffs: bpffs.to_owned(),
            devices,
            l3: None,
        })
    }

    /// Loads the programs for layer-3 devices, where there should be such a device or an earlier agent has left them on
    /// one. Other devices are served without them.
    pub fn load_l3(
        &mut self,
        options: PacketOptions,
        method: Option<Method>,
        wanted: &EdgeImage,
    ) -> Result<(), DataplaneError> {
        let dir = directory(&self.bpffs, FEATURE, abi::PACKET_ABI);
        let is_needed = !wanted.l3.is_empty() || l3_directory(&dir).exists();
        if self.l3.is_none() && is_needed {
            let pins = PinDir::lock(&self.bpffs, FEATURE, abi::PACKET_ABI)?;
            self.l3 = Some(L3::load(&pins, options, method)?);
        }
        Ok(())
    }

    /// Makes missing pins of its maps and programs again, and returns their names.
    pub fn keep_pins(&self) -> Result<Vec<&'static str>, DataplaneError> {
        let mut made = keep_all(&self.bpffs, FEATURE, abi::PACKET_ABI, &self.pins)?;
        if let Some(L3 { pins, .. }) = &self.l3 {
            let kept: Result<Vec<_>, _> = pins.keep().into_iter().collect();
            made.extend(kept?);
        }
        Ok(made)
    }

    /// Whether an agent has left pins of the packet path.
    pub fn is_pinned(bpffs: &Path) -> bool {
        directory(bpffs, FEATURE, abi::PACKET_ABI).exists()
    }

    /// Programs of the packet path on devices that do not use the flow tables of `this`: an earlier agent has pinned
    /// them elsewhere.
    pub fn strays(this: Option<&Self>) -> Strays {
        let kept = this.and_then(|this| strays::id(this.flows.as_fd()));
        Strays::on_devices(&hooks::PACKET, &kept.into_iter().collect())
    }

    /// Reads the rows of the devices, and looks where the programs are.
    pub fn observe(&mut self) -> Result<EdgeImage, DataplaneError> {
        let rows = sys::map_entries(self.edges.as_fd()).map_err(on_map("read", "yurt_edge"))?;
        let mut found = self.devices.find()?;
        if let Some(L3 { devices, .. }) = &mut self.l3 {
            let of_l3 = devices.find()?;
            found.attached.extend(of_l3.attached);
            found.lost.extend(of_l3.lost);
        }
        Ok(EdgeImage {
            l3: BTreeSet::new(),
            rows: rows
                .iter()
                .map(|(ifindex, row)| (*ifindex, decode(row)))
                .collect(),
            attached: found.attached,
            lost: found.lost,
        })
    }

    /// Writes the difference to `wanted`, and returns what failed of it: the next call tries again.
    pub fn bring_to(&mut self, wanted: &EdgeImage) -> Result<Vec<DataplaneError>, DataplaneError> {
        let ops = plan(&self.observe()?, wanted);
        let failed = ops.iter().filter_map(|op| self.write(op, &wanted.l3).err());
        Ok(failed.collect())
    }

    /// Removes what agents with older maps have pinned. Their programs must no longer be on any device.
    pub fn remove_older(bpffs: &Path) -> Result<(), DataplaneError> {
        (1..abi::PACKET_ABI).try_for_each(|version| remove_dir(&directory(bpffs, FEATURE, version)))
    }

    /// Removes maps and programs. The programs must no longer be on any device.
    pub fn remove(self) -> Result<(), DataplaneError> {
        remove_dir(&directory(&self.bpffs, FEATURE, abi::PACKET_ABI))
    }

    fn write(&mut self, op: &EdgeOp, l3: &BTreeSet<u32>) -> Result<(), DataplaneError> {
        match op {
            EdgeOp::PutRow(ifindex, row) => {
                sys::map_update(self.edges.as_fd(), ifindex, &encode(row))
                    .map_err(on_map("write", "yurt_edge"))
            }
            EdgeOp::DeleteRow(ifindex) => sys::map_delete(self.edges.as_fd(), ifindex)
                .map_err(on_map("delete from", "yurt_edge")),
            EdgeOp::Attach(direction, ifindex) => {
                let devices = match (&mut self.l3, l3.contains(ifindex)) {
                    (_, false) => &mut self.devices,
                    (Some(of_l3), true) => &mut of_l3.devices,
                    // That they are not loaded is a failure of its own.
                    (None, true) => return Ok(()),
                };
                devices.attach(*direction, *ifindex).map(|_| ())
            }
            // Whichever of them it has: it may be gone, and cannot be asked.
            EdgeOp::Detach(direction, ifindex) => {
                if let Some(of_l3) = &mut self.l3 {
                    of_l3.devices.detach(*direction, *ifindex)?;
                }
                self.devices.detach(*direction, *ifindex)
            }
        }
    }

    /// The maps of its fast path, to be written to while it is in use.
    pub fn fast(&self) -> Result<FastMaps, DataplaneError> {
        self.fast.try_clone()
    }

    /// Its counters, to be read while it is in use.
    pub fn counters(&self) -> Result<Counts, DataplaneError> {
        self.counts.try_clone()
    }
}

impl L3 {
    fn load(
        pins: &PinDir,
        options: PacketOptions,
        method: Option<Method>,
    ) -> Result<Self, DataplaneError> {
        let services = services(pins);
        let at = PacketPins {
            services: &services,
            own: &pins.dir,
        };
        let dir = l3_directory(&pins.dir);
        create_dir(&dir)?;
        let stages = packet_maps(options.flows).into_iter();
        let stages: Vec<_> = stages.filter(|(name, _)| *name == STAGES).collect();
        clear(&dir, &stages)?;
        let array = dir.join(STAGES);
        let (mut stages, _) = load_packet_l3(at, &array, options.flows, options.ports)?;
        let on_devices = stages.split_off(hooks::PACKET_L3.len() - 2);
        write_stages(&dir, &stages)?;
        let directions = [Direction::Arriving, Direction::Leaving];
        let programs = directions
            .into_iter()
            .zip(on_devices)
            .map(|(direction, loaded)| {
                let (hook, after) = place(direction);
                (direction, TcProgram::new(loaded, hook, after))
            });
        Ok(Self {
            devices: OnDevices::open(&dir, programs, method)?,
            pins: KeptPins::open(&dir, [STAGES])?,
        })
    }
}

/// Where the maps of Services are pinned.
fn services(pins: &PinDir) -> Pins {
    Pins {
        table: pins.root.join(format!("v{}", abi::TABLE_ABI)),
        state: pins.root.join(format!("state-v{}", abi::STATE_ABI)),
    }
}

/// Where the programs for layer-3 devices are pinned.
fn l3_directory(dir: &Path) -> PathBuf {
    dir.join("l3")
}

/// Puts programs into the array of those that others go on with.
fn write_stages(dir: &Path, stages: &[LoadedProgram]) -> Result<(), DataplaneError> {
    let array = open_map(dir, STAGES)?;
    for (stage, (_, index)) in stages.iter().zip(hooks::PACKET_STAGES) {
        sys::map_update(array.as_fd(), &index, &stage.fd.as_raw_fd())
            .map_err(on_map("write", STAGES))?;
    }
    Ok(())
}

/// Puts the maps of flows where programs reach them, those that are not there. Each that is put in costs a grace period
/// of the kernel, some milliseconds.
fn join_flows(dir: &Path) -> Result<(), DataplaneError> {
    for (outer, inner) in FLOW_MAPS {
        let map = open_map(dir, outer)?;
        for (index, name) in (0_u32..).zip(inner) {
            let flows = open_map(dir, name)?;
            let MapInfo { id, .. } = sys::map_info(flows.as_fd()).map_err(on_map("read", name))?;
            // Read, an entry is the number of a map; written, it is a descriptor.
            let mut there = [0_u32];
            sys::map_lookup(map.as_fd(), &index, &mut there).map_err(on_map("read", outer))?;
            if there != [id] {
                sys::map_update(map.as_fd(), &index, &flows.as_raw_fd())
                    .map_err(on_map("write", outer))?;
            }
        }
    }
    Ok(())
}

// === Encoding: edge -> abi, and back ===

fn encode(row: &EdgeRow) -> abi::EdgeRow {
    abi::EdgeRow {
        addr6: row.v6.map(|address| address.octets()).unwrap_or_default(),
        addr4: row.v4.map(|address| address.octets()).unwrap_or_default(),
        is_pods: u32::from(row.is_pods),
    }
}

fn decode(row: &abi::EdgeRow) -> EdgeRow {
    EdgeRow {
        is_pods: row.is_pods != 0,
        v4: (row.addr4 != [0; 4]).then(|| row.addr4.into()),
        v6: (row.addr6 != [0; 16]).then(|| row.addr6.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_tables_of_the_default_sizes_leave_room_for_those_of_services_in_six_megabytes() {
        // Of each entry, `struct htab_elem` (kernel/bpf/hashtab.c).
        const HEADER: u32 = 48;
        let maps = packet_maps(PacketOptions::DEFAULT.flows);
        let tables = maps[..6].iter();
        let bytes =
            tables.map(|(_, map)| map.max_entries * (HEADER + map.key_size + map.value_size));
        assert_eq!(bytes.sum::<u32>(), 5_406_720);
    }

    #[test]
    fn a_row_is_read_back_as_it_was_written() {
        let v4 = Some("192.0.2.11".parse().unwrap());
        let v6 = Some("2001:db8::11".parse().unwrap());
        for (v4, v6) in [(v4, v6), (v4, None), (None, v6), (None, None)] {
            for is_pods in [false, true] {
                let row = EdgeRow { is_pods, v4, v6 };
                assert_eq!(decode(&encode(&row)), row);
            }
        }
    }
}
