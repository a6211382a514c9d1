//! Tries the program of the packet path that is in force with a made-up first packet of a client.
//!
//! The packet comes from port 0, which no client has: so the program's entry for its flow is no other flow's, and is
//! removed at once. What the program remembers of the client (session affinity) is put back as it was. Only the
//! counters have one more packet.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;

use yurt_ebpf::abi::{
    self, Affinity4, Affinity6, AffinityKey, HANDLED_NAMES, PACKET_ABI, STATE_ABI,
};
use yurt_ebpf::frame::ETH;
use yurt_ebpf::frame::ip::TCP;
use yurt_ebpf::rewrite::flow::Address;

use super::DataplaneError;
use super::attach::bpffs::open_map;
use super::attach::pinned::directory;
use super::error::{on_map, on_program};
use super::flows::{FlowTables, PacketFlow, Stage};
use super::packet::FEATURE;
use super::sys::{self, possible_cpus};

/// The program at a device that leads outside, and the one at a device of a Pod.
const PROGRAMS: [&str; 2] = ["yurt_edge_in", "yurt_pod_in"];
/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`.
const REDIRECT: u32 = 7;
const TTL: u8 = 64;

/// The result of the trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The verdict of the program.
    pub verdict: Verdict,
    /// The counters that rose: more than one if packets of others were served at the same time.
    pub counted: Vec<&'static str>,
    /// Where the packet goes now.
    pub to: Option<SocketAddr>,
}

/// What a program returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on to the programs of others and into the network stack.
    GoesOn,
    /// It is dropped.
    Dropped,
    /// It is sent out by a device at once, as a refusal.
    Redirected,
    /// A value that our programs never return.
    Unknown(u32),
}

/// A device where packets are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its index.
    pub ifindex: u32,
    /// It leads to a Pod of this node; otherwise it leads outside.
    pub is_pods: bool,
}

/// The devices where packets are served: without a pinned program nothing can be tried.
pub fn devices(bpffs: &Path) -> Result<Vec<Served>, DataplaneError> {
    let pins = directory(bpffs, FEATURE, PACKET_ABI);
    if !PROGRAMS.iter().all(|program| pins.join(program).exists()) {
        return Ok(Vec::new());
    }
    let map = open_map(&pins, "yurt_edge")?;
    let rows: Vec<(u32, abi::EdgeRow)> =
        sys::map_entries(map.as_fd()).map_err(on_map("read", "yurt_edge"))?;
    let served = rows.into_iter().map(|(ifindex, row)| Served {
        ifindex,
        is_pods: row.is_pods != 0,
    });
    Ok(served.collect())
}

/// Runs the program on a first packet from `client` to `to` that comes in by this device, whose link-layer address is
/// `mac`. Both addresses are of one family.
pub fn try_packet(
    bpffs: &Path,
    (Served { ifindex, is_pods }, mac): (Served, [u8; 6]),
    client: IpAddr,
    to: SocketAddr,
    protocol: u8,
) -> Result<Tried, DataplaneError> {
    let pins = directory(bpffs, FEATURE, PACKET_ABI);
    let before = counts(&pins)?;
    let memory = Remembered::of(bpffs, client)?;
    let frame = first_packet(mac, client, to, protocol);
    let program = PROGRAMS[usize::from(is_pods)];
    let run = sys::run_on_frame(&pins.join(program), ifindex, &frame);
    let (verdict, out) = run.map_err(on_program("run", program))?;
    let after = counts(&pins)?;
    let led_to = destination(&out).filter(|_| verdict != SHOT && verdict != REDIRECT);
    if let (Some(backend), Some(tables)) = (led_to, FlowTables::open(bpffs)?) {
        tables.forget(&PacketFlow {
            protocol,
            client: SocketAddr::new(client, 0),
            dialled: to,
            backend,
            masquerade: None,
            device: ifindex,
            stage: Stage::Opening,
            quiet_s: 0,
        })?;
    }
    memory.put_back(bpffs)?;
    let rose = before.iter().zip(&after).zip(HANDLED_NAMES);
    let rose = rose.filter(|((before, after), _)| after > before);
    Ok(Tried {
        verdict: match verdict {
            u32::MAX => Verdict::GoesOn,
            SHOT => Verdict::Dropped,
            REDIRECT => Verdict::Redirected,
            other => Verdict::Unknown(other),
        },
        counted: rose.map(|(_, name)| name).collect(),
        to: led_to,
    })
}

/// The counters, in the order of their names.
fn counts(pins: &Path) -> Result<Vec<u64>, DataplaneError> {
    let map = open_map(pins, "yurt_pk_count")?;
    let cpus = possible_cpus()?;
    let indices = 0u32..;
    let counts = indices.zip(HANDLED_NAMES).map(|(index, _)| {
        let mut by_cpu = vec![0u64; cpus];
        let found = sys::map_lookup(map.as_fd(), &index, &mut by_cpu);
        found.map_err(on_map("read", "yurt_pk_count"))?;
        Ok(by_cpu.iter().sum())
    });
    counts.collect()
}

/// What session affinity remembers of a client.
enum Remembered {
    V4(u64, BTreeMap<u64, Affinity4>),
    V6(u64, BTreeMap<u64, Affinity6>),
}

impl Remembered {
    fn of(bpffs: &Path, client: IpAddr) -> Result<Self, DataplaneError> {
        Ok(match client {
            IpAddr::V4(client) => {
                let (_, id) = client.octets().client();
                Self::V4(id, remembered(bpffs, "yurt_aff4", id)?)
            }
            IpAddr::V6(client) => {
                let (_, id) = client.octets().client();
                Self::V6(id, remembered(bpffs, "yurt_aff6", id)?)
            }
        })
    }

    fn put_back(&self, bpffs: &Path) -> Result<(), DataplaneError> {
        match self {
            Self::V4(id, was) => put_back(bpffs, "yurt_aff4", *id, was),
            Self::V6(id, was) => put_back(bpffs, "yurt_aff6", *id, was),
        }
    }
}

/// The entry of this client, by service port.
fn remembered<V: Copy + Default>(
    bpffs: &Path,
    name: &'static str,
    client: u64,
) -> Result<BTreeMap<u64, V>, DataplaneError> {
    let map = open_map(&directory(bpffs, "state", STATE_ABI), name)?;
    let mut found = BTreeMap::new();
    let read = sys::map_each(map.as_fd(), |key: &AffinityKey, value: &V| {
        if key.netns == client {
            found.insert(key.identity, *value);
        }
    });
    read.map_err(on_map("read", name))?;
    Ok(found)
}

fn put_back<V: Copy + Default + PartialEq>(
    bpffs: &Path,
    name: &'static str,
    client: u64,
    was: &BTreeMap<u64, V>,
) -> Result<(), DataplaneError> {
    let map = open_map(&directory(bpffs, "state", STATE_ABI), name)?;
    for (identity, now) in remembered::<V>(bpffs, name, client)? {
        let key = AffinityKey {
            netns: client,
            identity,
        };
        match was.get(&identity) {
            None => sys::map_delete(map.as_fd(), &key).map_err(on_map("delete from", name))?,
            Some(was) if *was != now => {
                sys::map_update(map.as_fd(), &key, was).map_err(on_map("write", name))?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// An Ethernet frame to `mac` with a TCP SYN or an empty datagram. Its checksums are wrong, which only a receiver would
/// check.
fn first_packet(mac: [u8; 6], client: IpAddr, to: SocketAddr, protocol: u8) -> Vec<u8> {
    let payload = match protocol {
        TCP => {
            let mut syn = vec![0; 20];
            // Twenty bytes of header, SYN, a window.
            (syn[12], syn[13], syn[14]) = (5 << 4, 0x02, 0xff);
            syn
        }
        _ => vec![0, 0, 0, 0, 0, 8, 0, 0],
    };
    let length = u16::try_from(payload.len()).unwrap_or_default();
    let mut frame = [mac, [2, 0, 0, 0, 0, 0]].concat();
    match (client, to.ip()) {
        (IpAddr::V4(client), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, TTL, protocol, 0, 0]);
            frame.extend([client.octets(), to.octets()].concat());
        }
        (client, destination) => {
            let [client, to] = [client, destination].map(|address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            });
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, TTL]);
            frame.extend([client, to].concat());
        }
    }
    let ports = frame.len();
    frame.extend(payload);
    frame[ports + 2..ports + 4].copy_from_slice(&to.port().to_be_bytes());
    frame
}

/// The destination of a frame that [`first_packet`] made.
fn destination(frame: &[u8]) -> Option<SocketAddr> {
    let ip = frame.get(ETH..)?;
    let (address, rest): (IpAddr, _) = match frame.get(12..ETH)? {
        [0x08, 0x00] => {
            let address: [u8; 4] = ip.get(16..20)?.try_into().ok()?;
            (address.into(), ip.get(20..)?)
        }
        [0x86, 0xdd] => {
            let address: [u8; 16] = ip.get(24..40)?.try_into().ok()?;
            (address.into(), ip.get(40..)?)
        }
        _ => return None,
    };
    let port: [u8; 2] = rest.get(2..4)?.try_into().ok()?;
    Some(SocketAddr::new(address, u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use yurt_ebpf::frame::ip::UDP;

    use super::*;

    #[test]
    fn a_made_up_packet_is_a_whole_one_to_where_it_should_go() {
        for (client, to) in [
            ("192.0.2.9", "192.0.2.1:30080"),
            ("2001:db8::9", "[2001:db8::1]:30080"),
        ] {
            let to: SocketAddr = to.parse().unwrap();
            for (protocol, header) in [(TCP, 20), (UDP, 8)] {
                let frame = first_packet([2, 0, 0, 0, 0, 1], client.parse().unwrap(), to, protocol);
                let ip = if to.is_ipv4() { 20 } else { 40 };
                assert_eq!(frame.len(), ETH + ip + header);
                assert_eq!(destination(&frame), Some(to));
                let ports = ETH + ip;
                assert_eq!(frame[ports..ports + 2], [0, 0], "no client has port 0");
            }
        }
        assert_eq!(destination(&[0; 20]), None);
    }
}
