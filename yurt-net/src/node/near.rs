//! What lies near this node: the network namespaces that its devices lead to, and the addresses that its own tables
//! have there.
//!
//! Calls return when the kernel has answered. They are for threads that may wait, and that no runtime waits on.

use std::collections::BTreeMap;
use std::io;

use futures_util::StreamExt as _;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use tokio::runtime::Runtime;

use super::follow::{NodeError, connect, routes};
use super::links::links;
use super::neighbours::{entries, mac, neighbour};
use super::routes::main_routes;
use super::tables::{Near, Port, Question};
use crate::device::Mac;
use crate::host::netns::Netns;

/// A connection to the kernel about the network namespace in which it was opened.
pub struct Nearby {
    handle: Handle,
    runtime: Runtime,
}

impl Nearby {
    /// Connects.
    pub fn open() -> Result<Self, NodeError> {
        let (handle, runtime) = connect().map_err(NodeError::Open)?;
        Ok(Self { handle, runtime })
    }

    /// Devices, routes, neighbours and forwarding entries, as they are now.
    pub fn look(&self) -> Result<Near, NodeError> {
        self.runtime.block_on(async {
            let handle = &self.handle;
            let all = routes(handle).await?;
            let links = links(handle, &all).await?;
            let routes = main_routes(all);
            let mut neighbours = Vec::new();
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let entries = entries(handle, family).await?;
                neighbours.extend(entries.iter().filter_map(neighbour));
            }
            let mut ports = BTreeMap::new();
            for (at, port) in entries(handle, AddressFamily::Bridge)
                .await?
                .iter()
                .filter_map(port)
            {
                let known = ports.entry(at).or_insert(Port::Only(port));
                if *known != Port::Only(port) {
                    *known = Port::Several;
                }
            }
            Ok(Near {
                links,
                routes,
                neighbours,
                ports,
            })
        })
    }

    /// The number that this namespace has for each of these; `None` if no device leads there.
    pub fn netns_ids(&self, namespaces: &[Netns]) -> Result<Vec<Option<i32>>, NodeError> {
        let ids = namespaces.iter().map(|netns| self.netns_id(netns));
        self.runtime.block_on(async {
            let mut found = Vec::new();
            for id in ids {
                found.push(id.await?);
            }
            Ok(found)
        })
    }

    async fn netns_id(&self, netns: &Netns) -> Result<Option<i32>, NodeError> {
        let failed = |source| NodeError::List {
            what: "numbers of network namespaces",
            source,
        };
        let mut question = NsidMessage::default();
        question.attributes = vec![NsidAttribute::Fd(netns.descriptor())];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
        request.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(request).map_err(failed)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                    let id = answer
                        .attributes
                        .iter()
                        .find_map(|attribute| match attribute {
                            NsidAttribute::Id(id) => Some(*id),
                            _ => None,
                        });
                    // -1: it has no number.
                    return Ok(id.filter(|id| *id >= 0));
                }
                NetlinkPayload::Error(error) => {
                    return Err(failed(rtnetlink::Error::NetlinkError(error)));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Makes the kernel ask for an address; the answer will be among the neighbours.
    pub fn ask(&self, question: &Question) -> Result<(), NodeError> {
        let Question {
            device,
            address,
            mac,
        } = question;
        let entry = self.handle.neighbours().add(*device, *address);
        let entry = match mac {
            // With the MAC, so that the answer passes a bridge that has forgotten the port.
            Some(mac) => entry
                .link_layer_address(&mac.0)
                .state(NeighbourState::Probe),
            None => entry.state(NeighbourState::None).flags(NeighbourFlags::Use),
        };
        let asked = self.runtime.block_on(entry.replace().execute());
        asked.map_err(|source| NodeError::List {
            what: "neighbours",
            source,
        })
    }
}

impl From<NodeError> for io::Error {
    fn from(error: NodeError) -> Self {
        Self::other(error)
    }
}

/// The bridge and the MAC of a forwarding entry, and the port behind which the MAC is.
fn port(entry: &NeighbourMessage) -> Option<((u32, Mac), u32)> {
    let bridge = entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Controller(bridge) => Some(*bridge),
            _ => None,
        });
    Some(((bridge?, mac(entry)?), entry.header.ifindex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_no_device_leads_to_has_no_number() {
        let own = Netns::current().unwrap();
        let nearby = Nearby::open().unwrap();
        assert_eq!(nearby.netns_ids(&[own]).unwrap(), [None]);
        let near = nearby.look().unwrap();
        assert!(near.links.iter().any(|link| link.name == "lo"));
    }
}
