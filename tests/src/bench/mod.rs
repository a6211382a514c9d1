//! The bench: speed and size, as ratios and bounds that are measured in one run.
//!
//! | measure | compares |
//! |---|---|
//! | [`latency`] | what clients wait for, between [universes](universe) that all exist at once |
//! | [`packets`] | what clients outside wait for by the packet path, by forwarding alone, and by kube-proxy's kind of rules |
//! | [`flips`] | who answers while endpoint sets are exchanged, with who may |
//! | [`publish`] | the time from a compiled table to the maps, with a bound |
//! | [`memory`] | an agent's memory, with a bound |
//! | [`retain`] | an IPAM plugin with host-local's, by turns; with bounds |
//! | [`guard`] | the guard's program on frames, over one that does nothing, with a bound |
//! | [`translate`] | the same of translation's, with a bound |
//! | [`reboot`] | an agent after a reboot without the cloud, with a bound |
//! | [`refusals`] | refused connects while somebody listens to the programs, with those while nobody does |
//! | [`vtep`] | the time until a vxlan device that is made again has its MAC, with a bound |
//! | [`kube`] | an agent that follows an apiserver: start, events, memory, processor time, boot; with bounds |
//! | [`tenants`] | what others wait for beside a hundred objects of 1.5 MB; with bounds |
//!
//! Microseconds differ from machine to machine and from minute to minute; ratios of things that are measured in turns
//! hardly do. Two universes without any hook show how far to trust them.

pub mod bpf;
pub mod flips;
pub mod frame;
pub mod guard;
pub mod kube;
pub mod latency;
pub mod memory;
pub mod packets;
pub mod plot;
pub mod publish;
pub mod reboot;
pub mod refusals;
pub mod report;
pub mod retain;
pub mod sockets;
pub mod stats;
pub mod tables;
pub mod tenants;
pub mod translate;
pub mod universe;
pub mod vtep;
pub mod worker;

use anyhow::Result;

use crate::lab::Lab;
use report::Measure;
use worker::Batch;
use worker::Op;

/// The extent of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A smoke test: numbers, but none that count.
    pub quick: bool,
    /// Names of measures; all when empty.
    pub only: Vec<String>,
}

impl Options {
    /// Whether a measure is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn rounds(&self, full: usize) -> usize {
        if self.quick {
            full.div_ceil(50).max(3)
        } else {
            full
        }
    }

    fn services(&self) -> usize {
        if self.quick { 200 } else { 10_000 }
    }

    fn batch(&self, op: Op, samples: u32, repeats: u32) -> Batch {
        Batch {
            op,
            warm_ups: 20,
            samples: if self.quick { samples / 10 } else { samples },
            repeats,
        }
    }
}

/// The names of all measures.
pub fn names() -> impl Iterator<Item = &'static str> {
    let others = [
        flips::NAME,
        publish::NAME,
        memory::NAME,
        retain::NAME,
        guard::NAME,
        translate::NAME,
        reboot::NAME,
        vtep::NAME,
        refusals::NAME,
        kube::NAME,
        tenants::NAME,
    ];
    let by_turns = latency::NAMES.into_iter().chain(packets::NAMES);
    by_turns.chain(others)
}

/// Takes every measure that is wanted, and hands each one over when it is done. `progress` is told what comes next.
pub fn run(
    lab: &Lab,
    options: &Options,
    mut progress: impl FnMut(&str),
    mut done: impl FnMut(Measure) -> Result<()>,
) -> Result<()> {
    let latencies: Vec<_> = latency::NAMES
        .into_iter()
        .filter(|name| options.wants(name))
        .collect();
    if !latencies.is_empty() {
        for measure in latency::measure(lab, options, &latencies, &mut progress)? {
            done(measure)?;
        }
    }
    let outside = packets::NAMES.into_iter();
    let outside: Vec<_> = outside.filter(|name| options.wants(name)).collect();
    if !outside.is_empty() {
        for measure in packets::measure(lab, options, &outside, &mut progress)? {
            done(measure)?;
        }
    }
    type Take = fn(&Lab, &Options) -> Result<Measure>;
    let others: [(&str, Take); 11] = [
        (flips::NAME, flips::measure),
        (publish::NAME, publish::measure),
        (memory::NAME, memory::measure),
        (retain::NAME, retain::measure),
        (guard::NAME, guard::measure),
        (translate::NAME, translate::measure),
        (reboot::NAME, reboot::measure),
        (vtep::NAME, vtep::measure),
        (refusals::NAME, refusals::measure),
        (kube::NAME, kube::measure),
        (tenants::NAME, tenants::measure),
    ];
    for (name, take) in others {
        if options.wants(name) {
            progress(name);
            done(take(lab, options)?)?;
        }
    }
    Ok(())
}
