//! Speed and size of yurt-net on this machine, judged: see `docs/benchmarks.md`.
//!
//! Run by `cargo xtask bench`, as root. Exits with 1 when a target is missed.
#![expect(clippy::print_stdout, reason = "its output is what the bench is for")]

use std::env;
use std::fs;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use clap::Parser;
use yurt_net_tests::bench;
use yurt_net_tests::bench::Options;
use yurt_net_tests::bench::plot;
use yurt_net_tests::bench::report::Machine;
use yurt_net_tests::bench::report::Report;
use yurt_net_tests::bench::report::Verdict;
use yurt_net_tests::bench::worker;
use yurt_net_tests::lab;
use yurt_net_tests::lab::Lab;

/// Measures yurt-net and judges what it measures. Exits with 1 when a target is missed.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Few rounds and few Services: shows that everything works; the numbers do not count.
    #[arg(long)]
    quick: bool,
    /// Take only this measure; repeatable.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(bench::names()))]
    only: Vec<String>,
    /// Where results.json and the plots go [default: bench in the target directory].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [verb, task] = arguments.as_slice()
        && verb == "worker"
    {
        return exit(worker::run(task).map(|()| ExitCode::SUCCESS));
    }
    let result = run(Arguments::parse());
    if lab::interrupted() {
        // The signal thread removes the lab and then ends the process.
        loop {
            thread::park();
        }
    }
    exit(result)
}

fn exit(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|e| {
        eprintln!("bench: {e:#}");
        ExitCode::FAILURE
    })
}

fn run(Arguments { quick, only, out }: Arguments) -> Result<ExitCode> {
    lab::tear_down_on_signals()?;
    let start = Instant::now();
    let out = match out {
        Some(out) => out,
        None => target_dir()?.join("bench"),
    };
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    let mut report = Report {
        machine: Machine::here()?,
        quick,
        measures: Vec::new(),
    };
    println!("{}", report.machine);
    let lab = Lab::new()?;
    let inventory = lab.inventory();
    let line = Line::new();
    let options = Options { quick, only };
    let result = bench::run(
        &lab,
        &options,
        |next| line.show(&format!("{next} ...")),
        |measure| {
            line.clear();
            println!("\n{measure}");
            plot::draw(
                &measure,
                &report.machine.to_string(),
                &out.join(format!("{}.svg", measure.name)),
            )?;
            report.measures.push(measure);
            Ok(())
        },
    );
    line.clear();
    drop(lab);
    result?;
    let leftovers = inventory.leftovers()?;
    if !leftovers.is_empty() {
        bail!("left behind: {}", leftovers.join(", "));
    }
    report.write_json(&out.join("results.json"))?;
    Ok(conclude(&report, &out, start))
}

fn conclude(report: &Report, out: &Path, start: Instant) -> ExitCode {
    let [ok, missed, void] =
        [Verdict::Ok, Verdict::Missed, Verdict::Void].map(|verdict| report.count(verdict));
    println!(
        "{ok} ok, {missed} missed, {void} void{} ({:.0} s); results.json and plots in {}",
        if report.quick {
            "; --quick: not numbers to rely on"
        } else {
            ""
        },
        start.elapsed().as_secs_f64(),
        out.display()
    );
    if void > 0 {
        println!(
            "VOID: this machine was too noisy for {void} judgements (two universes that are the same \
             differed by more than half of the margin); run it again when nothing else runs"
        );
    }
    if missed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// The target directory that this program was built in.
fn target_dir() -> Result<PathBuf> {
    let here = env::current_exe().context("find this program")?;
    let target = here.ancestors().find(|dir| dir.ends_with("target"));
    target
        .map(Path::to_owned)
        .context("this program is in no target directory; use --out")
}

/// The present activity, on a terminal: a line that disappears.
struct Line {
    is_terminal: bool,
}

impl Line {
    fn new() -> Self {
        Self {
            is_terminal: io::stdout().is_terminal(),
        }
    }

    fn show(&self, text: &str) {
        if self.is_terminal {
            print!("\r\x1b[K{text}");
            let _ = io::stdout().flush();
        }
    }

    fn clear(&self) {
        self.show("");
    }
}
