//! The flow tables of the packet path, read and swept through their pins: with an agent, and without one.
//!
//! Each flow is read by its entry for what the client dialled. Reading needs memory for a few hundred entries, however
//! large the tables are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use yurt_ebpf::abi::{
    FLOW_DIALLED, FLOW_IS_CLOSED, FLOW_IS_CLOSING, FLOW_MASQUERADED, FLOW_SERVED, Flow, FlowKey,
    PACKET_ABI,
};
use yurt_ebpf::frame::ip::{TCP, UDP};
use yurt_ebpf::rewrite::flow;

use super::DataplaneError;
use super::attach::bpffs::open_map;
use super::attach::pinned::directory;
use super::error::on_map;
use super::packet::FEATURE;
use super::sys;
use crate::host::clock::monotonic_seconds;
use crate::model::Protocol;
use crate::policy::{Flow as Judged, Standing, Suspects};

/// A flow through the packet path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketFlow {
    /// IANA number of its protocol.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// What it dialled.
    pub dialled: SocketAddr,
    /// The backend that it goes to.
    pub backend: SocketAddr,
    /// The address and port that the backend sees as the client's; `None`: the client's own.
    pub masquerade: Option<SocketAddr>,
    /// Index of the device that its first packet came in by.
    pub device: u32,
    /// How far it has come.
    pub stage: Stage,
    /// Seconds since the last packet of the client.
    pub quiet_s: u32,
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// One side has not answered yet.
    Opening,
    /// It is up.
    Up,
    /// One side has ended it.
    Closing,
    /// It has ended. Its entry is kept until the room is needed, and leads nowhere.
    Over,
}

/// The flow tables.
#[derive(Debug)]
pub struct FlowTables {
    v4: Family,
    v6: Family,
}

/// The tables of one family: established connections, established flows of datagrams, and flows that are opening or
/// closing.
#[derive(Debug)]
struct Family {
    connections: OwnedFd,
    datagrams: OwnedFd,
    opening: OwnedFd,
}

impl FlowTables {
    /// Opens them; `None` if there are none, because no packets have been served since the last cleanup or boot.
    pub fn open(bpffs: &Path) -> Result<Option<Self>, DataplaneError> {
        let pins = directory(bpffs, FEATURE, PACKET_ABI);
        if !pins.join("yurt_flow4").exists() {
            return Ok(None);
        }
        let family = |connections, datagrams, opening| {
            Ok::<_, DataplaneError>(Family {
                connections: open_map(&pins, connections)?,
                datagrams: open_map(&pins, datagrams)?,
                opening: open_map(&pins, opening)?,
            })
        };
        Ok(Some(Self {
            v4: family("yurt_flow4", "yurt_dgram4", "yurt_open4")?,
            v6: family("yurt_flow6", "yurt_dgram6", "yurt_open6")?,
        }))
    }

    /// Shows each flow to `see`. A flow that comes or goes meanwhile may be missed, or seen twice while it becomes
    /// established.
    pub fn each(&self, mut see: impl FnMut(PacketFlow)) -> Result<(), DataplaneError> {
        self.each_of(
            |_, _, _| true,
            |flow| {
                see(flow);
                Ok(())
            },
        )
    }

    /// The same, for flows whose protocol, frontend and backend are wanted.
    fn each_of(
        &self,
        is_wanted: impl Fn(u8, SocketAddr, SocketAddr) -> bool,
        mut see: impl FnMut(PacketFlow) -> Result<(), DataplaneError>,
    ) -> Result<(), DataplaneError> {
        let now_s = now_s();
        self.v4.each::<[u8; 4]>(now_s, &is_wanted, &mut see)?;
        self.v6.each::<[u8; 16]>(now_s, &is_wanted, &mut see)
    }

    /// The frontends and backends of flows to these suspects, each pair once.
    pub(in crate::dataplane) fn led_to(
        &self,
        suspects: &Suspects,
    ) -> Result<BTreeSet<Judged>, DataplaneError> {
        let mut found = BTreeSet::new();
        let is_suspect = |protocol, _, backend| {
            let protocol = Protocol::of_number(protocol);
            protocol.is_some_and(|protocol| suspects.contains(protocol, backend))
        };
        self.each_of(is_suspect, |flow| {
            found.extend(judged(flow.protocol, flow.dialled, flow.backend));
            Ok(())
        })?;
        Ok(found)
    }

