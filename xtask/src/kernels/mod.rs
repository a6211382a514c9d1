//! `test-kernel`: the agent on other kernels, which Debian ships and qemu emulates.
//!
//! What runs there are the tests of the lab themselves (`tests/netns`), in an initramfs with nothing else in it: a kernel is as good
//! as what clients, nodes and Pods see of it. KVM is not used, so that it works in a virtual machine as well.

mod fetch;
mod modules;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::setup::{self, Need};
use crate::shell::{Line, require_root, target_dir};

/// Options of `test-kernel`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which kernel.
    #[arg(value_enum)]
    kernel: Wanted,
    /// Processors of the emulated machine.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    processors: u8,
    /// Only features whose names contain this.
    #[arg(long)]
    feature: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// Of Debian 11.
    #[value(name = "5.10")]
    Bullseye,
    /// Of Debian 12.
    #[value(name = "6.1")]
    Bookworm,
    /// Of Debian 13.
    #[value(name = "6.12")]
    Trixie,
    /// All of them, the oldest first.
    All,
}

/// A kernel of Debian, by the release that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    Bullseye,
    Bookworm,
    Trixie,
}

impl Kernel {
    const ALL: [Self; 3] = [Self::Bullseye, Self::Bookworm, Self::Trixie];

    /// The release's name in archives.
    const fn suite(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// What the names of its packages match, as a regular expression of apt's.
    const fn packages(self) -> &'static str {
        match self {
            Self::Bullseye => "^linux-image-5\\.10\\.0-[0-9]+-cloud-amd64$",
            Self::Bookworm => "^linux-image-6\\.1\\.0-[0-9]+-cloud-amd64$",
            Self::Trixie => "^linux-image-6\\.12\\.[0-9]+\\+deb13-cloud-amd64$",
        }
    }

    /// Where its image and its modules are once they were fetched.
    fn dir(self) -> PathBuf {
        target_dir().join("kernels").join(self.to_string())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bullseye => "5.10",
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
        })
    }
}

/// Runs the tests of the features on these kernels. The last lines on the screen are what passed on the last one, and the test
/// runner's summary.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("this test run")?;
    setup::ensure(&[Need::Nextest, Need::Ebpf, Need::Lab, Need::Qemu])?;
    let kernels: &[Kernel] = match args.kernel {
        Wanted::Bullseye => &[Kernel::Bullseye],
        Wanted::Bookworm => &[Kernel::Bookworm],
        Wanted::Trixie => &[Kernel::Trixie],
        Wanted::All => &Kernel::ALL,
    };
    for kernel in kernels {
        fetch::fetch(*kernel)?;
    }
    let (agent, lab) = build()?;
    for kernel in kernels {
        let mut line = Line::new(
            "cargo nextest run -P root -p yurt-net-tests --test verifier --run-ignored only --no-capture -E",
        )
        .arg("test(=kernels::every_feature_works_on_another_kernel)")
        .env("YURT_KERNEL", kernel.dir())
        .env("YURT_KERNEL_PROCESSORS", args.processors.to_string())
        .env("YURT_NET_BIN", &agent)
        .env("YURT_LAB_TESTS", &lab);
        if let Some(feature) = &args.feature {
            line = line.env("YURT_KERNEL_FEATURE", feature);
        }
        line.run().with_context(|| format!("Linux {kernel}"))?;
    }
    Ok(())
}

/// The agent, and the tests of the lab.
fn build() -> Result<(PathBuf, PathBuf)> {
    crate::build_ebpf::run(&crate::build_ebpf::Args { log: false })?;
    Line::new("cargo build -p yurt-net").run()?;
    let built = Line::new("cargo test --no-run -p yurt-net-tests --test netns")
        .arg("--message-format=json")
        .output()?;
    let lab = built.lines().find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        let is_lab = line.contains("\"name\":\"netns\"");
        rest.split_once('"')
            .map(|(path, _)| path)
            .filter(|_| is_lab)
    });
    let lab = lab.context("cargo has not said where the tests of the lab are")?;
    Ok((target_dir().join("debug/yurt-net"), lab.into()))
}
