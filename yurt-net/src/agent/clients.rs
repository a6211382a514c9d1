//! The clients that source ranges need, and the Pods whose sockets are left alone: looked for while there are any, and
//! written where the programs find them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::warn;

use super::complaints::Complaints;
use super::facts::{Facts, Known};
use super::serving::Serving;
use crate::config::AgentConfig;
use crate::dataplane::service::clients::identity::{ClientAddresses, Word};
use crate::dataplane::service::clients::{Clients as Search, LeftAlone, Look, Wanted};
use crate::error::chain;
use crate::ledger::State;
use crate::observe::status::{self, Status};
use crate::pods::members::{SOCKET_LB, pod_name};
use crate::pods::translate;

/// Looks for the clients of this node.
pub(super) struct Clients {
    search: Search,
    /// The clients that were found, until they are written.
    found: Option<Look>,
    translation: translate::Policy,
    /// The agent serves packets.
    has_packets: bool,
    /// A Pod asks for its sockets to be left alone, where packets are served.
    is_asked: bool,
    /// Annotations that cannot be read.
    misread: Complaints,
    /// Pods that ask for it and are served at their sockets all the same.
    unserved: Vec<String>,
    report: status::Clients,
}

impl Clients {
    /// Looks for no clients until a Service or a Pod asks.
    pub(super) fn start(config: &AgentConfig) -> Self {
        Self {
            search: Search::default(),
            found: None,
            translation: config.translation.clone(),
            has_packets: config.packets.is_some(),
            is_asked: false,
            misread: Complaints::about("sockets"),
            unserved: Vec::new(),
            report: status::Clients::default(),
        }
    }

    /// Waits until a look has ended. Cancel safe.
    pub(super) async fn changed(&mut self) {
        self.found = Some(self.search.next().await);
    }

    /// Looks for clients while the table or a Pod needs them. When they no longer do, forgets what was found.
    pub(super) fn follow(&mut self, serving: &mut Serving) {
        let wanted = Wanted {
            addresses: serving.asks_for_clients(),
            // Those that an earlier agent has left alone are looked at once more, even if none asks.
            left_alone: self.is_asked || serving.leaves_clients_alone(),
        };
        if self.search.want(wanted) && wanted == Wanted::default() {
            self.found = None;
            self.write(serving);
        }
    }

    /// A Pod may have come or gone.
    pub(super) fn interfaces_changed(&mut self) {
        self.search.interfaces_changed();
    }

    /// Passes on what is known of clients. `served`: the devices at which packets are served; `None`: not known yet.
    pub(super) fn hear(&mut self, facts: &Facts<'_>, served: Option<&BTreeSet<u32>>) {
        let left_alone = served.and_then(|served| self.left_alone(facts, served));
        let is_asked = |left_alone: &LeftAlone| !left_alone.asked.is_empty();
        self.is_asked = left_alone.as_ref().is_some_and(is_asked);
        let view = &facts.known.view;
        let (v4, v6) = view.default_source;
        let word = Word {
            own: ClientAddresses { v4, v6 },
            local: view.local_addresses.clone().unwrap_or_default(),
            entries: facts.known.entries().clone(),
        };
        self.search.hear(word, left_alone);
    }

    /// Whose sockets are to be left alone; `None` while devices or Pods are not known.
    fn left_alone(&mut self, facts: &Facts<'_>, served: &BTreeSet<u32>) -> Option<LeftAlone> {
        let (wishes, misread) = facts.members(&self.translation).socket_wishes();
        self.misread.set(misread);
        self.unserved.clear();
        let links = facts.known.links.as_deref();
        // They are not listed where nothing asks for them.
        let is_known = facts.snapshot.is_some() && (links.is_some() || !self.has_packets);
        if !is_known {
            return None;
        }
        let links = links.unwrap_or_default();
        let mut left_alone = LeftAlone {
            served: served.clone(),
            ..LeftAlone::default()
        };
        for wish in wishes {
            let ifindex = wish.host.ifindex;
            let is_there = links.iter().any(|link| link.is_still(wish.host));
            let is_served = is_there && served.contains(&ifindex);
            match wish.is_off {
                None if is_served => {
                    left_alone.untold.insert(ifindex);
                }
                Some(true) if is_served => {
                    left_alone.asked.insert(ifindex, wish.pod);
                }
                Some(true) => self.unserved.push(wish.pod),
                None | Some(false) => {}
            }
        }
        Some(left_alone)
    }

    /// Writes what was found.
    pub(super) fn write(&mut self, serving: &mut Serving) {
        let found = self.found.take().unwrap_or_default();
        let written = serving.set_clients(&found);
        let error = match (&found.error, &written) {
            (Some(error), _) => Some(chain(error)),
            (None, Err(error)) => Some(chain(error)),
            (None, Ok(())) => None,
        };
        if let Some(error) = error.as_ref()
            && self.report.last_error.as_ref() != Some(error)
        {
            warn!(error, "not all clients of this node are known");
        }
        self.report = status::Clients {
            known: found.clients.len(),
            left_alone: match written {
                Ok(()) => found.left_alone.into_values().collect(),
                Err(_) => std::mem::take(&mut self.report.left_alone),
            },
            last_error: error,
        };
    }

    /// Whether the sockets of the Pod with this address are left alone.
    pub(super) fn leave_alone(&self, known: &Known, address: IpAddr) -> bool {
        let mut pods = known.entries().iter();
        pods.any(|(key, entry)| {
            entry.state == State::Active
                && entry.addresses.contains(&address)
                && self.report.left_alone.contains(&pod_name(key))
        })
    }

    /// How many clients are known, whose sockets are left alone, and which Pods ask for that in vain.
    pub(super) fn report(&self, status: &mut Status) {
        status.clients.clone_from(&self.report);
        let why = match self.has_packets {
            true => "packets are not served at its device: see `packets`",
            false => "that takes --packet-path=on",
        };
        let unserved = self.unserved.iter().map(|pod| {
            format!("Pod {pod}: annotation {SOCKET_LB}: its sockets are served all the same; {why}")
        });
        let alarms = &mut status.retention.alarms;
        alarms.extend(self.misread.alarms().chain(unserved));
    }
}
