//! The names that `monitor` prints, as far as they are known. All of it is asked again from time to time, and no more
//! often than that, however many events there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::links::devices;
use crate::cli::names::{Frontend, Names, ledger, pods};
use crate::cli::verbs::VerbError;
use crate::config::Place;
use crate::dataplane::events::{By, Told};
use crate::dataplane::service::clients::identity::{ClientAddresses, Word};
use crate::dataplane::service::clients::known as known_clients;
use crate::explain::verdict::{Dial, Explanation, FlowVerdict};
use crate::host::disk::errand::once;
use crate::host::netns;
use crate::model::Protocol;
use crate::observe::control::{Request, ask};
use crate::output::complain;
use crate::text;

/// For how long a name is believed, and the lack of one.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// How often this node's Pods and devices are looked for, if one is not known.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many verdicts the agent is asked for at a time.
const VERDICTS_AT_ONCE: usize = 8;
/// So many names are kept; a scan of ports asks for more.
const MOST_NAMES: usize = 4096;

/// What is known, and when it was asked.
#[derive(Debug)]
pub(super) struct Known {
    place: Place,
    services: BTreeMap<Frontend, String>,
    why: BTreeMap<Frontend, String>,
    /// When those of a frontend were asked for.
    asked: BTreeMap<Frontend, Instant>,
    pods: BTreeMap<IpAddr, String>,
    clients: BTreeMap<u64, ClientAddresses>,
    /// The cookie of the node's own network namespace.
    host: Option<u64>,
    devices: BTreeMap<u32, String>,
    looked: Option<Instant>,
    is_remarked: bool,
}

impl Known {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            services: BTreeMap::new(),
            why: BTreeMap::new(),
            asked: BTreeMap::new(),
            pods: BTreeMap::new(),
            clients: BTreeMap::new(),
            host: None,
            devices: BTreeMap::new(),
            looked: None,
            is_remarked: false,
        }
    }

    /// Asks for the names of what is new in these events. `is_needed`: fails if no names of Services are to be had.
    pub(super) async fn learn(&mut self, told: &[Told], is_needed: bool) -> Result<(), VerbError> {
        let is_new = |told: &Told| match told.by {
            By::Socket { netns, .. } => !self.clients.contains_key(&netns),
            By::Packet { ifindex } => !self.devices.contains_key(&ifindex),
        };
        let is_due = |every| self.looked.is_none_or(|looked| looked.elapsed() >= every);
        if !told.is_empty() && is_due(BELIEVED_FOR) || told.iter().any(is_new) && is_due(LOOK_EVERY)
        {
            self.look().await;
        }
        self.asked.retain(|_, asked| asked.elapsed() < BELIEVED_FOR);
        if self.asked.len() > MOST_NAMES {
            self.asked.clear();
        }
        let mut new = BTreeMap::new();
        for told in told {
            let frontend = frontend(told);
            if let Some(frontend) = frontend.filter(|frontend| !self.asked.contains_key(frontend)) {
                new.entry(frontend).or_insert_with(|| self.dial(told));
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        self.asked
            .extend(new.keys().map(|frontend| (*frontend, now)));
        self.services
            .retain(|frontend, _| self.asked.contains_key(frontend));
        self.why
            .retain(|frontend, _| self.asked.contains_key(frontend));
        for frontend in new.keys() {
            self.services.remove(frontend);
            self.why.remove(frontend);
        }
        let frontends: BTreeSet<Frontend> = new.keys().copied().collect();
        let names = Names::of(&self.place, &frontends).await;
        let known = names.known.into_iter();
        self.services
            .extend(known.map(|(at, named)| (at, named.service)));
        match names.remark {
            Some(remark) if is_needed && self.services.is_empty() => {
                return Err(VerbError::Nameless(remark));
            }
            Some(remark) if !self.is_remarked => {
                self.is_remarked = true;
                complain(text::message(&remark));
            }
            Some(_) => {}
            // The agent answers.
            None => {
                let dials = new
                    .into_iter()
                    .filter_map(|(frontend, dial)| Some((frontend, dial?)));
                for (frontend, dial) in dials.take(VERDICTS_AT_ONCE) {
                    let why = self.verdict(dial).await;
                    self.why.extend(why.map(|why| (frontend, why)));
                }
            }
        }
        Ok(())
    }

    /// Looks for the Pods and the devices of this node.
    async fn look(&mut self) {
        self.looked = Some(Instant::now());
        self.devices = devices().await;
        let ledger = ledger(&self.place).await;
        self.pods = pods(&ledger);
        let word = Word {
            local: netns::addresses().unwrap_or_default().into_iter().collect(),
            entries: ledger.entries().clone(),
            ..Word::default()
        };
        // Where they cannot be found, processes still have names.
        if let Some(Ok((host, clients))) = once(move || known_clients(&word)).await {
            (self.host, self.clients) = (Some(host), clients);
        }
    }

    /// What to ask the agent about an event.
    fn dial(&self, told: &Told) -> Option<Dial> {
        let from = match (&told.by, told.client) {
            (_, Some(client)) => client.ip(),
            (By::Socket { netns, .. }, None) => self.client(*netns, told.dialled)?,
            _ => return None,
        };
        Some(Dial {
            from,
            to: told.dialled?,
            protocol: Protocol::of_number(told.protocol)?,
        })
    }

    async fn verdict(&self, dial: Dial) -> Option<String> {
        let answer = ask(&self.place.sockets(), &Request::Explain(dial)).await;
        let said: Explanation = serde_json::from_value(answer.ok()?).ok()?;
        // The table may have changed since.
        let is_refused = matches!(said.verdict, FlowVerdict::Refuse | FlowVerdict::Drop);
        is_refused.then_some(said.reason)
    }

    /// Whether a namespace is the node's own.
    pub(super) fn is_host(&self, netns: u64) -> bool {
        self.host == Some(netns)
    }

    /// The address that a client dials this with.
    pub(super) fn client(&self, netns: u64, dialled: Option<SocketAddr>) -> Option<IpAddr> {
        let addresses = self.clients.get(&netns)?;
        match dialled? {
            SocketAddr::V4(_) => addresses.v4.map(IpAddr::V4),
            SocketAddr::V6(_) => addresses.v6.map(IpAddr::V6),
        }
    }

    pub(super) fn pod(&self, address: IpAddr) -> Option<String> {
        self.pods.get(&address).cloned()
    }

    /// The name of a device, otherwise its index.
    pub(super) fn device(&self, ifindex: u32) -> String {
        let name = self.devices.get(&ifindex).cloned();
        name.unwrap_or_else(|| ifindex.to_string())
    }

    pub(super) fn service(&self, told: &Told) -> Option<String> {
        self.services.get(&frontend(told)?).cloned()
    }

    /// In the agent's words.
    pub(super) fn why(&self, told: &Told) -> Option<String> {
        self.why.get(&frontend(told)?).cloned()
    }
}

/// What was dialled, if a Service may have it.
fn frontend(told: &Told) -> Option<Frontend> {
    let is_of_a_service = told.reason != "refuse_unallocated";
    let dialled = told.dialled.filter(|_| is_of_a_service)?;
    Some((dialled, Protocol::of_number(told.protocol)?))
}
