//! What programs tell of refusals and drops: read through the pins, with an agent and without one.
//!
//! Programs tell something only until the time in `yurt_watch`. Whoever listens puts it off again and again, so it
//! passes by itself if the listener is killed. A ring has one reader: the lock of the directory says who that is.

use std::fs::{File, TryLockError};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use yurt_ebpf::abi::{
    COUNTER_NAMES, EVENT_FORM, EVENT_OF_PACKET, EVENT_OF_SOCKET, EVENT_RING_BYTES, EVENT_SHARES,
    Event, EventShare, HANDLED_NAMES, STATE_ABI,
};

use super::DataplaneError;
use super::attach::bpffs::{holder, open_map};
use super::attach::pinned::directory;
use super::error::{at, on_map};
use super::sys::{self, Ring, possible_cpus};
use crate::host::clock::monotonic_ns;

/// For how long programs tell something after they were asked to.
const HEARD_FOR: Duration = Duration::from_secs(3);
/// How often they have to be asked.
pub const ASK_EVERY: Duration = Duration::from_secs(1);
/// More than a ring can hold.
const MOST_AT_ONCE: u32 = EVENT_RING_BYTES / 64;

/// A refusal or a drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// When: nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Who has told it.
    pub by: By,
    /// Why, as the counters call it.
    pub reason: &'static str,
    /// IANA number of the protocol; 0 if the program did not know it.
    pub protocol: u8,
    /// The client, if the program knew it. A socket may have no address yet.
    pub client: Option<SocketAddr>,
    /// What was dialled, if the program knew it.
    pub dialled: Option<SocketAddr>,
}

/// Who has told something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A program on a socket.
    Socket {
        /// Cookie of the client's network namespace.
        netns: u64,
        /// The process.
        pid: u32,
        /// The name of its thread.
        comm: String,
    },
    /// A program on a device.
    Packet {
        /// Index of the device.
        ifindex: u32,
    },
}

/// All reasons that may be told, each once: sockets and packets share some.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    let of_packets = HANDLED_NAMES.into_iter();
    let of_packets = of_packets.filter(|name| !COUNTER_NAMES.contains(name));
    let all = COUNTER_NAMES.into_iter().chain(of_packets);
    all.filter(|name| name.starts_with("refuse_") || name.starts_with("drop_"))
}

/// Somebody who listens. Programs stop to tell something when this goes.
pub struct Listener {
    ring: Ring,
    ring_pin: PathBuf,
    ring_id: [u32; 2],
    until: OwnedFd,
    shares: OwnedFd,
    cpus: usize,
    lost_before: u64,
    /// Records of a form that this version does not know.
    unknown: u64,
    _lock: File,
}

impl Listener {
    /// Begins to listen; `None` if nobody could tell anything, because no agent has served this node since the last
    /// cleanup or boot. Fails while somebody else listens.
    pub fn start(bpffs: &Path) -> Result<Option<Self>, DataplaneError> {
        let dir = directory(bpffs, "state", STATE_ABI);
        let ring_pin = dir.join("yurt_events");
        if !ring_pin.exists() {
            return Ok(None);
        }
        let lock = File::open(&dir).map_err(at("open", &dir))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(at("lock", &dir)(error)),
            Err(TryLockError::WouldBlock) => {
                return Err(DataplaneError::Listening { pid: holder(&lock) });
            }
        }
        let ring = Ring::open(&ring_pin).map_err(at("open", &ring_pin))?;
        let mut listener = Self {
            ring_id: sys::object_id(ring.as_fd()).map_err(at("look at", &ring_pin))?,
            ring,
            ring_pin,
            until: open_map(&dir, "yurt_watch")?,
            shares: open_map(&dir, "yurt_ev_share")?,
            cpus: possible_cpus()?,
            lost_before: 0,
            unknown: 0,
            _lock: lock,
        };
        listener.lost_before = listener.all_lost()?;
        // What an earlier listener did not take.
        while listener.ring.next(|_| ()).is_some() {}
        listener.ask()?;
        Ok(Some(listener))
    }

    /// Asks programs to tell something for a while. Fails if they tell it elsewhere by now.
    pub fn ask(&self) -> Result<(), DataplaneError> {
        let pinned = sys::object_get(&self.ring_pin).map_err(at("open", &self.ring_pin))?;
        let id = sys::object_id(pinned.as_fd()).map_err(at("look at", &self.ring_pin))?;
        if id != self.ring_id {
            let path = self.ring_pin.clone();
            return Err(DataplaneError::OtherRing { path });
        }
        let heard_for = u64::try_from(HEARD_FOR.as_nanos()).unwrap_or(u64::MAX);
        self.set(monotonic_ns().saturating_add(heard_for))
    }

    fn set(&self, until: u64) -> Result<(), DataplaneError> {
        let written = sys::map_update(self.until.as_fd(), &0u32, &until);
        written.map_err(on_map("write", "yurt_watch"))
    }

    /// Takes what was told, but no more than the ring can hold at a time.
    pub fn take(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        for _ in 0..MOST_AT_ONCE {
            let Some(record) = self.ring.next(decode) else {
                break;
            };
            match record {
                Some(one) => told.push(one),
                None => self.unknown += 1,
            }
        }
        told
    }

    /// How many events were not told since the start, because there were too many, or cannot be read.
    pub fn lost(&self) -> Result<u64, DataplaneError> {
        let lost = self.all_lost()?.saturating_sub(self.lost_before);
        Ok(lost + self.unknown)
    }

    fn all_lost(&self) -> Result<u64, DataplaneError> {
        let mut by_cpu = vec![[0u64; 2]; self.cpus];
        let mut lost = 0u64;
        for place in 0..EVENT_SHARES {
            sys::map_lookup(self.shares.as_fd(), &place, &mut by_cpu)
                .map_err(on_map("read", "yurt_ev_share"))?;
            lost = by_cpu
                .iter()
                .fold(lost, |lost, [_, of_cpu]| lost.wrapping_add(*of_cpu));
        }
        Ok(lost)
    }
}