    /// Forgets the flows between these pairs, and returns how many were not over yet. The next packet of their clients
    /// opens a new flow.
    pub(in crate::dataplane) fn end(
        &self,
        doomed: &BTreeMap<Judged, Standing>,
    ) -> Result<u64, DataplaneError> {
        let mut ended = 0;
        let is_doomed = |protocol, dialled, backend| {
            judged(protocol, dialled, backend).is_some_and(|pair| doomed.contains_key(&pair))
        };
        self.each_of(is_doomed, |flow| {
            ended += u64::from(flow.stage != Stage::Over);
            self.forget(&flow)
        })?;
        Ok(ended)
    }

    /// Forgets a flow, in both directions. Entries that belong to another flow by now stay.
    pub fn forget(&self, flow: &PacketFlow) -> Result<(), DataplaneError> {
        match (flow.client.ip(), flow.dialled.ip(), flow.backend.ip()) {
            (IpAddr::V4(client), IpAddr::V4(dialled), IpAddr::V4(backend)) => {
                let at = [client, dialled, backend].map(|address| address.octets());
                self.v4.forget(flow, at)
            }
            (IpAddr::V6(client), IpAddr::V6(dialled), IpAddr::V6(backend)) => {
                let at = [client, dialled, backend].map(|address| address.octets());
                self.v6.forget(flow, at)
            }
            _ => Ok(()),
        }
    }
}

fn judged(protocol: u8, frontend: SocketAddr, backend: SocketAddr) -> Option<Judged> {
    let protocol = Protocol::of_number(protocol)?;
    Some(Judged {
        protocol,
        frontend,
        backend,
    })
}

/// The clock of the entries, in seconds. It wraps after 136 years.
#[expect(clippy::cast_possible_truncation, reason = "as the programs have it")]
fn now_s() -> u32 {
    monotonic_seconds() as u32
}

/// An address as the maps have it.
trait Address: flow::Address + Default + PartialEq + Into<IpAddr> {}
impl Address for [u8; 4] {}
impl Address for [u8; 16] {}

