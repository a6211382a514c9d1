//! Translation, brought in step with the ledger in a thread of its own, because programs on devices and routes take the
//! kernel a while. Only the agent translates: a Pod that a plugin has just made appears with its new address until the
//! agent learns of it, some milliseconds later. Translation goes on without an agent. An agent that does not know
//! enough leaves it as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::complaints::Complaints;
use super::facts::Facts;
use super::problem::{Problem, of_failures};
use super::worker::Worker;
use crate::config::AgentConfig;
use crate::dataplane::counts::Counts;
use crate::dataplane::pod::translate::{Translate, TranslateError};
use crate::device::{Complaint, Link};
use crate::error::chain;
use crate::node::routes::Routes;
use crate::observe::status::Status;
use crate::pods::translate::{Candidate, Policy, Surroundings, TranslateImage, Wish, compile};

/// One order: the inputs of a judgement.
#[derive(Debug)]
struct Order {
    pods: Vec<Candidate>,
    owners: BTreeMap<IpAddr, String>,
    links: Vec<Link>,
    local: BTreeSet<IpAddr>,
    policy: Policy,
}

/// The result of an order.
#[derive(Debug, Default)]
struct Work {
    counters: Option<Counts>,
    translated: BTreeMap<u32, Vec<IpAddr>>,
    complaints: Vec<Complaint>,
    failures: Vec<TranslateError>,
}

/// Translates the Pods of this node, as the operator and they have decided.
pub(super) struct Translating {
    bpffs: PathBuf,
    policy: Policy,
    worker: Worker<Translate, Order, Result<Work, TranslateError>>,
    counters: Option<Counts>,
    /// The search for programs whose pins are out of sight is done: once is enough, as an earlier agent left them.
    has_looked: bool,
    /// The addresses that Pods appear with, by device.
    translated: BTreeMap<u32, Vec<IpAddr>>,
    /// Annotations that cannot be read, and addresses that cannot be kept.
    misread: Complaints,
    refused: Complaints,
    problem: Problem,
}

impl Translating {
    /// Nothing is loaded before there is a Pod to translate.
    pub(super) fn start(config: &AgentConfig) -> Self {
        let bpffs = config.place.bpffs.clone();
        Self {
            bpffs: bpffs.clone(),
            policy: config.translation.clone(),
            worker: Worker::new(move |translate, order| {
                match do_work(translate, &bpffs, &order) {
                    Ok((translate, work)) => (translate, Ok(work)),
                    // It is loaded anew at the next order.
                    Err(error) => (None, Err(error)),
                }
            }),
            counters: None,
            has_looked: false,
            translated: BTreeMap::new(),
            misread: Complaints::about("translation"),
            refused: Complaints::about("translation"),
            problem: Problem::of("Pods are not translated as they should be"),
        }
    }

    /// Orders the kernel to be brought in step with the ledger and the Pods. Without a list of devices nothing new is
    /// translated, and what is translated stays so.
    pub(super) fn hear(&mut self, facts: &Facts<'_>) {
        let known = facts.known;
        let Some(links) = &known.links else {
            return;
        };
        let members = facts.members(&self.policy);
        let (pods, misread) = members.candidates();
        self.misread.set(misread);
        let is_wanted = |pod: &Candidate| match pod.wish {
            Wish::Pods(wish) => wish,
            Wish::Nodes | Wish::Unknown => self.policy.is_on,
        };
        let is_needed = pods.iter().any(is_wanted)
            || !self.worker.is_idle()
            || !self.has_looked
            || Translate::is_pinned(&self.bpffs);
        if !is_needed {
            self.refused.set(Vec::new());
            self.problem.set(None);
            return;
        }
        self.worker.order(Order {
            pods,
            owners: members.owners(),
            links: links.clone(),
            local: known.view.local_addresses.clone().unwrap_or_default(),
            policy: self.policy.clone(),
        });
    }