const _: () =
    assert!(core::mem::offset_of!(EventShare, lost) == 8 && size_of::<EventShare>() == 16);

impl Drop for Listener {
    fn drop(&mut self) {
        // If it fails, programs notice by themselves in some seconds.
        let _ = self.set(0);
    }
}

/// A record; `None` if this version does not know its form.
fn decode(record: &[u8]) -> Option<Told> {
    let event = Event::of(record.try_into().ok()?);
    let (names, by) = match (event.form, event.path) {
        (EVENT_FORM, EVENT_OF_SOCKET) => {
            let by = By::Socket {
                netns: event.netns,
                pid: event.pid,
                comm: comm(&event.comm),
            };
            (&COUNTER_NAMES[..], by)
        }
        (EVENT_FORM, EVENT_OF_PACKET) => {
            let ifindex = event.ifindex;
            (&HANDLED_NAMES[..], By::Packet { ifindex })
        }
        _ => return None,
    };
    Some(Told {
        at_ns: event.at_ns,
        by,
        reason: names.get(usize::from(event.reason))?,
        protocol: event.protocol,
        client: address(event.client, event.client_port_be),
        dialled: address(event.dialled, event.dialled_port_be),
    })
}

fn comm(bytes: &[u8; 16]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

fn address(bytes: [u8; 16], port_be: [u8; 2]) -> Option<SocketAddr> {
    let address = IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
    let is_known = bytes != [0; 16];
    is_known.then(|| SocketAddr::new(address, u16::from_be_bytes(port_be)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use yurt_ebpf::abi::{Counter, Handled, mapped};

    use super::*;

    fn event() -> Event {
        Event {
            at_ns: 5,
            netns: 7,
            dialled: mapped([10, 96, 0, 20]),
            comm: *b"curl\0old\0\0\0\0\0\0\0\0",
            pid: 4711,
            dialled_port_be: [0, 80],
            form: EVENT_FORM,
            path: EVENT_OF_SOCKET,
            reason: Counter::RefuseNoEndpoint as u8,
            protocol: 6,
            ..Event::default()
        }
    }

    #[test]
    fn an_event_of_a_socket_has_its_process_and_one_of_a_packet_its_device_and_client() {
        let told = decode(&event().bytes()).unwrap();
        assert_eq!(told.reason, "refuse_no_endpoint");
        assert_eq!(told.dialled, Some("10.96.0.20:80".parse().unwrap()));
        assert_eq!(told.client, None);
        let by = By::Socket {
            netns: 7,
            pid: 4711,
            comm: "curl".to_owned(),
        };
        assert_eq!(told.by, by);
        let packet = Event {
            client: Ipv6Addr::LOCALHOST.octets(),
            client_port_be: [1, 0],
            ifindex: 3,
            path: EVENT_OF_PACKET,
            reason: Handled::DropSourceRange as u8,
            ..event()
        };
        let told = decode(&packet.bytes()).unwrap();
        assert_eq!(told.reason, "drop_source_range");
        assert_eq!(told.client, Some("[::1]:256".parse().unwrap()));
        assert_eq!(told.by, By::Packet { ifindex: 3 });
    }

    #[test]
    fn a_record_of_another_version_is_no_event() {
        let other = Event { form: 2, ..event() };
        assert_eq!(decode(&other.bytes()), None);
        let unknown = Event {
            reason: 200,
            ..event()
        };
        assert_eq!(decode(&unknown.bytes()), None);
        assert_eq!(decode(&event().bytes()[..72]), None);
    }

    #[test]
    fn each_reason_to_refuse_or_to_drop_is_one_that_may_be_told() {
        let all: Vec<_> = reasons().collect();
        assert!(all.contains(&"refuse_unknown_client") && all.contains(&"drop_tag"));
        assert!(!all.contains(&"forward") && !all.contains(&"to_client"));
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
    }
}
