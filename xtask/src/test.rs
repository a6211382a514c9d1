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
    /// `check`, both of the above, the documentation, and a minute for each fuzz target.
    All,
}

/// Runs the chosen rings. The last line on the screen is the test runner's summary.
pub(crate) fn run(&Args { rings }: &Args) -> Result<()> {
    if rings == Rings::Unit {
        setup::ensure(&[Need::Nextest])?;
        return unit("default");
    }
    // Said at once, not after ten minutes; and never a silent skip.
    require_root("this test run")?;
    setup::ensure(&setup::ALL)?;
    let kernel = setup::old_kernel()?;
    if rings == Rings::All {
        check::run(&check::Args::default())?;
        unit("ci")?;
        emulated()?;
        Line::new("cargo doc --workspace --no-deps")
            .env("RUSTDOCFLAGS", "-D warnings")
            .run()?;
        fuzz::run(&fuzz::Args::default())?;
    }
    let image = image::image()?;
    // For what is tested of `--ebpf-log`.
    build_ebpf::run(&build_ebpf::Args { log: true })?;
    say("test: the tests that need root");
    // Becoming the runner leaves Ctrl-C to it: it ends its tests and they clean up.
    match Line::new("cargo nextest run --workspace -P root")
        .env("YURT_NET_BIN", Target::HOST.agent())
        .env("YURT_NET_IMAGE", image)
        .env("YURT_OLD_KERNEL", kernel)
        .exec()? {}
}

/// What asks the kernel in ways that qemu's emulation of system calls does not know (socket diagnosis, exchanged
/// files), or asks what the emulator and not the program takes.
const NOT_EMULATED: &str = "not (test(/^dataplane::service::sockets::/) | test(/^node::near::/) | test(/^host::process::/) \
                            | test(=source::file::tests::swaps_during_loads_never_show_a_mixture))";

/// The libraries' tests as aarch64 has them, word sizes, alignment and memory order included. Emulation is slow, so
/// that property tests try fewer cases; what they find is in the code, and rarely in the architecture.
fn emulated() -> Result<()> {
    Line::new("cargo nextest run -P ci --lib -p yurt-ebpf -p yurt-net --target")
        .arg(Target::Arm.triple())
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER", EMULATOR)
        .env("PROPTEST_CASES", "8")
        .args(["-E", NOT_EMULATED])
        .run()
}

fn unit(profile: &str) -> Result<()> {
    Line::new("cargo test --workspace --doc --quiet").run()?;
    Line::new("cargo nextest run --workspace -P")
        .arg(profile)
        .run()
}
