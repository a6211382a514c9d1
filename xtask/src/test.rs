//! `test`: everything that must pass, cheapest first.

use anyhow::Result;
use clap::ValueEnum;

use crate::build::Target;
use crate::setup::{self, EMULATOR, Need};
use crate::shell::{Line, require_root, say};
use crate::{build_ebpf, check, fuzz, image};

/// Options of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which tests.
    #[arg(value_enum, default_value_t = Rings::All)]
    rings: Rings,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rings {
    /// What needs neither root nor a BPF tool: seconds.
    Unit,
    /// What needs the kernel: the verifier, the lab, restarts.
    Root,
    /// `check`, both of the above, and a minute for each fuzz target.
    All,
}

/// Runs the chosen rings. The last line on the screen is the test runner's summary.
pub(crate) fn run(&Args { rings }: &Args) -> Result<()> {
    if rings == Rings::Unit {
        setup::ensure(&[Need::Nextest])?;
        return unit("default", None);
    }
    // Fails at once and not after ten minutes, and never skips silently.
    require_root("this test run")?;
    setup::ensure(&setup::ALL)?;
    let kernel = setup::old_kernel()?;
    if rings == Rings::All {
        check::run(&check::Args::default())?;
        let seed = seed();
        unit("ci", Some(&seed))?;
        emulated(&seed)?;
        fuzz::run(&fuzz::Args::default())?;
    }
    let image = image::image()?;
    // For the tests of `--ebpf-log`.
    build_ebpf::run(&build_ebpf::Args { log: true })?;
    say("test: the tests that need root");
    // The runner replaces this process, so Ctrl-C reaches it: it ends its tests and they clean up.
    match Line::new("cargo nextest run --workspace -P root")
        .env("YURT_NET_BIN", Target::HOST.agent())
        .env("YURT_NET_IMAGE", image)
        .env("YURT_OLD_KERNEL", kernel)
        .exec()? {}
}

/// Tests that ask the kernel in ways that qemu's emulation of system calls does not know (socket diagnosis, exchanged
/// files), or that measure the process, which under emulation is the emulator.
const NOT_EMULATED: &str = "not (test(/^dataplane::service::sockets::/) | test(/^node::near::/) | test(/^host::process::/) \
                            | test(=source::file::tests::swaps_during_loads_never_show_a_mixture))";

/// Runs the libraries' tests for aarch64, with its word sizes, alignment and memory order. Emulation is slow, so
/// property tests try fewer cases: what they find is in the code, and rarely in the architecture.
fn emulated(seed: &str) -> Result<()> {
    Line::new("cargo nextest run -P ci --lib -p yurt-ebpf -p yurt-net --target")
        .arg(Target::Arm.triple())
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER", EMULATOR)
        .env("PROPTEST_CASES", "8")
        .env(SEED, seed)
        .args(["-E", NOT_EMULATED])
        .run()
}

/// proptest's variable for the seed.
const SEED: &str = "PROPTEST_RNG_SEED";

/// The seed of the property tests in a whole run: the content of the commit. A failure repeats wherever the commit is
/// tested, and the next change tries other cases. Without a commit the seed is a constant.
fn seed() -> String {
    let tree = Line::new("git rev-parse HEAD^{tree}").output();
    let number = tree.ok().and_then(|tree| {
        let digits = tree.trim().get(..16)?;
        u64::from_str_radix(digits, 16).ok()
    });
    number.unwrap_or_default().to_string()
}

/// Without a seed, each run tries other cases.
fn unit(profile: &str, seed: Option<&str>) -> Result<()> {
    Line::new("cargo test --workspace --doc --quiet").run()?;
    let mut line = Line::new("cargo nextest run --workspace -P").arg(profile);
    if let Some(seed) = seed {
        line = line.env(SEED, seed);
    }
    line.run()
}
