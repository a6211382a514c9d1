//! `build-ebpf`: builds the eBPF programs with the first toolchain that works.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell::{Line, root, say};

/// Debian's rustc: the package `rustc-web` brings a prebuilt core for BPF, so neither nightly nor build-std is needed.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const TARGET: &str = "bpfel-unknown-none";
/// The oldest linker that reads the bitcode of the compilers above.
const LINKER_AT_LEAST: (u32, u32) = (0, 13);

/// Debug info becomes BTF. Blocks stay in the order of the source: LLVM's own order makes some loops fall through to
/// their head, and the verifier of Linux 6.1 accepts a loop only if it jumps there ("back-edge from insn ..").
const RUSTFLAGS: &str =
    "-C debuginfo=2 -C link-arg=--btf -C link-arg=--llvm-args=-disable-block-placement";

/// A way to compile for BPF.
#[derive(Debug)]
pub(crate) struct Toolchain {
    name: &'static str,
    version: String,
    cargo: Line,
}

/// Options of `build-ebpf`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Another object, whose programs say what they decide: for `yurt-net run --ebpf-log`, never to ship.
    #[arg(long)]
    pub(crate) log: bool,
}

/// Builds the object, and prints the toolchain, the path, the size and the checksum.
pub(crate) fn run(args: &Args) -> Result<()> {
    let toolchain = toolchain()?;
    linker()?;
    say(format_args!(
        "build-ebpf: {} ({})",
        toolchain.name, toolchain.version
    ));
    let Toolchain { cargo, .. } = toolchain;
    // A target directory of its own: another compiler would invalidate the host's cache.
    cargo
        .args(["-p", "yurt-ebpf", "--bin", "yurt-ebpf"])
        .args(args.log.then_some("--features=log"))
        .args(["--target", TARGET, "--profile", "bpf"])
        .args(["--target-dir", "target/bpf-build"])
        .run()
        .context(
            "build-ebpf (where the linker says `Invalid record`, its LLVM is older than the \
             compiler's: build bpf-linker against that one, or use Debian's rustc-web)",
        )?;
    let built = root().join(format!("target/bpf-build/{TARGET}/bpf/yurt-ebpf"));
    let object = object_path(args);
    publish(&strip(built)?, &object)?;

    let size = fs::metadata(&object)?.len();
    let sum = Line::new("sha256sum").arg(&object).output();
    let sum = sum.as_deref().ok().and_then(|line| line.split(' ').next());
    let name = object.strip_prefix(root()).unwrap_or(&object).display();
    say(format_args!(
        "build-ebpf: {name}, {size} bytes, sha256 {}",
        sum.unwrap_or("unknown (no sha256sum)")
    ));
    Ok(())
}

/// Removes the debug information, which is four fifths of the object and of no use to the kernel; BTF stays.
fn strip(built: PathBuf) -> Result<PathBuf> {
    let Some(objcopy) = objcopy() else {
        say(
            "build-ebpf: no llvm-objcopy (Debian: llvm-22): the object keeps its debug information",
        );
        return Ok(built);
    };
    let stripped = built.with_extension("stripped");
    objcopy
        .arg("--strip-debug")
        .arg(&built)
        .arg(&stripped)
        .run()?;
    Ok(stripped)
}

/// LLVM's objcopy, if there is one.
pub(crate) fn objcopy() -> Option<Line> {
    [
        "/usr/lib/llvm-22/bin/llvm-objcopy",
        "llvm-objcopy-22",
        "llvm-objcopy",
    ]
    .into_iter()
    .map(Line::new)
    .find(|tool| tool.clone().arg("--version").output().is_ok())
}

/// The path where the agent's build script looks for the object. The object that logs is in another directory, so that
/// it never ships by mistake.
fn object_path(args: &Args) -> PathBuf {
    let dir = if args.log { "bpf-log" } else { "bpf" };
    root().join("target").join(dir).join("yurt-ebpf.o")
}

/// The first toolchain that can compile for BPF, or the reasons why none can.
pub(crate) fn toolchain() -> Result<Toolchain> {
    let debian = match debian_version() {
        Ok(version) => {
            return Ok(Toolchain {
                name: "Debian's rustc-web",
                version,
                // Debian chooses its version, so we do not require one: it only has to compile.
                cargo: Line::new("cargo build --ignore-rust-version")
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTFLAGS", RUSTFLAGS),
            });
        }
        Err(why) => why,
    };
    let nightly = match nightly_version() {
        Ok(version) => {
            return Ok(Toolchain {
                name: "nightly with rust-src",
                version,
                cargo: Line::new("cargo +nightly build -Z build-std=core")
                    .env("RUSTFLAGS", RUSTFLAGS),
            });
        }
        Err(why) => why,
    };
    bail!(
        "no Rust toolchain for BPF. Debian's: {debian:#}. Nightly: {nightly:#}. \
         Run `cargo xtask setup`, or install one of: the Debian packages rustc-web and \
         libstd-rust-web-dev-bpf; `rustup toolchain install nightly --component rust-src`"
    )
}

fn debian_version() -> Result<String> {
    if !Path::new(DEBIAN_RUSTC).exists() {
        bail!("no {DEBIAN_RUSTC}");
    }
    let library = Line::new(DEBIAN_RUSTC)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()?;
    if !Path::new(library.trim()).is_dir() {
        bail!("{DEBIAN_RUSTC} has no core library for {TARGET}");
    }
    let version = Line::new(DEBIAN_RUSTC).arg("--version").output()?;
    Ok(version.trim().to_owned())
}

fn nightly_version() -> Result<String> {
    let sysroot = Line::new("rustc +nightly --print sysroot").output()?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if !core.is_dir() {
        bail!("no rust-src");
    }
    // With the version of its LLVM, which must not be newer than the linker's.
    let about = Line::new("rustc +nightly --version --verbose").output()?;
    let is_told = |line: &&str| line.starts_with("rustc ") || line.starts_with("LLVM version");
    Ok(about.lines().filter(is_told).collect::<Vec<_>>().join(", "))
}

/// The version of the BPF linker, if it is new enough.
pub(crate) fn linker() -> Result<String> {
    let install = "run `cargo xtask setup`, or install the Debian package llvm-22-dev and then \
                   `LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \
                   --no-default-features --features llvm-22`";
    let Ok(version) = Line::new("bpf-linker --version").output() else {
        bail!("bpf-linker is missing or does not start; {install}");
    };
    if parse_version(&version).is_none_or(|found| found < LINKER_AT_LEAST) {
        bail!(
            "bpf-linker 0.13 or newer is needed, found `{}`; {install}",
            version.trim()
        );
    }
    Ok(version)
}

/// The major and minor number in `name 1.2.3`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Replaces the object by a rename, and only if it differs, because its time stamp rebuilds the agent.
fn publish(built: &Path, object: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{} is not an ELF object", built.display());
    }
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let dir = object.parent().context("the object has no directory")?;
    let write = || {
        fs::create_dir_all(dir)?;
        let staged = dir.join("yurt-ebpf.o.new");
        fs::write(&staged, &bytes)?;
        fs::rename(&staged, object)
    };
    write().with_context(|| format!("cannot write {}", object.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_linker_is_told_from_a_newer_one() {
        assert!(parse_version("bpf-linker 0.9.15\n") < Some(LINKER_AT_LEAST));
        assert!(parse_version("bpf-linker 0.13.0\n") >= Some(LINKER_AT_LEAST));
        assert!(parse_version("bpf-linker 1.0.0-rc1") >= Some(LINKER_AT_LEAST));
        assert_eq!(parse_version("what"), None);
    }
}
