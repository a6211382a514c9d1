//! Durations, counted by their length.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds: 1, 2, 4 ... 16384 ms, as kube-proxy has them (pkg/proxy/metrics/metrics.go).
const BOUNDS: u32 = 15;

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Durations {
    /// How many were at most 1 ms, then longer and at most 2 ms, and so on; the last count is of those over 16384 ms.
    pub counts: [u64; BOUNDS as usize + 1],
    /// Their sum, in microseconds.
    pub sum_us: u64,
    /// The latest one, in microseconds.
    pub last_us: u64,
}

impl Durations {
    /// Counts a duration.
    pub fn record(&mut self, took: Duration) {
        self.last_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_us = self.sum_us.saturating_add(self.last_us);
        let bucket = (0..BOUNDS).take_while(|power| self.last_us > 1000 << power);
        self.counts[bucket.count()] += 1;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bound in seconds, and how many were at most that long; all others are longer than the last bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0;
        (0..BOUNDS).zip(self.counts).map(move |(power, count)| {
            sum += count;
            (f64::from(1 << power) / 1000.0, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_below_the_first_bound_that_it_does_not_exceed() {
        let mut durations = Durations::default();
        for us in [0, 1000, 1001, 2000, 16_384_000, 16_384_001] {
            durations.record(Duration::from_micros(us));
        }
        let cumulative: Vec<_> = durations.cumulative().collect();
        assert_eq!(cumulative[..3], [(0.001, 2), (0.002, 4), (0.004, 4)]);
        assert_eq!(cumulative[14], (16.384, 5));
        assert_eq!((durations.count(), cumulative.len()), (6, 15));
        assert_eq!(
            (durations.sum_us, durations.last_us),
            (32_772_002, 16_384_001)
        );
    }

    #[test]
    fn a_duration_without_end_is_one_all_the_same() {
        let mut durations = Durations::default();
        durations.record(Duration::MAX);
        durations.record(Duration::MAX);
        assert_eq!((durations.count(), durations.sum_us), (2, u64::MAX));
    }
}
