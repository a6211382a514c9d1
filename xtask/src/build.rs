//! `build`: builds the agent with its eBPF object inside, as it ships: one static program.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::build_ebpf;
use crate::setup::{self, Need};
use crate::shell::{Line, say, target_dir};

/// Options of `build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine to build for [default: this machine].
    #[arg(long, value_enum)]
    target: Option<Target>,
}

/// The machines that images are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// PCs and servers.
    #[value(name = "x86_64-unknown-linux-musl")]
    X86,
    /// Arm boards and servers of 64 bits.
    #[value(name = "aarch64-unknown-linux-musl")]
    Arm,
}

impl Target {
    pub(crate) const ALL: [Self; 2] = [Self::X86, Self::Arm];

    /// This machine.
    pub(crate) const HOST: Self = if cfg!(target_arch = "aarch64") {
        Self::Arm
    } else {
        Self::X86
    };

    /// The compiler's name of the target.
    pub(crate) const fn triple(self) -> &'static str {
        match self {
            Self::X86 => "x86_64-unknown-linux-musl",
            Self::Arm => "aarch64-unknown-linux-musl",
        }
    }

    /// The name that Debian and Go use.
    pub(crate) const fn arch(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }

    /// The name that the kernel, compilers and qemu use.
    pub(crate) const fn machine(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }

    /// The compiler's target, and a C compiler for it.
    pub(crate) const fn need(self) -> Need {
        match self {
            Self::X86 => Need::X86,
            Self::Arm => Need::Arm,
        }
    }

    /// Where a release build leaves the agent.
    pub(crate) fn agent(self) -> PathBuf {
        target_dir().join(self.triple()).join("release/yurt-net")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.triple())
    }
}

/// Builds the object and the agent.
pub(crate) fn run(args: &Args) -> Result<()> {
    let agent = agent(args.target.unwrap_or(Target::HOST))?;
    say(format_args!("build: {}", agent.display()));
    Ok(())
}

/// Builds both and returns the absolute path of the agent.
pub(crate) fn agent(target: Target) -> Result<PathBuf> {
    setup::ensure(&[Need::Ebpf, target.need()])?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    release(target)?.args(["-p", "yurt-net"]).run()?;
    Ok(target.agent())
}

/// Builds the agent with its symbols, and a bench; returns their paths. Nothing is timed, so a debug bench is good
/// enough.
pub(crate) fn for_layout() -> Result<(PathBuf, PathBuf)> {
    setup::ensure(&[Need::Ebpf, Need::X86, Need::Lab, Need::Cni])?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    let agent = release(Target::X86)?.args(["--config", "profile.release.strip='none'"]);
    agent.args(["-p", "yurt-net"]).run()?;
    Line::new("cargo build -p yurt-net-tests --bins").run()?;
    Ok((Target::X86.agent(), target_dir().join("debug/bench")))
}

/// Replaces this process by a program of the lab, with everything that the program needs in place.
///
/// The program has the terminal until its clean-up is done.
pub(crate) fn exec_in_lab(program: &str, args: Vec<String>) -> Result<()> {
    setup::ensure(&[Need::Lab, Need::Cni])?;
    let agent = agent(Target::HOST)?;
    // Built for the agent's target, because they share its code. The lab starts its worker from the program's
    // directory.
    release(Target::HOST)?
        .args(["-p", "yurt-net-tests", "--bins"])
        .run()?;
    match Line::new("")
        .arg(agent.with_file_name(program))
        .args(args)
        .env("YURT_NET_BIN", agent)
        .exec()? {}
}

/// A release build, without the paths of libraries' sources on this machine.
fn release(target: Target) -> Result<Line> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set")?;
    let flags = format!(
        "target.{target}.rustflags=['--remap-path-prefix={}=/cargo']",
        home.display()
    );
    Ok(Line::new("cargo build --release --target")
        .arg(target.triple())
        .arg("--config")
        .arg(flags))
}
