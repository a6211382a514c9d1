//! `build`: the agent with its eBPF object inside.

use std::path::PathBuf;

use anyhow::Result;

use crate::build_ebpf;
use crate::setup::{self, Need};
use crate::shell::{Line, say, target_dir};

/// Builds both halves.
pub(crate) fn run() -> Result<()> {
    let agent = agent()?;
    say(format_args!("build: {}", agent.display()));
    Ok(())
}

/// Builds both halves and returns the agent's path, absolute.
pub(crate) fn agent() -> Result<PathBuf> {
    build_ebpf::run()?;
    Line::new("cargo build --release -p yurt-net").run()?;
    Ok(target_dir().join("release/yurt-net"))
}

/// Becomes a program of the lab, with everything that it needs in place.
///
/// It takes the place of this process, so that its clean-up has the terminal until it is done.
pub(crate) fn exec_in_lab(program: &str, args: Vec<String>) -> Result<()> {
    setup::ensure(&[Need::Ebpf, Need::Lab, Need::Cni])?;
    let agent = agent()?;
    // The lab runs its worker from beside the program.
    Line::new("cargo build --release -p yurt-net-tests --bins").run()?;
    let line = Line::new("cargo run --release -p yurt-net-tests --bin").arg(program);
    match line
        .arg("--")
        .args(args)
        .env("YURT_NET_BIN", agent)
        .exec()? {}
}
