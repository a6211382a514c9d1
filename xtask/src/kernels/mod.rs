//! `test-kernel`: tests the agent on kernels of Debian releases, which qemu emulates.
//!
//! The tests of the lab (`tests/netns`) run there, in an initramfs with nothing else in it: a kernel is good if
//! clients, nodes and Pods see what they should. KVM is not used, so it works in a virtual machine as well.

mod archive;
mod fetch;
mod modules;
mod userland;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::build::Target;
use crate::setup::{self, Need};
use crate::shell::{Line, require_root, target_dir};

/// Options of `test-kernel`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which kernel.
    #[arg(value_enum)]
    kernel: Wanted,
    /// Only on machines of this kind, for which the agent is built then [default: of both].
    #[arg(long, value_enum)]
    target: Option<Target>,
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

/// A release of Debian, by whose name its kernel is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    Bullseye,
    Bookworm,
    Trixie,
}

impl Release {
    const ALL: [Self; 3] = [Self::Bullseye, Self::Bookworm, Self::Trixie];

    /// The release's name in archives.
    const fn suite(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// What the versions in its packages' names match, as a regular expression of apt's.
    const fn versions(self) -> &'static str {
        match self {
            Self::Bullseye => "5\\.10\\.0-[0-9]+",
            Self::Bookworm => "6\\.1\\.0-[0-9]+",
            Self::Trixie => "6\\.12\\.[0-9]+\\+deb13",
        }
    }
}

/// The kernel of a Debian release, for one kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kernel {
    release: Release,
    target: Target,
}

impl Kernel {
    /// A regular expression of apt's for the names of its packages.
    fn packages(self) -> String {
        let Self { release, target } = self;
        format!(
            "^linux-image-{}-cloud-{}$",
            release.versions(),
            target.arch()
        )
    }

    /// The directory of its image and its modules, once they are fetched.
    fn dir(self) -> PathBuf {
        target_dir().join("kernels").join(match self.target {
            Target::X86 => self.release.to_string(),
            Target::Arm => format!("{}-arm64", self.release),
        })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bullseye => "5.10",
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
        })
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.release, self.target.arch())
    }
}

/// Runs the tests of the features on these kernels. The last lines on the screen are what passed on the last one, and
/// the test runner's summary.
pub(crate) fn run(args: &Args) -> Result<()> {
    require_root("this test run")?;
    setup::ensure(&[Need::Nextest, Need::Ebpf, Need::Lab, Need::Qemu])?;
    let releases: &[Release] = match args.kernel {
        Wanted::Bullseye => &[Release::Bullseye],
        Wanted::Bookworm => &[Release::Bookworm],
        Wanted::Trixie => &[Release::Trixie],
        Wanted::All => &Release::ALL,
    };
    let targets = Target::ALL.into_iter();
    let targets = targets.filter(|target| args.target.is_none_or(|wanted| wanted == *target));
    for target in targets {
        let kernels: Vec<_> = releases
            .iter()
            .map(|&release| Kernel { release, target })
            .collect();
        for kernel in &kernels {
            fetch::fetch(*kernel)?;
        }
        let programs = Programs::build(target)?;
        for kernel in kernels {
            on_kernel(kernel, &programs, args).with_context(|| format!("Linux {kernel}"))?;
        }
    }
    Ok(())
}

fn on_kernel(kernel: Kernel, programs: &Programs, args: &Args) -> Result<()> {
    let mut line = Line::new(
        "cargo nextest run -P root -p yurt-net-tests --test verifier --run-ignored only --no-capture -E",
    )
    .arg("test(=kernels::every_feature_works_on_another_kernel)")
    .env("YURT_KERNEL", kernel.dir())
    .env("YURT_KERNEL_RELEASE", kernel.release.to_string())
    .env("YURT_KERNEL_ARCHITECTURE", kernel.target.machine())
    .env("YURT_KERNEL_PROCESSORS", args.processors.to_string())
    .env("YURT_NET_BIN", &programs.agent)
    .env("YURT_LAB_TESTS", &programs.lab);
    if let Some(userland) = &programs.userland {
        line = line.env("YURT_KERNEL_USERLAND", userland);
    }
    if let Some(feature) = &args.feature {
        line = line.env("YURT_KERNEL_FEATURE", feature);
    }
    line.run()
}

/// The programs for an emulated machine.
struct Programs {
    agent: PathBuf,
    /// The tests of the lab.
    lab: PathBuf,
    /// Programs of other projects, if those of this machine do not run there.
    userland: Option<PathBuf>,
}

impl Programs {
    fn build(target: Target) -> Result<Self> {
        // Without a C library for the other architecture, programs for it are static, as the shipped agent always is.
        let (built, words, userland) = if target == Target::HOST {
            (target_dir(), Vec::new(), None)
        } else {
            setup::ensure(&[target.need(), Need::Emulator])?;
            let built = target_dir().join(target.triple());
            (
                built,
                vec!["--target", target.triple()],
                Some(userland::fetch(target)?),
            )
        };
        crate::build_ebpf::run(&crate::build_ebpf::Args { log: false })?;
        Line::new("cargo build -p yurt-net").args(&words).run()?;
        let lab = Line::new("cargo test --no-run -p yurt-net-tests --test netns").args(&words);
        let lab = lab.arg("--message-format=json").output()?;
        let lab = lab.lines().find_map(|line| {
            let (_, rest) = line.split_once("\"executable\":\"")?;
            let is_lab = line.contains("\"name\":\"netns\"");
            rest.split_once('"')
                .map(|(path, _)| path)
                .filter(|_| is_lab)
        });
        let lab = lab.context("cargo has not said where the tests of the lab are")?;
        Ok(Self {
            agent: built.join("debug/yurt-net"),
            lab: lab.into(),
            userland,
        })
    }
}
