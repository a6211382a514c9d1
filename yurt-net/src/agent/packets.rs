//! The packet path, brought in step with the node's devices in a thread of its own, because putting programs on devices
//! takes the kernel a while.
//!
//! What is loaded goes on without an agent. A device that appears meanwhile is served by the next agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::facts::Facts;
use super::fast::Fast;
use super::problem::{Problem, of_failures};
use super::worker::Worker;
use crate::config::AgentConfig;
use crate::dataplane::DataplaneError;
use crate::dataplane::counts::Counts;
use crate::dataplane::fast::FastMaps;
use crate::dataplane::packet::{PacketOptions, Packets as Kernel};
use crate::dataplane::ports::ReservedPorts;
use crate::edge::fast::FastPath;
use crate::edge::{EdgeImage, EdgeRow, Patterns, compile};
use crate::error::chain;
use crate::observe::status::{PacketPath, Status};

/// The result of an order.
#[derive(Debug, Default)]
struct Work {
    counters: Option<Counts>,
    /// Devices that have their programs.
    served: BTreeSet<u32>,
    /// Their rows, and the maps of the fast path; `None` where nothing is loaded.
    fast: Option<(BTreeMap<u32, EdgeRow>, FastMaps)>,
    failures: Vec<DataplaneError>,
}

/// Serves packets from outside and of Pods, where the operator wants that.
pub(super) struct Packets {
    bpffs: PathBuf,
    options: Option<PacketOptions>,
    devices: Patterns,
    worker: Worker<Kernel, EdgeImage, Result<Work, DataplaneError>>,
    counters: Option<Counts>,
    /// The search for programs whose pins are out of sight is done: once is enough, as an earlier agent left them.
    has_looked: bool,
    served: BTreeSet<u32>,
    fast: Fast,
    mistaken: Problem,
    problem: Problem,
}

impl Packets {
    /// Nothing is loaded before there is a device to serve.
    pub(super) fn start(config: &AgentConfig) -> Self {
        let bpffs = config.place.bpffs.clone();
        let options = config.packets.as_ref().map(|packets| packets.options);
        let place = bpffs.clone();
        let ports = ReservedPorts::recorded_in(&config.place.ledger().in_memory());
        Self {
            options,
            devices: config
                .packets
                .as_ref()
                .map(|packets| packets.devices.clone())
                .unwrap_or_default(),
            worker: Worker::new(move |kernel, wanted| {
                match do_work(kernel, &place, &ports, options, &wanted) {
                    Ok((kernel, work)) => (kernel, Ok(work)),
                    // It is loaded anew at the next order.
                    Err(error) => (None, Err(error)),
                }
            }),
            counters: None,
            has_looked: false,
            served: BTreeSet::new(),
            fast: Fast::start(
                (config.packets.as_ref()).map_or(FastPath::Off, |packets| packets.fast),
            ),
            mistaken: Problem::of("--edge-device"),
            problem: Problem::of("packets are not served as they should be"),
            bpffs,
        }
    }

    /// Whether the agent needs to know the node's devices.
    pub(super) fn is_on(&self) -> bool {
        self.options.is_some()
    }

