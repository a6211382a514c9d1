//! Samples, and the text that they are written as.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use crate::observe::status::Status;
use crate::source::kube::Received;
use crate::source::preferred::FollowedSource;
use crate::text;
use crate::tunnel::report::DeviceReport;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows, until the agent starts anew.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts what took at most so long, for several lengths.
    Histogram,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Samples of one name.
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
    pub(super) samples: fn(&Status, &mut Samples<'_>),
}

/// One row of the table.
pub(super) const fn metric(
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

/// Where the samples of one metric go.
pub(super) struct Samples<'a> {
    pub(super) metric: &'static Metric,
    pub(super) text: &'a mut String,
}

impl Samples<'_> {
    /// Adds one, with the values of the metric's labels.
    pub(super) fn put(&mut self, values: &[&str], value: impl Display) {
        let labels = self.metric.labels.iter().copied();
        let labels: Vec<_> = labels.zip(values.iter().copied()).collect();
        self.put_as("", &labels, value);
    }

    pub(super) fn put_some(&mut self, value: Option<impl Display>) {
        if let Some(value) = value {
            self.put(&[], value);
        }
    }

    /// One for each state; 1 for the present one. Without samples for the others, nobody could tell a state that is not
    /// there from a metric that is gone.
    pub(super) fn put_state<const N: usize>(&mut self, states: [&str; N], current: &str) {
        for state in states {
            self.put(&[state], u8::from(state == current));
        }
    }

    /// One for each source. A series must not be written twice, even if a source is given twice.
    pub(super) fn put_sources(
        &mut self,
        status: &Status,
        value: fn(&FollowedSource) -> Option<u64>,
    ) {
        let sources = status.source.sources.iter();
        let sources: BTreeMap<_, _> = sources.rev().map(|of| (&of.source, value(of))).collect();
        for (source, value) in sources {
            if let Some(value) = value {
                self.put(&[source], value);
            }
        }
    }

    pub(super) fn put_devices(&mut self, status: &Status, value: fn(&DeviceReport) -> u64) {
        for device in &status.devices.devices {
            self.put(&[&device.name], value(device));
        }
    }

    pub(super) fn put_received(&mut self, status: &Status, count: fn(&Received) -> u64) {
        for (resource, received) in &status.source.received {
            self.put(&[resource], count(received));
        }
    }

    pub(super) fn put_as(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.metric.name);
        self.text.push_str(suffix);
        for (index, (name, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            // The format has an escape for a newline; other characters that are not plain are shown with escapes of
            // ours.
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
pub(super) fn micros(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Seconds.
pub(super) fn millis(millis: u64) -> f64 {
    micros(millis.saturating_mul(1000))
}