impl Family {
    fn each<A: Address>(
        &self,
        now_s: u32,
        is_wanted: &impl Fn(u8, SocketAddr, SocketAddr) -> bool,
        see: &mut impl FnMut(PacketFlow) -> Result<(), DataplaneError>,
    ) -> Result<(), DataplaneError> {
        let up = [&self.connections, &self.datagrams].map(|map| (map, false));
        for (map, is_opening) in up.into_iter().chain([(&self.opening, true)]) {
            let mut failed = None;
            let read = sys::map_each(map.as_fd(), |key: &FlowKey<A>, flow: &Flow<A>| {
                let dialled = at(key.destination, key.destination_port_be);
                let backend = at(flow.to, flow.to_port_be);
                if key.place != FLOW_DIALLED || !is_wanted(key.protocol, dialled, backend) {
                    return;
                }
                let answers = self.find(&served(key, flow));
                let seen = answers.and_then(|it| see(seen(key, flow, it, is_opening, now_s)));
                failed = failed.take().or(seen.err());
            });
            read.map_err(on_map("read", "the flow table"))?;
            failed.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// The tables that may have the entry of a protocol.
    fn tables(&self, protocol: u8) -> [&OwnedFd; 2] {
        let up = match protocol {
            UDP => &self.datagrams,
            _ => &self.connections,
        };
        [up, &self.opening]
    }

    /// The entry of a key, in either table.
    fn find<A: Address>(&self, key: &FlowKey<A>) -> Result<Option<Flow<A>>, DataplaneError> {
        let mut flow = [Flow::default()];
        for map in self.tables(key.protocol) {
            let found = sys::map_lookup(map.as_fd(), key, &mut flow);
            if found.map_err(on_map("read", "the flow table"))? {
                return Ok(Some(flow[0]));
            }
        }
        Ok(None)
    }

    fn forget<A: Address>(
        &self,
        flow: &PacketFlow,
        [client, dialled, backend]: [A; 3],
    ) -> Result<(), DataplaneError> {
        let dialled_port_be = flow.dialled.port().to_be_bytes();
        let mut key = FlowKey {
            source: client,
            destination: dialled,
            source_port_be: flow.client.port().to_be_bytes(),
            destination_port_be: dialled_port_be,
            protocol: flow.protocol,
            place: FLOW_DIALLED,
            pad: [0; 2],
        };
        // The client may have opened another flow to another backend already.
        let mut leads_to = Flow {
            to: backend,
            to_port_be: flow.backend.port().to_be_bytes(),
            ..Flow::default()
        };
        let is_same =
            |found: &Flow<A>, to: &Flow<A>| found.to == to.to && found.to_port_be == to.to_port_be;
        if self
            .find(&key)?
            .is_some_and(|found| is_same(&found, &leads_to))
        {
            self.delete(&key)?;
        }
        key = served(&key, &leads_to);
        (leads_to.to, leads_to.to_port_be) = (dialled, dialled_port_be);
        let Some(answers) = self.find(&key)?.filter(|found| is_same(found, &leads_to)) else {
            return Ok(());
        };
        self.delete(&key)?;
        if answers.node_port_be == [0; 2] {
            return Ok(());
        }
        let masqueraded = FlowKey {
            source: key.destination,
            source_port_be: key.destination_port_be,
            destination: answers.node,
            destination_port_be: answers.node_port_be,
            place: FLOW_MASQUERADED,
            ..key
        };
        (leads_to.to, leads_to.to_port_be) = (client, key.source_port_be);
        match self.find(&masqueraded)? {
            Some(found) if is_same(&found, &leads_to) => self.delete(&masqueraded),
            _ => Ok(()),
        }
    }

    fn delete<A>(&self, key: &FlowKey<A>) -> Result<(), DataplaneError> {
        for map in self.tables(key.protocol) {
            sys::map_delete(map.as_fd(), key).map_err(on_map("delete from", "the flow table"))?;
        }
        Ok(())
    }
}

fn at<A: Address>(address: A, port_be: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be_bytes(port_be))
}

/// The key of the entry for the answers to a flow.
fn served<A: Address>(dialled: &FlowKey<A>, flow: &Flow<A>) -> FlowKey<A> {
    FlowKey {
        destination: flow.to,
        destination_port_be: flow.to_port_be,
        place: FLOW_SERVED,
        ..*dialled
    }
}

/// A flow as people see it. `answers`: the entry for its answers, which may belong to another flow by now.
fn seen<A: Address>(
    key: &FlowKey<A>,
    flow: &Flow<A>,
    answers: Option<Flow<A>>,
    is_opening: bool,
    now_s: u32,
) -> PacketFlow {
    let dialled = at(key.destination, key.destination_port_be);
    let answers = answers.filter(|answers| at(answers.to, answers.to_port_be) == dialled);
    let state = flow.state
        | answers.map_or(0, |answers| {
            answers.state & (FLOW_IS_CLOSING | FLOW_IS_CLOSED)
        });
    let is_over = Flow { state, ..*flow }.is_over(key.protocol == TCP, now_s);
    PacketFlow {
        protocol: key.protocol,
        client: at(key.source, key.source_port_be),
        dialled,
        backend: at(flow.to, flow.to_port_be),
        masquerade: answers
            .filter(|answers| answers.node_port_be != [0; 2])
            .map(|answers| at(answers.node, answers.node_port_be)),
        device: flow.ifindex,
        stage: match () {
            () if is_over || answers.is_none() => Stage::Over,
            () if state & (FLOW_IS_CLOSING | FLOW_IS_CLOSED) != 0 => Stage::Closing,
            () if is_opening => Stage::Opening,
            () => Stage::Up,
        },
        quiet_s: now_s.wrapping_sub(flow.last_s),
    }
}

#[cfg(test)]
mod tests {
    use yurt_ebpf::abi::FLOW_IS_ANSWERED;

    use super::*;

    #[test]
    fn a_connection_that_nobody_has_answered_is_shown_as_over_when_the_programs_take_it_for_over() {
        let key = FlowKey {
            source: [192, 0, 2, 9],
            destination: [192, 0, 2, 1],
            protocol: TCP,
            place: FLOW_DIALLED,
            ..FlowKey::default()
        };
        let flow = Flow {
            to: [10, 244, 1, 2],
            ..Flow::default()
        };
        let answers = Flow {
            to: key.destination,
            ..Flow::default()
        };
        let stages = [120, 121].map(|now_s| seen(&key, &flow, Some(answers), true, now_s).stage);
        assert_eq!(stages, [Stage::Opening, Stage::Over]);
        // Closed by one side, and by both.
        for (state, quiet) in [
            (FLOW_IS_ANSWERED | FLOW_IS_CLOSING, 3600),
            (FLOW_IS_CLOSED, 10),
        ] {
            let (flow, answers) = (Flow { state, ..flow }, Flow { state, ..answers });
            let stages = [quiet, quiet + 1]
                .map(|now_s| seen(&key, &flow, Some(answers), false, now_s).stage);
            assert_eq!(stages, [Stage::Closing, Stage::Over]);
        }
    }
}
