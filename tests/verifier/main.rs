//! The kernel's verifier on every program: that it takes them, and how much work they are to it. Needs root.
//!
//! The kernel cannot run programs on sockets on test input, so their logic is pure code that is tested on the host, and
//! the hooks themselves are tested with real sockets; here it is about loading. The programs on
//! devices are run on frames.

mod cpio;
mod guard;
mod guest;
mod kernels;
mod old_kernel;
mod packet;
mod translate;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use yurt_net::dataplane::load::{ProgramSize, trial, trial_as};

/// Program, most instructions that the verifier may look at, most bytes after translation.
///
/// A fifth above what was measured. A higher count costs every start of every agent, and at a million the kernel
/// refuses; a larger program costs every connect. So a cap is raised when a feature is worth that, in the same commit.
const CAPS: [(&str, u32, u32); 25] = [
    ("yurt_recvmsg4", 3090, 1350),
    ("yurt_recvmsg6", 2810, 1670),
    ("yurt_getpeer4", 2990, 2360),
    ("yurt_getpeer6", 3310, 4010),
    ("yurt_connect4", 31840, 17290),
    ("yurt_connect6", 54750, 29910),
    ("yurt_sendmsg4", 40870, 18260),
    ("yurt_sendmsg6", 75270, 31470),
    ("yurt_guard_in", 45400, 23190),
    ("yurt_xlate_out", 8470, 21600),
    ("yurt_xlate_in", 22020, 31290),
    ("yurt_vtep_in", 340, 1920),
    ("yurt_edge_new4", 59190, 28320),
    ("yurt_edge_new6", 55630, 38210),
    ("yurt_edge_err_in", 5720, 21870),
    ("yurt_edge_err_out", 6250, 23380),
    ("yurt_edge_refuse", 6710, 18670),
    ("yurt_pod_new4", 47470, 27190),
    ("yurt_pod_new6", 53560, 36670),
    ("yurt_edge_fast", 2890, 13550),
    ("yurt_pod_fast", 4280, 15100),
    ("yurt_edge_in", 85480, 50020),
    ("yurt_edge_out", 76510, 59140),
    ("yurt_pod_in", 86680, 50080),
    ("yurt_pod_out", 76560, 59140),
];

#[test]
fn every_program_loads_and_stays_under_its_caps() -> Result<()> {
    let (table, over) = compare(&sizes()?);
    eprintln!("{table}");
    assert!(
        over.is_empty(),
        "over the cap: {}\n\n{table}\n\nThe verifier walks every path at every start of an agent, and every connect runs \
         the program. Make it smaller, or, if what it does now is worth the cost, take the line of CAPS in \
         tests/verifier/main.rs from the last column.",
        over.join(", ")
    );
    Ok(())
}

fn sizes() -> Result<Vec<ProgramSize>> {
    let trial = trial()?;
    let sockets = trial.sockets.into_iter();
    Ok(sockets
        .chain([trial.guard?])
        .chain(trial.translate?)
        .chain([trial.vtep?])
        .chain(trial.packet?)
        .collect())
}

/// The table that people read, and the programs that are over a cap.
fn compare(sizes: &[ProgramSize]) -> (String, Vec<String>) {
    let mut table = format!(
        "{:<14} {:>8} {:>8} {:>7} {:>7}  {}",
        "PROGRAM", "VERIFIED", "CAP", "BYTES", "CAP", "A CAP A FIFTH ABOVE"
    );
    let mut over = Vec::new();
    for &ProgramSize {
        name,
        verified,
        translated,
    } in sizes
    {
        let (_, verified_cap, translated_cap) = CAPS
            .into_iter()
            .find(|(capped, ..)| *capped == name)
            .unwrap_or((name, 0, 0));
        let fifth_above = |value: u32| (value + value / 5).next_multiple_of(10);
        // Writing to a String cannot fail.
        let _ = write!(
            table,
            "\n{name:<14} {verified:>8} {verified_cap:>8} {translated:>7} {translated_cap:>7}  (\"{name}\", {}, {}),",
            fifth_above(verified),
            fifth_above(translated)
        );
        if verified > verified_cap || translated > translated_cap {
            over.push(name.to_owned());
        }
    }
    (table, over)
}

#[test]
fn every_cap_is_a_programs() -> Result<()> {
    let sizes = sizes()?;
    let names: Vec<_> = sizes.iter().map(|size| size.name).collect();
    assert_eq!(names, CAPS.map(|(name, ..)| name));
    Ok(())
}

#[test]
fn every_program_loads_without_bpf_set_retval_as_on_kernels_before_it() -> Result<()> {
    let with = trial_as(true)?;
    let without = trial_as(false)?;
    for (with, without) in with.iter().zip(&without) {
        assert_eq!(with.name, without.name);
        let refuses = ["connect", "sendmsg"]
            .iter()
            .any(|hook| with.name.contains(hook));
        // The switch is frozen before the load, so the verifier removes the branch that is never taken.
        if refuses {
            assert!(without.translated < with.translated, "{without:?} {with:?}");
        } else {
            assert_eq!(without.translated, with.translated, "{without:?} {with:?}");
        }
    }
    Ok(())
}

/// aya takes the verifier's log for UTF-8, and ends the agent where it is not. A full log ends anywhere, also within a
/// character, and all that is not the kernel's own words is quoted from the object: names, and lines of the sources.
#[test]
fn the_verifier_can_quote_nothing_of_the_programs_that_is_not_ascii() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/yurt-ebpf.o");
    let object = fs::read(&path).with_context(|| path.display().to_string())?;
    let btf = aya_obj::Object::parse(&object)?.btf.context("no types")?;
    let btf = btf.to_bytes();
    // `struct btf_header`: the sixth word is the length of the strings, which come last.
    let (words, _) = btf.as_chunks();
    let length = usize::try_from(u32::from_le_bytes(words[5]))?;
    let strings = &btf[btf.len() - length..];
    assert!(length > 1000 && strings.is_ascii());
    Ok(())
}
