//! Order statistics and the bootstrap. The unit is a round, because the samples of one round are not independent.

use std::ops::Range;

const RESAMPLES: usize = 10_000;

/// The shape of a series of samples.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// All but one in a hundred samples are below this.
    pub p99: f64,
    /// How many there were.
    pub samples: usize,
}

impl Summary {
    /// Summarizes a series; all zero if it is empty.
    pub fn of(samples: &[f64]) -> Self {
        let sorted = sorted(samples);
        Self {
            min: quantile(&sorted, 0.0),
            p50: quantile(&sorted, 0.5),
            p99: quantile(&sorted, 0.99),
            samples: sorted.len(),
        }
    }
}

/// The median of a series; 0 if it is empty.
pub fn median(samples: &[f64]) -> f64 {
    quantile(&sorted(samples), 0.5)
}

/// The 95 % confidence interval of the median, by resampling. The same samples give the same interval.
pub fn confidence(samples: &[f64]) -> Range<f64> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let resample: Vec<f64> = samples
                .iter()
                .map(|_| samples[random.below(samples.len())])
                .collect();
            median(&resample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    quantile(&medians, 0.025)..quantile(&medians, 0.975)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Interpolates between the two samples around the wanted one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index into a series that fits into memory"
)]
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let place = at * last as f64;
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

/// Splitmix64: good enough to choose samples and pauses, and always the same sequence.
pub struct Random(pub u64);

impl Random {
    /// Shuffles a series.
    pub fn shuffle<T>(&mut self, series: &mut [T]) {
        for end in (1..series.len()).rev() {
            series.swap(end, self.below(end + 1));
        }
    }

    /// A number below `bound`; 0 if that is 0.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the high half of a product of 64 bits each is below the bound"
    )]
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(mixed ^ (mixed >> 31)) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        let Summary { min, p50, p99, .. } = Summary::of(&samples);
        assert_eq!((min, p50), (1.0, 2.5));
        assert!((3.9..4.0).contains(&p99), "{p99}");
        assert_eq!(Summary::of(&[]).p50, 0.0);
    }

    #[test]
    fn the_interval_holds_the_median_and_shrinks_with_the_spread() {
        let wide: Vec<f64> = (0..21).map(|n| 1.0 + f64::from(n) / 100.0).collect();
        let narrow: Vec<f64> = (0..21).map(|n| 1.0 + f64::from(n) / 1000.0).collect();
        let (wide_ci, narrow_ci) = (confidence(&wide), confidence(&narrow));
        assert!(wide_ci.contains(&median(&wide)), "{wide_ci:?}");
        assert!(narrow_ci.end - narrow_ci.start < wide_ci.end - wide_ci.start);
        assert_eq!(wide_ci, confidence(&wide));
    }
}
