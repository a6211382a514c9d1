//! A `Status` as Prometheus reads it.
//!
//! Pure. One table says which metrics there are; `docs/metrics.md` says what they mean, and a test compares the two.
//! Where kube-proxy has a metric of the same fact (pkg/proxy/metrics/metrics.go), it has kube-proxy's name. What is
//! written is the text format 0.0.4.
//!
//! No library: the numbers are in `Status` already, and a registry beside it would be a second place for each of them.
#![forbid(unsafe_code)]

mod sample;
mod table;

use std::fmt::Write as _;

use self::sample::{Metric, Samples};
use self::table::METRICS;
use super::status::Status;

/// What `Content-Type` says of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text of all metrics.
pub fn render(status: &Status) -> String {
    let mut text = String::with_capacity(12 << 10);
    for metric in METRICS {
        let Metric {
            name, kind, help, ..
        } = metric;
        // A String takes every write.
        let _infallible = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {}\n",
            kind.name()
        );
        (metric.samples)(
            status,
            &mut Samples {
                metric,
                text: &mut text,
            },
        );
    }
    text
}

#[cfg(test)]
mod tests;