    /// Waits for the result of an order. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let problem = match self.worker.done().await {
            Ok(Ok(work)) => {
                if work.translated.len() != self.translated.len() {
                    let pods = work.translated.len();
                    info!(pods, "Pods appear with addresses that they had");
                }
                self.counters = work.counters;
                self.translated = work.translated;
                self.refused.set(work.complaints);
                self.has_looked = work.failures.is_empty();
                of_failures(&work.failures)
            }
            Ok(Err(error)) => Some(chain(&error)),
            Err(error) => Some(error.to_string()),
        };
        self.problem.set(problem);
    }

    /// Which Pods appear with earlier addresses, why others do not, and what fails.
    pub(super) fn report(&self, facts: &Facts<'_>, status: &mut Status) {
        let retention = &mut status.retention;
        let counts = self.counters.as_ref().map(Counts::read);
        let counts = counts.and_then(Result::ok).unwrap_or_default();
        let counts = counts.into_iter();
        retention.translated_packets = counts
            .map(|(what, count)| (what.to_owned(), count))
            .collect();
        for (entry, pod) in facts.known.entries().values().zip(&mut retention.pods) {
            let translated = entry
                .host
                .and_then(|host| self.translated.get(&host.ifindex));
            pod.translated = translated.cloned().unwrap_or_default();
        }
        retention.alarms.extend(self.problem.get().cloned());
        let complaints = self.misread.alarms().chain(self.refused.alarms());
        retention.alarms.extend(complaints);
    }
}

fn do_work(
    translate: Option<Translate>,
    bpffs: &Path,
    order: &Order,
) -> Result<(Option<Translate>, Work), TranslateError> {
    let routes = Routes::open()?;
    let known = routes.known()?;
    // Devices that are translated through hidden pins count as translated: they are taken over, and stay translated.
    let hidden = Translate::strays(translate.as_ref()).devices();
    let judge = |observed: &TranslateImage| {
        let node = Surroundings {
            owners: &order.owners,
            links: &order.links,
            local: &order.local,
            routes: &known,
            translated: &observed.rows.keys().chain(&hidden).copied().collect(),
        };
        compile(&order.pods, node, &order.policy)
    };
    let mut translate = match translate {
        Some(translate) => translate,
        None if Translate::is_pinned(bpffs) => Translate::load(bpffs, None)?,
        None => {
            // If all Pods are refused, nothing is loaded.
            let (wanted, complaints) = judge(&TranslateImage::default());
            if wanted.rows.is_empty() {
                let strays = Translate::strays(None).mend();
                routes.remove_ours()?;
                let work = Work {
                    complaints,
                    failures: strays.into_iter().map(TranslateError::from).collect(),
                    ..Work::default()
                };
                return Ok((None, work));
            }
            Translate::load(bpffs, None)?
        }
    };
    // A failure is reported and stops nothing: without the programs that are held, no Pod would be translated.
    let kept = translate.keep_pins();
    if let Ok([_, ..]) = kept.as_deref() {
        warn!(pins = ?kept, "drift: pins of translation were removed");
    }
    let observed = translate.observe(&routes)?;
    let (wanted, complaints) = judge(&observed);
    let mut failures = translate.apply(&observed, &wanted, &routes);
    let unready: BTreeSet<u32> = match failures.is_empty() {
        true => BTreeSet::new(),
        // Where our programs cannot be attached, older ones serve better than none.
        false => wanted.rows.keys().copied().collect(),
    };
    let strays = Translate::strays(Some(&translate));
    let strays = strays.spare(|ifindex| unready.contains(&ifindex)).mend();
    let more = kept.err().into_iter().chain(strays);
    failures.extend(more.map(TranslateError::from));
    let is_nothing_left = wanted == TranslateImage::default() && failures.is_empty();
    let mut work = Work {
        complaints,
        failures,
        ..Work::default()
    };
    if is_nothing_left {
        translate.remove(bpffs)?;
        return Ok((None, work));
    }
    let now = translate.observe(&routes)?;
    let rows = now
        .rows
        .iter()
        .filter(|(ifindex, _)| now.is_complete(**ifindex));
    work.translated = rows
        .map(|(ifindex, row)| (*ifindex, row.promised().collect()))
        .collect();
    work.counters = Some(translate.counters()?);
    Ok((Some(translate), work))
}
