//! The front door of the project: `cargo xtask VERB`.
//!
//! A verb is a file. Each prints the plain commands that it runs, so that nobody needs this program
//! to know what it does.

mod baseline;
mod bench;
mod build;
mod build_ebpf;
mod check;
mod demo;
mod fuzz;
mod image;
mod kernels;
mod layout;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Builds, checks, tests and shows yurt-net.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    /// Install the tools that are missing (apt, cargo), or say what to install.
    Setup(setup::Args),
    /// Build the eBPF object, with the first toolchain that works.
    BuildEbpf(build_ebpf::Args),
    /// Build the eBPF object and the agent that embeds it: one static program (release).
    Build(build::Args),
    /// Build the image, for x86_64 and aarch64, as an archive that runtimes import.
    Image,
    /// Write down in which order the linker lays the agent's functions out, from what agents of a lab enter (root,
    /// x86_64).
    Layout,
    /// Runs a program, and notes which of its functions it enters: what `layout` is made from.
    #[command(hide = true)]
    Entered(layout::entered::Args),
    /// Format, layering, documents, lints, licences.
    Check(check::Args),
    /// Everything that must pass.
    Test(test::Args),
    /// Everything that clients see of the agent, on a kernel of another Debian release under qemu (root).
    TestKernel(kernels::Args),
    /// Feed everything that takes bytes from outside with made-up bytes.
    Fuzz(fuzz::Args),
    /// Show service closure in a lab of network namespaces (root).
    Demo(demo::Args),
    /// Store what others rely on, and print what differs from the last tag or from another commit.
    Baseline(baseline::Args),
    /// Measure, as ratios against direct traffic (root).
    Bench(bench::Args),
}

fn run() -> Result<()> {
    match Verb::parse() {
        Verb::Setup(args) => setup::run(&args),
        Verb::BuildEbpf(args) => build_ebpf::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Image => image::run(),
        Verb::Layout => layout::run(),
        Verb::Entered(args) => layout::entered::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::TestKernel(args) => kernels::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Demo(args) => demo::run(args),
        Verb::Baseline(args) => baseline::run(&args),
        Verb::Bench(args) => bench::run(args),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain on one line: a back trace says nothing about a missing tool.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::shell::root;

    /// What follows `cargo xtask` on a page, whether a reader types it or prose names it; what is optional is left out.
    fn said(page: &str) -> impl Iterator<Item = &str> {
        let lines = page
            .lines()
            .flat_map(|line| line.split("cargo xtask ").skip(1));
        let ends = ['`', '#', '&', '[', ','];
        lines.map(move |rest| rest.split(ends).next().unwrap_or(rest).trim())
    }

    #[test]
    fn every_line_of_a_page_that_begins_with_cargo_xtask_is_a_verb_with_its_flags() {
        let docs = fs::read_dir(root().join("docs")).unwrap();
        let docs = docs.map(|entry| entry.unwrap().path());
        let pages = ["README.md", "CONTRIBUTING.md"].map(|name| root().join(name));
        let pages = pages.into_iter().chain(docs.filter(|path| path.is_file()));
        let mut count = 0;
        for path in pages {
            let page = fs::read_to_string(&path).unwrap();
            for line in said(&page) {
                count += 1;
                let words = ["cargo xtask"].into_iter().chain(line.split_whitespace());
                if let Err(error) = Verb::try_parse_from(words) {
                    panic!("{}: cargo xtask {line}: {error}", path.display());
                }
            }
        }
        assert!(count > 30, "{count} lines");
    }
}
