//! From a compiled table to the kernel's maps: a whole table, one change to it, and a table that is already there.

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::ensure;
use yurt_net::dataplane::Dataplane;
use yurt_net::dataplane::attach::cleanup::cleanup;
use yurt_net::plan::MapImage;
use yurt_net::plan::plan;
use yurt_net::table::ServiceTable;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Series;
use super::stats::Summary;
use super::tables;
use crate::lab::Lab;
use crate::lab::Node;

/// Name of the measure.
pub const NAME: &str = "publish";

/// Runs the measure on a node of its own.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let node = lab.node(NAME)?;
    let count = options.services();
    let services = tables::services(count);
    let mut fill_times = Vec::new();
    let mut adopt_times = Vec::new();
    let mut series = Vec::new();
    for are_service_cidrs in [true, false] {
        let table = tables::table(services.clone(), are_service_cidrs)?;
        let (mut fills, mut adopts, mut plans) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=options.rounds(21) {
            let times = fill(&node, &table)?;
            // The first round warms up the allocator.
            if round > 0 {
                plans.push(millis(times.plan));
                fills.push(millis(times.plan + times.apply));
                adopts.push(millis(times.adopt));
            }
        }
        let known = if are_service_cidrs {
            "known"
        } else {
            "unknown"
        };
        let name = |what| format!("{what}, service CIDR {known}, ms");
        series.push(Series::new(name("full table"), &fills));
        series.push(Series::new(name("  of which planning"), &plans));
        series.push(Series::new(name("adoption of an equal table"), &adopts));
        fill_times.push(fills);
        adopt_times.push(adopts);
    }
    let changes = changes(&node, &tables::table(services, true)?, options)?;
    series.push(Series::new("one changed service, us", &changes));
    let summary = Summary::of(&changes);
    let mut claims = Vec::new();
    for (known, fills) in ["known", "unknown"].into_iter().zip(fill_times) {
        let what = format!("{count} services, service CIDR {known}");
        claims.push(Claim::new(what, "ms", fills).at_most(25.0));
    }
    let chunks = changes.chunks(changes.len().div_ceil(20).max(1));
    let medians = chunks.map(|chunk| Summary::of(chunk).p50).collect();
    let what = format!("one changed of {count}, p50");
    claims.push(Claim::new(what, "us", medians).at_most(100.0));
    let what = format!("one changed of {count}, p99");
    claims.push(Claim::new(what, "us", vec![summary.p99]));
    for (known, adopts) in ["known", "unknown"].into_iter().zip(adopt_times) {
        let what = format!("adoption, service CIDR {known}");
        claims.push(Claim::new(what, "ms", adopts));
    }
    Ok(Measure {
        name: NAME,
        title: "From a compiled table to the maps",
        method: "plan and apply on the kernel's maps, in the bench's process; two endpoints a service. \
                 Full: fresh maps. Adoption: read the maps of an equal table, plan nothing. A service \
                 CIDR that is unknown costs each ClusterIP a row of its own.",
        unit: "",
        series,
        claims,
    })
}

struct Times {
    plan: Duration,
    apply: Duration,
    adopt: Duration,
}

/// Fills fresh maps.
fn fill(node: &Node, table: &ServiceTable) -> Result<Times> {
    cleanup(&node.bpffs())?;
    let mut dataplane = tables::dataplane(node, tables::CAPACITY)?;
    let mut image = dataplane.observe()?;
    let start = Instant::now();
    let writes = plan(table, &mut image);
    let planned = start.elapsed();
    dataplane.apply(&writes)?;
    let applied = start.elapsed();
    ensure!(writes.refused.is_empty(), "the table does not fit");
    // The clean-up of both sides is not timed.
    drop(writes);
    drop(image);

    let start = Instant::now();
    let mut image = dataplane.observe()?;
    let writes = plan(table, &mut image);
    let adopted = start.elapsed();
    ensure!(writes.ops.is_empty(), "an equal table was written again");
    Ok(Times {
        plan: planned,
        apply: applied - planned,
        adopt: adopted,
    })
}

/// Microseconds of one changed service after another.
fn changes(node: &Node, table: &ServiceTable, options: &Options) -> Result<Vec<f64>> {
    cleanup(&node.bpffs())?;
    let mut dataplane = tables::dataplane(node, tables::CAPACITY)?;
    let mut image = MapImage::empty(tables::CAPACITY);
    dataplane.apply(&plan(table, &mut image))?;
    dataplane.activate()?;
    let count = table.services.len();
    let mut table = table.clone();
    let mut times = Vec::new();
    for version in 1..=options.rounds(2000) {
        let index = version * 7919 % count;
        // As in the compiler, what did not change is the same object.
        let mut next = table.clone();
        next.services[index] = tables::service(index, version);
        let start = Instant::now();
        let writes = plan(&next, &mut image);
        dataplane.apply(&writes)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        ensure!(writes.ops.len() >= 2, "nothing was published");
        table = next;
    }
    drop(dataplane);
    cleanup(&node.bpffs())?;
    Ok(times)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
