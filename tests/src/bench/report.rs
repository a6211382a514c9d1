//! Measurements and their judgement: tables for people, JSON for programs.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use serde::Serialize;

use super::stats;
use super::stats::Summary;

/// A measure, in several universes or series.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    /// The name for `--only`, and of the plot.
    pub name: &'static str,
    /// A heading.
    pub title: &'static str,
    /// How it was measured, in a sentence or two.
    pub method: &'static str,
    /// Unit of `series`.
    pub unit: &'static str,
    /// The samples of each universe, summarized.
    pub series: Vec<Series>,
    /// Claims, and other numbers that are reported.
    pub claims: Vec<Claim>,
}

/// The samples of one universe.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its samples.
    pub summary: Summary,
}

impl Series {
    /// Summarizes samples.
    pub fn new(name: impl Into<String>, samples: &[f64]) -> Self {
        Self {
            name: name.into(),
            summary: Summary::of(samples),
        }
    }
}

/// One judged number.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    /// What the number is.
    pub what: String,
    /// Its unit; empty for ratios.
    pub unit: &'static str,
    /// The most that it may be; `None` if nothing is claimed.
    pub target: Option<f64>,
    /// The median of `rounds`.
    pub measured: f64,
    /// 95 % confidence interval of the median.
    pub interval: Option<(f64, f64)>,
    /// The difference between two equal universes, in the unit of the claim.
    pub noise: Option<f64>,
    /// The judgement.
    pub verdict: Verdict,
    /// The number in every round.
    pub rounds: Vec<f64>,
}

/// Judgement of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Within the target.
    Ok,
    /// Beyond it.
    Missed,
    /// The machine was too noisy to tell.
    Void,
    /// No target.
    Info,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Missed => "MISSED",
            Self::Void => "void",
            Self::Info => "",
        })
    }
}

/// The noise floor for a claim, and the margin that it is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    /// The difference between the two direct universes.
    pub floor: f64,
    /// The margin between no cost and the target. The floor may be half of it.
    pub margin: f64,
}

impl Claim {
    /// Claims that the median of `rounds` is at most `target`; without a target it is only reported.
    pub fn new(what: impl Into<String>, unit: &'static str, rounds: Vec<f64>) -> Self {
        let interval = (rounds.len() > 1).then(|| {
            let interval = stats::confidence(&rounds);
            (interval.start, interval.end)
        });
        Self {
            what: what.into(),
            unit,
            target: None,
            measured: stats::median(&rounds),
            interval,
            noise: None,
            verdict: Verdict::Info,
            rounds,
        }
    }

    /// Judges the number by itself.
    pub fn at_most(mut self, target: f64) -> Self {
        self.target = Some(target);
        self.verdict = if self.measured <= target {
            Verdict::Ok
        } else {
            Verdict::Missed
        };
        self
    }

    /// Judges the number, unless the noise exceeds half of the margin.
    pub fn at_most_above_noise(mut self, target: f64, noise: Noise) -> Self {
        self = self.at_most(target);
        self.noise = Some(noise.floor);
        if noise.floor > noise.margin / 2.0 {
            self.verdict = Verdict::Void;
        }
        self
    }
}

/// The machine of the numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Release and version.
    pub kernel: String,
    /// Model name.
    pub cpu: String,
    /// How many.
    pub cpus: usize,
    /// Load average over a minute, before the first measure.
    pub load: f64,
}

impl Machine {
    /// This one.
    pub fn here() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let cpuinfo = read("/proc/cpuinfo")?;
        let models: Vec<&str> = cpuinfo
            .lines()
            .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, model)| model.trim())
            .collect();
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: models.first().copied().unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism().map_or(models.len(), usize::from),
            load: read("/proc/loadavg")?
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or_default(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            cpu,
            cpus,
            load,
        } = self;
        write!(
            f,
            "Linux {kernel}, {cpus} x {cpu}, load {load} at the start"
        )
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Fewer rounds than a run that counts.
    pub quick: bool,
    /// In the order in which they were taken.
    pub measures: Vec<Measure>,
}

