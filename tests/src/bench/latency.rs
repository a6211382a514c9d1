//! The cost of a Service for its clients: the same operations in every universe, in turns.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Noise;
use super::report::Series;
use super::stats;
use super::stats::Random;
use super::universe::Between;
use super::universe::Universe;
use super::worker::Batch;
use super::worker::Op;
use crate::lab::Lab;

const DIRECT: usize = 0;
const CONTROL: usize = 1;
const EMPTY: usize = 2;
const ONE: usize = 3;
const MANY: usize = 4;

/// Names of the measures.
pub const NAMES: [&str; 4] = ["connect", "udp", "getpeername", "non-service"];

/// How often the universes are made anew: the places where the kernel puts a node's sockets and maps change results by
/// a per cent or two, and stay the same as long as the node lives.
const LIVES: usize = 5;

/// Runs the measures of [`NAMES`] that are wanted.
pub fn measure(
    lab: &Lab,
    options: &Options,
    wanted: &[&'static str],
    mut progress: impl FnMut(&str),
) -> Result<Vec<Measure>> {
    let names = [
        "direct".to_owned(),
        "direct again".to_owned(),
        "empty hooks".to_owned(),
        "1 service".to_owned(),
        format!("{} services", options.services()),
    ];
    let mut all = vec![Rounds::new(names); wanted.len()];
    let lives = if options.quick { 1 } else { LIVES };
    for life in 0..lives {
        let of_all = |what: &str| format!("{what}, {} of {lives}", life + 1);
        progress(&of_all("universes"));
        let mut universes = Universes::new(lab, options, life)?;
        for (name, rounds) in wanted.iter().zip(&mut all) {
            progress(&of_all(name));
            let (batch, count) = match *name {
                "connect" => (options.batch(Op::Connect, 300, 1), 15),
                "udp" => (options.batch(Op::Udp, 300, 1), 11),
                "getpeername" => (options.batch(Op::Peer, 50, 100), 11),
                _ => (options.batch(Op::Reconnect, 100, 100), 15),
            };
            universes.run(batch, options.rounds(count), rounds)?;
        }
    }
    let judged = wanted.iter().zip(&all).map(|(name, rounds)| match *name {
        "connect" => connect(rounds),
        "udp" => udp(rounds),
        "getpeername" => peer(rounds),
        _ => non_service(rounds),
    });
    Ok(judged.collect())
}

fn connect(rounds: &Rounds) -> Measure {
    let mut claims = vec![
        rounds.judged(ONE, DIRECT, 1.03),
        rounds.judged(MANY, DIRECT, 1.03),
        rounds.judged(MANY, ONE, 1.02),
    ];
    claims.extend(rounds.told());
    Measure {
        name: "connect",
        title: "TCP connect by ClusterIP",
        method: "connect() of a new TCP socket, timed alone; the handshake runs inside the call. \
                 Ratios of the medians of a round.",
        unit: "us",
        series: rounds.series(1e-3),
        claims,
    }
}

fn udp(rounds: &Rounds) -> Measure {
    let mut claims = vec![
        rounds.judged(ONE, DIRECT, 1.15),
        rounds.judged(MANY, DIRECT, 1.15),
    ];
    claims.extend(rounds.told());
    Measure {
        name: "udp",
        title: "UDP question and answer by ClusterIP, unconnected sockets",
        method: "sendto, recvfrom at the server, sendto, recvfrom at the client: four calls, all of \
                 them through the hooks. Ratios of the medians of a round.",
        unit: "us",
        series: rounds.series(1e-3),
        claims,
    }
}

fn peer(rounds: &Rounds) -> Measure {
    let mut claims = vec![rounds.ratio(ONE, DIRECT), rounds.ratio(MANY, DIRECT)];
    claims.extend(rounds.told());
    Measure {
        name: "getpeername",
        title: "getpeername of a TCP socket",
        method: "Samples are means of 100 calls on one connection. Ratios of the medians of a round.",
        unit: "ns",
        series: rounds.series(1.0),
        claims,
    }
}

fn non_service(rounds: &Rounds) -> Measure {
    const TARGET: f64 = 45.0;
    let noise = Noise {
        floor: rounds.difference(CONTROL, DIRECT).measured.abs(),
        margin: TARGET,
    };
    let over_empty = |index| {
        let claim = rounds.difference(index, EMPTY);
        claim.at_most_above_noise(TARGET, noise)
    };
    Measure {
        name: "non-service",
        title: "Connect to what is no Service",
        method: "connect() of one UDP socket to a Pod, again and again: the cheapest call that runs \
                 the hook. Samples are means of 100 calls; differences of the medians of a round.",
        unit: "ns",
        series: rounds.series(1.0),
        claims: vec![
            over_empty(ONE),
            over_empty(MANY),
            rounds.difference(EMPTY, DIRECT),
            rounds.difference(CONTROL, DIRECT),
        ],
    }
}

/// The universes, which all exist at once.
struct Universes(Vec<Universe>);

impl Universes {
    fn new(lab: &Lab, options: &Options, life: usize) -> Result<Self> {
        let between = [
            ("direct", Between::Nothing),
            ("control", Between::Nothing),
            ("empty", Between::EmptyHooks),
            ("one", Between::Services(1)),
            ("many", Between::Services(options.services())),
        ];
        let universes = between
            .into_iter()
            .map(|(name, between)| Universe::new(lab, &format!("{name}-{life}"), between))
            .collect::<Result<_>>()?;
        // What the agents have just done must end before anything is timed.
        thread::sleep(Duration::from_secs(1));
        Ok(Self(universes))
    }

    /// One batch in each universe, `count` times, in a changing order.
    fn run(&mut self, batch: Batch, count: usize, rounds: &mut Rounds) -> Result<()> {
        let mut random = Random(0);
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        for _ in 0..count {
            // If a universe always followed the same one, it would always find the same caches.
            random.shuffle(&mut order);
            for &index in &order {
                let samples = self.0[index].run(batch)?;
                rounds.medians[index].push(stats::median(&samples));
                rounds.samples[index].extend(samples);
            }
        }
        Ok(())
    }
}

/// Nanoseconds, by universe.
#[derive(Clone)]
struct Rounds {
    names: [String; 5],
    medians: Vec<Vec<f64>>,
    samples: Vec<Vec<f64>>,
}

impl Rounds {
    fn new(names: [String; 5]) -> Self {
        let none = vec![Vec::new(); names.len()];
        Self {
            names,
            medians: none.clone(),
            samples: none,
        }
    }

    fn series(&self, scale: f64) -> Vec<Series> {
        let scaled = |samples: &Vec<f64>| samples.iter().map(|it| it * scale).collect::<Vec<_>>();
        std::iter::zip(&self.names, &self.samples)
            .map(|(name, samples)| Series::new(name, &scaled(samples)))
            .collect()
    }

    fn judged(&self, what: usize, to: usize, target: f64) -> Claim {
        let noise = Noise {
            floor: (self.ratio(CONTROL, DIRECT).measured - 1.0).abs(),
            margin: target - 1.0,
        };
        self.ratio(what, to).at_most_above_noise(target, noise)
    }

    /// Numbers that are reported beside the claims.
    fn told(&self) -> [Claim; 2] {
        [EMPTY, CONTROL].map(|index| self.ratio(index, DIRECT))
    }

    fn ratio(&self, what: usize, to: usize) -> Claim {
        let rounds = self.pairs(what, to).map(|(a, b)| a / b).collect();
        let [what, to] = [what, to].map(|index| &self.names[index]);
        Claim::new(format!("{what} / {to}"), "", rounds)
    }

    fn difference(&self, what: usize, to: usize) -> Claim {
        let rounds = self.pairs(what, to).map(|(a, b)| a - b).collect();
        let [what, to] = [what, to].map(|index| &self.names[index]);
        Claim::new(format!("{what} - {to}"), "ns", rounds)
    }

    fn pairs(&self, what: usize, to: usize) -> impl Iterator<Item = (f64, f64)> {
        let [what, to] = [what, to].map(|index| self.medians[index].iter().copied());
        what.zip(to)
    }
}
