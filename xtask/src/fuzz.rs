//! `fuzz`: feeds everything that decodes bytes from outside with bytes that libFuzzer makes up (`tests/fuzz`).
//!
//! No nightly and no cargo-fuzz: the compiler options that libFuzzer needs are options of stable rustc.
//! AddressSanitizer, which notices single allocations that are too large and stacks that overflow, is used if the
//! toolchain has its runtime.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Need};
use crate::shell::{Line, root, say, target_dir};

/// Options of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Targets: the files of tests/fuzz/targets. All of them when none is named.
    targets: Vec<String>,
    /// How long each of them runs.
    #[arg(long, default_value_t = SECONDS)]
    seconds: u32,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            seconds: SECONDS,
        }
    }
}

const SECONDS: u32 = 60;
/// The workspace of the targets.
pub(crate) const MANIFEST: &str = "tests/fuzz/Cargo.toml";
/// A profile of its own, so that `check` shares its work with the other workspace.
const PROFILE: &str = "fuzz";
/// Targets that run side by side.
const AT_ONCE: usize = 2;
/// Lines of a log that are shown, from the one that says what happened.
const SHOWN_LINES: usize = 12;

/// What each edge of the control flow records for libFuzzer: that it was taken, and the operands of its comparison.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// For one input: seconds, bytes, and megabytes of the whole process. Then the words of the languages that are read.
const OPTIONS: &str =
    "-timeout=20 -max_len=2048 -rss_limit_mb=1024 -print_funcs=0 -dict=tests/fuzz/words.dict";
/// AddressSanitizer spends most effort on faults that safe Rust cannot have.
const ASAN_OPTIONS: &str = "detect_stack_use_after_return=0:quarantine_size_mb=16";

/// Builds the targets and runs each for its time. Fails if one has found something, and says where that is.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::Fuzz])?;
    let all = targets()?;
    if let Some(unknown) = args.targets.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    let chosen = match args.targets.is_empty() {
        true => all,
        false => args.targets.clone(),
    };
    let programs = build(&chosen)?;
    let queue = Mutex::new(VecDeque::from(chosen));
    // The lock must not be held in the body of the loop, as a guard in its head would be.
    let next = || lock(&queue).pop_front();
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(target) = next() {
                    if let Err(error) = fuzz(&programs, &target, args.seconds) {
                        say(format_args!("fuzz: {target}: {error:#}"));
                        lock(&failed).push(target);
                    }
                }
            });
        }
    });
    let failed = lock(&failed);
    if !failed.is_empty() {
        bail!("fuzz: {} found something", failed.join(", "));
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let dir = root().join("tests/fuzz/targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        names.push(name.replace('_', "-"));
    }
    names.sort();
    Ok(names)
}

/// Builds the targets, and returns the directory that they are in.
fn build(targets: &[String]) -> Result<PathBuf> {
    let about = Line::new("rustc --version --verbose").output()?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say what it builds for")?;
    let dir = target_dir().join("fuzz");
    // With `--target`, build scripts and macros are not instrumented.
    let mut line = Line::new("cargo build --manifest-path")
        .arg(MANIFEST)
        .args(["--profile", PROFILE, "--target", host, "--target-dir"])
        .arg(&dir);
    for target in targets {
        line = line.args(["--bin", target]);
    }
    line = match has_address_sanitizer(host)? {
        true => line
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", format!("{COVERAGE} -Zsanitizer=address")),
        false => line.env("RUSTFLAGS", COVERAGE),
    };
    line.run()?;
    Ok(dir.join(host).join(PROFILE))
}

fn has_address_sanitizer(host: &str) -> Result<bool> {
    let library = Line::new("rustc --print target-libdir --target").arg(host);
    let library = library.output()?;
    let mut files = fs::read_dir(library.trim())
        .with_context(|| format!("cannot list {}", library.trim()))?
        .flatten();
    Ok(files.any(|file| {
        let name = file.file_name();
        name.to_string_lossy().ends_with("_rt.asan.a")
    }))
}

/// Runs one target. Its corpus stays in `target/fuzz/corpus`, and the next run begins with it.
fn fuzz(programs: &Path, target: &str, seconds: u32) -> Result<()> {
    let dir = target_dir().join("fuzz");
    let (corpus, found) = (
        dir.join("corpus").join(target),
        dir.join("found").join(target),
    );
    for dir in [&corpus, &found] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let program = programs.join(target);
    let log = found.join("log");
    // The first directory is written to; the others are only read.
    let line = Line::new("")
        .arg(&program)
        .env("ASAN_OPTIONS", ASAN_OPTIONS)
        .args(OPTIONS.split(' '))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(corpus)
        .args(seeds(target));
    let is_ok = line.run_into(&log)?;
    let text = fs::read_to_string(&log).unwrap_or_default();
    if is_ok {
        let done = text.lines().rev().find(|line| line.contains("DONE"));
        say(format_args!("fuzz: {target}: {}", done.unwrap_or("done")));
        return Ok(());
    }
    let is_begin = |line: &&str| line.contains("panicked at") || line.contains("ERROR: ");
    let lines = text.lines().skip_while(|line| !is_begin(line));
    for line in lines.take(SHOWN_LINES) {
        say(format_args!("  {line}"));
    }
    match text
        .lines()
        .find_map(|line| line.split_once("Test unit written to "))
    {
        Some((_, input)) => bail!(
            "found something: {input}\n  again:  {} {input}\n  to stay found, it goes to tests/fuzz/regressions/{target}/",
            program.display()
        ),
        None => bail!("failed; its log is {}", log.display()),
    }
}

/// Directories with inputs to begin with.
fn seeds(target: &str) -> Vec<String> {
    let own = ["seeds", "regressions"].map(|kind| format!("tests/fuzz/{kind}/{target}"));
    let manifests = ["tests/cases", "deploy/examples"].map(str::to_owned);
    let shared = manifests.into_iter().filter(|_| target == "manifests");
    let all = own.into_iter().chain(shared);
    all.filter(|dir| root().join(dir).is_dir()).collect()
}