impl Report {
    /// How many claims were judged so.
    pub fn count(&self, verdict: Verdict) -> usize {
        let claims = self.measures.iter().flat_map(|measure| &measure.claims);
        claims.filter(|claim| claim.verdict == verdict).count()
    }

    /// Replaces a file by the results.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.title, self.name)?;
        if !self.series.is_empty() {
            let head = [self.unit, "min", "p50", "p99", "samples"].map(str::to_owned);
            let rows = self.series.iter().map(|series| {
                let Summary {
                    min,
                    p50,
                    p99,
                    samples,
                } = series.summary;
                let [min, p50, p99] = [min, p50, p99].map(number);
                [series.name.clone(), min, p50, p99, samples.to_string()]
            });
            table(f, head, rows.collect())?;
            writeln!(f)?;
        }
        let head = ["", "target", "measured", "95 % CI", "noise", "verdict"].map(str::to_owned);
        let rows = self.claims.iter().map(|claim| {
            let unit = claim.unit;
            let with_unit = |value: f64| match unit {
                "" => format!("{value:.3}"),
                unit => format!("{} {unit}", number(value)),
            };
            let bare = |value: f64| match unit {
                "" => format!("{value:.3}"),
                _ => number(value),
            };
            [
                claim.what.clone(),
                claim
                    .target
                    .map_or_else(String::new, |target| format!("<= {}", with_unit(target))),
                with_unit(claim.measured),
                claim.interval.map_or_else(String::new, |(from, to)| {
                    format!("{} .. {}", bare(from), bare(to))
                }),
                claim
                    .noise
                    .map_or_else(String::new, |noise| format!("+-{}", bare(noise))),
                claim.verdict.to_string(),
            ]
        });
        table(f, head, rows.collect())
    }
}

/// About four digits, whatever the size.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1000.0 && value.fract() == 0.0 => grouped(value),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The first column to the left, all others to the right.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    head: [String; N],
    rows: Vec<[String; N]>,
) -> fmt::Result {
    let lines: Vec<_> = std::iter::once(head).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or_default()
    });
    for line in &lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            text += &match column {
                0 => format!("  {cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_judged_by_its_median() {
        let claim = |rounds: &[f64]| Claim::new("x", "", rounds.to_vec()).at_most(1.03);
        assert_eq!(claim(&[1.0, 1.01, 9.0]).verdict, Verdict::Ok);
        assert_eq!(claim(&[1.0, 1.04, 1.05]).verdict, Verdict::Missed);
    }

    #[test]
    fn noise_beyond_half_of_the_margin_voids_the_judgement() {
        let claim = |floor| {
            let noise = Noise {
                floor,
                margin: 0.03,
            };
            Claim::new("x", "", vec![1.01]).at_most_above_noise(1.03, noise)
        };
        assert_eq!(claim(0.014).verdict, Verdict::Ok);
        assert_eq!(claim(0.016).verdict, Verdict::Void);
    }

    #[test]
    fn a_measure_reads_as_a_table() {
        let measure = Measure {
            name: "connect",
            title: "TCP connect",
            method: "",
            unit: "us",
            series: vec![Series::new("direct", &[17.0, 18.0, 19.0])],
            claims: vec![
                Claim::new("1 service / direct", "", vec![1.01, 1.02]).at_most(1.03),
                Claim::new("flips", "", vec![10_000.0]),
            ],
        };
        let expected = "\
TCP connect (connect)
  us         min    p50    p99  samples
  direct  17.00  18.00  18.98        3

                      target   measured         95 % CI  noise  verdict
  1 service / direct  <= 1.030      1.015  1.010 .. 1.020              ok
  flips                         10000.000
";
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&measure.to_string()), squeeze(expected));
    }
}
