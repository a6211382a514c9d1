//! The cost of a program on a device for a frame, over one that does nothing.

use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::report::Claim;
use super::report::Noise;
use super::report::Series;
use crate::testrun::Program;

/// Runs a program on a frame. `what` names the frame, `who` the program. The difference is judged if `at_most`, in
/// nanoseconds, is given.
pub fn cost(
    (what, who): (&str, &str),
    [empty, program]: [&Program; 2],
    frame: &[u8],
    at_most: Option<f64>,
    options: &Options,
) -> Result<([Series; 2], Claim)> {
    let rounds = rounds(program, empty, frame, options)?;
    let of = |which: usize| rounds.iter().map(move |round| round[which]);
    let series = |which: usize, name: &str| {
        Series::new(format!("{what}, {name}"), &of(which).collect::<Vec<_>>())
    };
    let least = |which: usize| of(which).fold(f64::INFINITY, f64::min);
    // The least of the rounds: other work can only add to it.
    let [first, taken, again] = [0, 1, 2].map(least);
    let over = format!("{what}, over a program that does nothing");
    let claim = Claim::new(over, "ns", vec![taken - first.min(again)]);
    let claim = match at_most {
        Some(bound) => {
            let noise = Noise {
                floor: (first - again).abs(),
                margin: bound,
            };
            claim.at_most_above_noise(bound, noise)
        }
        None => claim,
    };
    Ok(([series(0, "empty program"), series(1, who)], claim))
}

/// Nanoseconds a frame: the empty program, the other one, the empty program again.
fn rounds(
    program: &Program,
    empty: &Program,
    frame: &[u8],
    options: &Options,
) -> Result<Vec<[f64; 3]>> {
    // Short enough to fit between other work of the machine.
    let repeat = 10_000;
    let nanos = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(repeat);
    (0..options.rounds(501))
        .map(|_| {
            let time = |program: &Program| program.time(frame, repeat).map(nanos);
            Ok([time(empty)?, time(program)?, time(empty)?])
        })
        .collect()
}
