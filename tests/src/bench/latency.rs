//! What a Service costs its clients: the same operations in every universe, by turns.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Noise;
use super::report::Series;
use super::stats;
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

/// The universes, which all exist at once.
pub struct Universes {
    names: [String; 5],
    universes: Vec<Universe>,
}

impl Universes {
    /// Makes them.
    pub fn new(lab: &Lab, options: &Options) -> Result<Self> {
        let many = options.services();
        let between = [
            ("direct", Between::Nothing),
            ("control", Between::Nothing),
            ("empty", Between::EmptyHooks),
            ("one", Between::Services(1)),
            ("many", Between::Services(many)),
        ];
        let universes = between
            .into_iter()
            .map(|(name, between)| Universe::new(lab, name, between))
            .collect::<Result<_>>()?;
        // What the agents have just done is over before anything is timed.
        thread::sleep(Duration::from_secs(1));
        Ok(Self {
            names: [
                "direct".to_owned(),
                "direct again".to_owned(),
                "empty hooks".to_owned(),
                "1 service".to_owned(),
                format!("{many} services"),
            ],
            universes,
        })
    }

    /// Takes one of [`NAMES`].
    pub fn measure(&mut self, name: &str, options: &Options) -> Result<Measure> {
        match name {
            "connect" => self.connect(options),
            "udp" => self.udp(options),
            "getpeername" => self.peer(options),
            _ => self.non_service(options),
        }
    }

    fn connect(&mut self, options: &Options) -> Result<Measure> {
        let batch = options.batch(Op::Connect, 300, 1);
        let rounds = self.rounds(batch, options.rounds(31))?;
        let mut claims = vec![
            rounds.judged(self, ONE, DIRECT, 1.03),
            rounds.judged(self, MANY, DIRECT, 1.03),
            rounds.judged(self, MANY, ONE, 1.02),
        ];
        claims.extend(rounds.told(self));
        Ok(Measure {
            name: "connect",
            title: "TCP connect by ClusterIP",
            method: "connect() of a new TCP socket, timed alone; the handshake runs inside the call. \
                     Ratios of the medians of a round.",
            unit: "us",
            series: rounds.series(self, 1e-3),
            claims,
        })
    }

    fn udp(&mut self, options: &Options) -> Result<Measure> {
        let rounds = self.rounds(options.batch(Op::Udp, 300, 1), options.rounds(31))?;
        let mut claims = vec![
            rounds.judged(self, ONE, DIRECT, 1.15),
            rounds.judged(self, MANY, DIRECT, 1.15),
        ];
        claims.extend(rounds.told(self));
        Ok(Measure {
            name: "udp",
            title: "UDP question and answer by ClusterIP, unconnected sockets",
            method: "sendto, recvfrom at the server, sendto, recvfrom at the client: four calls, all \
                     of them through the hooks. Ratios of the medians of a round.",
            unit: "us",
            series: rounds.series(self, 1e-3),
            claims,
        })
    }

    fn peer(&mut self, options: &Options) -> Result<Measure> {
        let rounds = self.rounds(options.batch(Op::Peer, 50, 100), options.rounds(15))?;
        let mut claims = vec![
            rounds.ratio(self, ONE, DIRECT),
            rounds.ratio(self, MANY, DIRECT),
        ];
        claims.extend(rounds.told(self));
        Ok(Measure {
            name: "getpeername",
            title: "getpeername of a TCP socket",
            method: "Samples are means of 100 calls on one connection. Ratios of the medians of a round.",
            unit: "ns",
            series: rounds.series(self, 1.0),
            claims,
        })
    }

    fn non_service(&mut self, options: &Options) -> Result<Measure> {
        const TARGET: f64 = 45.0;
        let rounds = self.rounds(options.batch(Op::Reconnect, 100, 100), options.rounds(51))?;
        let over_empty = |index| rounds.difference(self, index, EMPTY);
        let noise = Noise {
            floor: rounds.difference(self, CONTROL, DIRECT).measured.abs(),
            margin: TARGET,
        };
        let claims = vec![
            over_empty(ONE).at_most_above_noise(TARGET, noise),
            over_empty(MANY).at_most_above_noise(TARGET, noise),
            rounds.difference(self, EMPTY, DIRECT),
            rounds.difference(self, CONTROL, DIRECT),
        ];
        Ok(Measure {
            name: "non-service",
            title: "Connect to what is no Service",
            method: "connect() of one UDP socket to a Pod, again and again: the cheapest call that runs \
                     the hook. Samples are means of 100 calls; differences of the medians of a round.",
            unit: "ns",
            series: rounds.series(self, 1.0),
            claims,
        })
    }

    /// A batch in each universe in turn, `count` times.
    fn rounds(&mut self, batch: Batch, count: usize) -> Result<Rounds> {
        let mut rounds = Rounds {
            medians: vec![Vec::new(); self.universes.len()],
            samples: vec![Vec::new(); self.universes.len()],
        };
        for _ in 0..count {
            for (index, universe) in self.universes.iter_mut().enumerate() {
                let samples = universe.run(batch)?;
                rounds.medians[index].push(stats::median(&samples));
                rounds.samples[index].extend(samples);
            }
        }
        Ok(rounds)
    }
}

/// Nanoseconds, by universe.
struct Rounds {
    medians: Vec<Vec<f64>>,
    samples: Vec<Vec<f64>>,
}

impl Rounds {
    fn series(&self, universes: &Universes, scale: f64) -> Vec<Series> {
        let scaled = |samples: &Vec<f64>| samples.iter().map(|it| it * scale).collect::<Vec<_>>();
        std::iter::zip(&universes.names, &self.samples)
            .map(|(name, samples)| Series::new(name, &scaled(samples)))
            .collect()
    }

    fn judged(&self, universes: &Universes, what: usize, to: usize, target: f64) -> Claim {
        let noise = Noise {
            floor: (self.ratio(universes, CONTROL, DIRECT).measured - 1.0).abs(),
            margin: target - 1.0,
        };
        self.ratio(universes, what, to)
            .at_most_above_noise(target, noise)
    }

    /// What is good to know beside the claims.
    fn told(&self, universes: &Universes) -> [Claim; 2] {
        [EMPTY, CONTROL].map(|index| self.ratio(universes, index, DIRECT))
    }

    fn ratio(&self, universes: &Universes, what: usize, to: usize) -> Claim {
        let rounds = self.pairs(what, to).map(|(a, b)| a / b).collect();
        let [what, to] = [what, to].map(|index| &universes.names[index]);
        Claim::new(format!("{what} / {to}"), "", rounds)
    }

    fn difference(&self, universes: &Universes, what: usize, to: usize) -> Claim {
        let rounds = self.pairs(what, to).map(|(a, b)| a - b).collect();
        let [what, to] = [what, to].map(|index| &universes.names[index]);
        Claim::new(format!("{what} - {to}"), "ns", rounds)
    }

    fn pairs(&self, what: usize, to: usize) -> impl Iterator<Item = (f64, f64)> {
        let [what, to] = [what, to].map(|index| self.medians[index].iter().copied());
        what.zip(to)
    }
}
