//! What is known of a Service that was asked for beside what the kernel has: which endpoints take no traffic, and why,
//! and where the kernel has something else than it should.

use serde::Serialize;

use super::row::{Clients, Row};
use crate::explain::services::{Expected, LeftOut};
use crate::text;

/// Of a Service that was asked for, by the agent or by its checkpoint.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    /// Endpoints that take no traffic of some frontends at least.
    left_out: Vec<LeftOut>,
    /// How many more there are.
    more_left_out: usize,
    /// Why it has no endpoint at all.
    idle: Vec<String>,
    /// Where the kernel has something else than it should.
    pub(super) differences: Vec<String>,
}

/// So many differences are told.
const TOLD: usize = 20;

impl Asked {
    pub(super) fn new(rows: &[Row], expected: Expected) -> Self {
        let differences = differences(rows, &expected);
        Self {
            left_out: expected.left_out,
            more_left_out: expected.more_left_out,
            idle: expected.idle,
            differences,
        }
    }

    pub(super) fn lines(&self) -> String {
        let mut lines = String::new();
        for LeftOut {
            service,
            protocol,
            endpoint,
            reason,
        } in &self.left_out
        {
            let (_, port) = service.split_once(':').unwrap_or_default();
            let of = if port.is_empty() {
                String::new()
            } else {
                format!(" of port {port}")
            };
            let line = format!("left out {endpoint}/{protocol}{of}: {reason}");
            lines += &format!("{}\n", text::message(&line));
        }
        if self.more_left_out > 0 {
            lines += &format!("and {} more are left out\n", self.more_left_out);
        }
        for idle in &self.idle {
            lines += &format!("no endpoint: {}\n", text::message(idle));
        }
        for difference in &self.differences {
            lines += &format!("differs: {}\n", text::message(difference));
        }
        lines
    }
}

/// Where the kernel has something else than it should: an agent may be about to write it.
fn differences(rows: &[Row], expected: &Expected) -> Vec<String> {
    let mut told = Vec::new();
    for row in rows {
        let (at, protocol) = (row.frontend, row.protocol);
        let whom = row.clients.word();
        let has = fate(row.verdict.word(), row.endpoints.len());
        told.extend(match expected.frontend(at, protocol, row.scope()) {
            None => Some(format!(
                "the kernel has {at}/{protocol} for clients {whom}, and it should have no such frontend"
            )),
            Some(one) => {
                let should = fate(&one.verdict.to_string(), one.endpoints);
                (should != has).then(|| {
                    format!("the kernel has {at}/{protocol} for clients {whom} to {has}, and it should {should}")
                })
            }
        });
    }
    for one in &expected.frontends {
        let (at, protocol, scope) = (one.frontend, one.protocol, one.scope);
        let is_it = |row: &Row| {
            let is_scope = row.scope() == scope || row.clients == Clients::All;
            (row.frontend, row.protocol) == (at, protocol) && is_scope
        };
        if !rows.iter().any(is_it) {
            told.push(format!(
                "the kernel has no {at}/{protocol} for {scope} clients, and it should {}",
                fate(&one.verdict.to_string(), one.endpoints)
            ));
        }
    }
    if let Some(more) = told.len().checked_sub(TOLD).filter(|more| *more > 0) {
        told.truncate(TOLD);
        told.push(format!("and {more} more"));
    }
    told
}

fn fate(verdict: &str, endpoints: usize) -> String {
    match endpoints {
        0 => verdict.to_owned(),
        1 => format!("{verdict} to 1 endpoint"),
        many => format!("{verdict} to {many} endpoints"),
    }
}
