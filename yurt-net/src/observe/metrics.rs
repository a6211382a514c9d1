//! A `Status` as Prometheus reads it.
//!
//! Pure. One table says which metrics there are; `docs/metrics.md` says what they mean, and a test compares the two. Where
//! kube-proxy has a metric of the same fact (pkg/proxy/metrics/metrics.go), it has kube-proxy's name. What is written is the
//! text format 0.0.4.
//!
//! No library: the numbers are in `Status` already, and a registry beside it would be a second place for each of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use crate::source::kube::Received;
use crate::source::preferred::FollowedSource;
use crate::status::Status;
use crate::text;
use crate::tunnel::report::DeviceReport;

mod table;

use self::table::METRICS;

/// What `Content-Type` says of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It only grows, until the agent starts anew.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How many were at most so long.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Samples of one name.
struct Metric {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    samples: fn(&Status, &mut Samples<'_>),
}

/// One row of the table.
const fn metric(
    kind: Kind,
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: fn(&Status, &mut Samples<'_>),
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
        samples,
    }
}

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

/// Where the samples of one metric go.
struct Samples<'a> {
    metric: &'static Metric,
    text: &'a mut String,
}

impl Samples<'_> {
    /// Adds one, with the values of the metric's labels.
    fn put(&mut self, values: &[&str], value: impl Display) {
        let labels = self.metric.labels.iter().copied();
        let labels: Vec<_> = labels.zip(values.iter().copied()).collect();
        self.put_as("", &labels, value);
    }

    fn put_some(&mut self, value: Option<impl Display>) {
        if let Some(value) = value {
            self.put(&[], value);
        }
    }

    /// One for each state, 1 for that which is: a state that has no sample cannot be told from a metric that is gone.
    fn put_state<const N: usize>(&mut self, states: [&str; N], current: &str) {
        for state in states {
            self.put(&[state], u8::from(state == current));
        }
    }

    /// One for each source. A series must not be there twice, though a source may be.
    fn put_sources(&mut self, status: &Status, value: fn(&FollowedSource) -> Option<u64>) {
        let sources = status.source.sources.iter();
        let sources: BTreeMap<_, _> = sources.rev().map(|of| (&of.source, value(of))).collect();
        for (source, value) in sources {
            if let Some(value) = value {
                self.put(&[source], value);
            }
        }
    }

    fn put_devices(&mut self, status: &Status, value: fn(&DeviceReport) -> u64) {
        for device in &status.devices.devices {
            self.put(&[&device.name], value(device));
        }
    }

    fn put_received(&mut self, status: &Status, count: fn(&Received) -> u64) {
        for (resource, received) in &status.source.received {
            self.put(&[resource], count(received));
        }
    }

    fn put_as(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.metric.name);
        self.text.push_str(suffix);
        for (index, (name, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            // The format has an escape for a newline; what else is not plain is shown as ours.
            for part in value.split_inclusive('\n') {
                let (part, newline) = match part.strip_suffix('\n') {
                    Some(part) => (part, "\\n"),
                    None => (part, ""),
                };
                let shown = text::name(part).to_string();
                let shown = shown.replace('\\', "\\\\").replace('"', "\\\"");
                self.text.push_str(&shown);
                self.text.push_str(newline);
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _infallible = writeln!(self.text, " {value}");
    }
}

/// Seconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "a number of Prometheus is one of 53 bits"
)]
fn micros(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Seconds.
fn millis(millis: u64) -> f64 {
    micros(millis.saturating_mul(1000))
}

#[cfg(test)]
mod tests;