    /// Whether there is something to do as soon as a table is in force.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_on() || Kernel::is_pinned(&self.bpffs)
    }

    /// Orders the kernel to be brought in step with the devices. Without a list of devices, those that are served stay
    /// so.
    pub(super) fn hear(&mut self, facts: &Facts<'_>) {
        let wanted = match (&self.options, &facts.known.links) {
            (Some(_), Some(links)) => {
                let mistaken = self.devices.mistaken(links);
                self.mistaken.set((!mistaken.is_empty()).then(|| {
                    format!(
                        "{} lead to Pods, and not outside: name other devices with --edge-device, or those of Pods with --device",
                        mistaken.join(", ")
                    )
                }));
                compile(links, &self.devices)
            }
            (Some(_), None) => return,
            (None, _) => EdgeImage::default(),
        };
        if self.is_wanted() || !self.has_looked {
            self.worker.order(wanted);
        }
    }

    /// The devices at which packets are served; `None`: it is not known yet.
    pub(super) fn served(&self) -> Option<&BTreeSet<u32>> {
        let is_known = self.counters.is_some() || !self.is_on();
        is_known.then_some(&self.served)
    }

    /// Waits for the result of an order. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let problem = match self.worker.done().await {
            Ok(Ok(work)) => {
                if work.served != self.served {
                    info!(devices = work.served.len(), "packets are served");
                }
                self.counters = work.counters;
                self.served = work.served;
                self.has_looked = work.failures.is_empty();
                let mut failures = work.failures;
                if let Some((rows, maps)) = work.fast {
                    failures.extend(self.fast.hear(&rows, maps).err());
                }
                of_failures(&failures)
            }
            Ok(Err(error)) => Some(chain(&error)),
            Err(error) => Some(error.to_string()),
        };
        self.problem.set(problem);
    }

    /// On which devices packets are served, what was counted, and what fails.
    pub(super) fn report(&self, facts: &Facts<'_>, status: &mut Status) {
        let counts = self.counters.as_ref().map(Counts::read);
        let counts = counts.and_then(Result::ok).unwrap_or_default();
        let links = facts.known.links.iter().flatten();
        let served = links.filter(|link| self.served.contains(&link.ifindex));
        let (pods, edges): (Vec<_>, Vec<_>) =
            served.partition(|link| self.devices.lead_to_pod(link));
        status.packet_path = self.is_on().then(|| PacketPath {
            devices: edges.into_iter().map(|link| link.name.clone()).collect(),
            pods: pods.len(),
            packets: counts
                .into_iter()
                .map(|(what, count)| (what.to_owned(), count))
                .collect::<BTreeMap<_, _>>(),
            ports: (self.options).map_or_else(String::new, |options| {
                let (first, count) = options.ports;
                format!("{first}-{}", first.saturating_add(count - 1))
            }),
            fast_path: self.fast.report(),
            problem: (self.problem.get().or(self.mistaken.get())).cloned(),
            ..PacketPath::default()
        });
    }
}

fn do_work(
    kernel: Option<Kernel>,
    bpffs: &Path,
    ports: &ReservedPorts,
    options: Option<PacketOptions>,
    wanted: &EdgeImage,
) -> Result<(Option<Kernel>, Work), DataplaneError> {
    let is_on = options.is_some();
    let is_needed = is_on && !wanted.rows.is_empty() || Kernel::is_pinned(bpffs);
    let options = options.unwrap_or(PacketOptions::DEFAULT);
    let mut kernel = match kernel {
        Some(kernel) => kernel,
        None if is_needed => Kernel::load(bpffs, options, None)?,
        None => {
            let mut failures = Kernel::strays(None).mend();
            failures.extend(Kernel::remove_older(bpffs).err());
            if !is_on {
                failures.extend(ports.release().err());
            }
            let work = Work {
                failures,
                ..Work::default()
            };
            return Ok((None, work));
        }
    };
    let kept = kernel.keep_pins();
    if let Ok([_, ..]) = kept.as_deref() {
        warn!(pins = ?kept, "drift: pins of the packet path were removed");
    }
    let l3 = kernel.load_l3(options, None, wanted);
    let mut failures = kernel.bring_to(wanted)?;
    failures.extend(l3.err());
    failures.extend(kept.err());
    failures.extend(match is_on {
        true => ports.keep(options.ports).err(),
        false => ports.release().err(),
    });
    failures.extend(Kernel::strays(Some(&kernel)).mend());
    failures.extend(Kernel::remove_older(bpffs).err());
    // A device that is away for a moment loses no flows: they go on when it is back.
    if !is_on && failures.is_empty() {
        kernel.remove()?;
        return Ok((None, Work::default()));
    }
    let served = kernel.observe()?.complete(wanted);
    let rows = wanted.rows.iter();
    let rows = rows.filter(|(ifindex, _)| served.contains(ifindex));
    let rows = rows.map(|(ifindex, row)| (*ifindex, *row)).collect();
    let work = Work {
        counters: Some(kernel.counters()?),
        fast: Some((rows, kernel.fast()?)),
        served,
        failures,
    };
    Ok((Some(kernel), work))
}
