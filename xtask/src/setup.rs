//! `setup`: installs what is missing if it can, and otherwise names it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::build::Target;
use crate::build_ebpf;
use crate::shell::{Line, find_program, is_root, root, say, target_dir};

/// Options of `setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also fetch the old kernel on which the tests load every program (not installed).
    #[arg(long)]
    kernel: bool,
}

/// Something a verb cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Licences and advisories.
    Deny,
    /// Runs the tests.
    Nextest,
    /// Compile and link for BPF.
    Ebpf,
    /// Feed the decoders.
    Fuzz,
    /// The lab of namespaces.
    Lab,
    /// Container networks.
    Cni,
    /// Containers.
    Cri,
    /// Boots the old kernel.
    Qemu,
    /// Static programs for x86_64.
    X86,
    /// Static programs for aarch64.
    Arm,
    /// Runs programs for aarch64.
    Emulator,
    /// Renders the chart.
    Helm,
    /// Checks the alerts.
    Promtool,
}

/// Where a tool comes from.
enum Origin {
    Apt(&'static [&'static str]),
    Cargo(fn() -> Line),
    Rustup(Target),
    /// Put below `target/tools` and not installed.
    Fetched(fn() -> Result<()>),
}

/// A tool that can be installed.
struct Tool {
    need: Need,
    name: &'static str,
    purpose: &'static str,
    origin: Origin,
    is_present: fn() -> bool,
}

/// In the order of installation: cargo's tools need apt's to be built.
const TOOLS: &[Tool] = &[
    Tool {
        need: Need::Ebpf,
        name: "a Rust toolchain for BPF",
        purpose: "compiles the eBPF programs",
        origin: Origin::Apt(&["rustc-web", "libstd-rust-web-dev-bpf"]),
        is_present: || build_ebpf::toolchain().is_ok(),
    },
    Tool {
        need: Need::Ebpf,
        name: "LLVM 22",
        purpose: "bpf-linker is built against it",
        origin: Origin::Apt(&["llvm-22-dev"]),
        is_present: || has_linker() || Path::new(LLVM).join("bin/llvm-config").exists(),
    },
    Tool {
        need: Need::Ebpf,
        name: "a C++ compiler",
        purpose: "bpf-linker is linked with its library",
        origin: Origin::Apt(&["g++"]),
        is_present: || has_linker() || find_program("c++").is_some(),
    },
    Tool {
        need: Need::Fuzz,
        name: "a C++ compiler",
        purpose: "libFuzzer is built with it",
        origin: Origin::Apt(&["g++"]),
        is_present: || find_program("c++").is_some(),
    },
    Tool {
        need: Need::Lab,
        name: "ip",
        purpose: "builds the lab of namespaces",
        origin: Origin::Apt(&["iproute2"]),
        is_present: || find_program("ip").is_some(),
    },
    Tool {
        need: Need::Cni,
        name: "CNI plugins",
        purpose: "are the main plugins of the tests of retention",
        origin: Origin::Apt(&["containernetworking-plugins", "iptables"]),
        is_present: || {
            Path::new("/usr/lib/cni/bridge").exists() && find_program("iptables").is_some()
        },
    },
    Tool {
        need: Need::Cri,
        name: "containerd and runc",
        purpose: "run Pods in the test of the whole chain, each time in namespaces of their own",
        origin: Origin::Apt(&["containerd", "runc"]),
        is_present: || {
            let programs = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"];
            programs
                .into_iter()
                .all(|name| find_program(name).is_some())
        },
    },
    Tool {
        need: Need::Qemu,
        name: "qemu-system-x86_64",
        purpose: "boots the old kernel",
        origin: Origin::Apt(&["qemu-system-x86"]),
        is_present: || find_program("qemu-system-x86_64").is_some(),
    },
    Tool {
        need: Need::Qemu,
        name: "qemu-system-aarch64",
        purpose: "boots kernels for aarch64",
        origin: Origin::Apt(&["qemu-system-arm"]),
        is_present: || find_program("qemu-system-aarch64").is_some(),
    },
    Tool {
        need: Need::Qemu,
        name: "a static busybox",
        purpose: "is the user land of the old kernel",
        origin: Origin::Apt(&["busybox-static"]),
        is_present: has_static_busybox,
    },
    Tool {
        need: Need::X86,
        name: "a C compiler for x86_64",
        purpose: "compiles the cryptography's parts in C",
        origin: Origin::Apt(match Target::HOST {
            Target::X86 => &["gcc", "libc6-dev"],
            Target::Arm => &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
        }),
        is_present: || find_program("x86_64-linux-gnu-gcc").is_some(),
    },
    Tool {
        need: Need::Arm,
        name: "a C compiler for aarch64",
        purpose: "compiles the cryptography's parts in C",
        origin: Origin::Apt(match Target::HOST {
            Target::X86 => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            Target::Arm => &["gcc", "libc6-dev"],
        }),
        is_present: || find_program("aarch64-linux-gnu-gcc").is_some(),
    },
    Tool {
        need: Need::Emulator,
        name: "qemu-aarch64-static",
        purpose: "runs what was built for aarch64",
        origin: Origin::Apt(&["qemu-user-static"]),
        is_present: || find_program(EMULATOR).is_some(),
    },
    Tool {
        need: Need::X86,
        name: "Rust's library for static programs, x86_64",
        purpose: "is in what ships",
        origin: Origin::Rustup(Target::X86),
        is_present: || has_library(Target::X86),
    },
    Tool {
        need: Need::Arm,
        name: "Rust's library for static programs, aarch64",
        purpose: "is in what ships",
        origin: Origin::Rustup(Target::Arm),
        is_present: || has_library(Target::Arm),
    },
    Tool {
        need: Need::Helm,
        name: "pip",
        purpose: "fetches Helm's library",
        origin: Origin::Apt(&["python3-pip"]),
        is_present: || has_helm() || Line::new("python3 -m pip --version").output().is_ok(),
    },
    Tool {
        need: Need::Helm,
        name: "Helm's library",
        purpose: "renders the chart, in place of Helm's program, which no registry of packages has",
        origin: Origin::Fetched(fetch_helm),
        is_present: has_helm,
    },
    Tool {
        need: Need::Promtool,
        name: "promtool",
        purpose: "checks the alerts; Debian's package would also start a Prometheus",
        origin: Origin::Fetched(fetch_promtool),
        is_present: || tools().join("promtool").is_file(),
    },
    Tool {
        need: Need::Ebpf,
        name: "bpf-linker",
        purpose: "links the eBPF programs",
        origin: Origin::Cargo(|| {
            Line::new("cargo install bpf-linker --version 0.13.0 --no-default-features")
                .args(["--features", "llvm-22", "--force"])
                .env("LLVM_PREFIX", LLVM)
        }),
        is_present: has_linker,
    },
    Tool {
        need: Need::Deny,
        name: "cargo-deny",
        purpose: "says which licences and advisories come with the crates",
        origin: Origin::Cargo(|| {
            Line::new("cargo install cargo-deny --version 0.20.2 --locked --no-default-features")
        }),
        is_present: || find_program("cargo-deny").is_some(),
    },
    Tool {
        need: Need::Nextest,
        name: "cargo-nextest",
        purpose: "runs the tests, each in its own process",
        origin: Origin::Cargo(|| {
            Line::new("cargo install cargo-nextest --version 0.9.143 --locked")
        }),
        is_present: || find_program("cargo-nextest").is_some(),
    },
];

const LLVM: &str = "/usr/lib/llvm-22";
/// Runs one program of another architecture, with this machine's kernel.
pub(crate) const EMULATOR: &str = "qemu-aarch64-static";

/// What the tests need, which is everything that any verb needs.
pub(crate) const ALL: [Need; 13] = [
    Need::Deny,
    Need::Nextest,
    Need::Ebpf,
    Need::Fuzz,
    Need::Lab,
    Need::Cni,
    Need::Cri,
    Need::Qemu,
    Need::X86,
    Need::Arm,
    Need::Emulator,
    Need::Helm,
    Need::Promtool,
];

/// Installs everything that any verb needs.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure(&ALL)?;
    if args.kernel {
        let kernel = old_kernel()?;
        say(format_args!("setup: old kernel at {}", kernel.display()));
    }
    say("setup: nothing is missing");
    Ok(())
}

/// Installs what these needs lack; silent and quick if nothing is missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let is_missing = |tool: &&Tool| needs.contains(&tool.need) && !(tool.is_present)();
    let missing: Vec<&Tool> = TOOLS.iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for Tool { name, purpose, .. } in &missing {
        say(format_args!("setup: missing: {name} ({purpose})"));
    }
    let packages: Vec<&str> = missing
        .iter()
        .filter_map(|tool| match tool.origin {
            Origin::Apt(packages) => Some(packages),
            Origin::Cargo(_) | Origin::Rustup(_) | Origin::Fetched(_) => None,
        })
        .flatten()
        .copied()
        .collect();
    if !packages.is_empty() {
        apt_install(&packages)?;
    }
    for tool in &missing {
        match tool.origin {
            Origin::Apt(_) => {}
            Origin::Cargo(line) => {
                say(format_args!(
                    "setup: building {}, which takes some minutes",
                    tool.name
                ));
                line().run()?;
            }
            Origin::Rustup(target) => {
                Line::new("rustup target add").arg(target.triple()).run()?;
            }
            Origin::Fetched(fetch) => fetch()?,
        }
    }
    match missing.iter().find(|tool| !(tool.is_present)()) {
        None => Ok(()),
        Some(tool) if matches!(tool.origin, Origin::Cargo(_)) => bail!(
            "{} was installed but does not start; is cargo's bin directory on PATH?",
            tool.name
        ),
        Some(tool) => bail!("{} is still missing after its installation", tool.name),
    }
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let packages = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "there is no apt-get here; install what these Debian packages hold, then run \
             `cargo xtask setup` again: {packages}"
        );
    }
    if !is_root() {
        bail!("not root; run `sudo apt-get install {packages}`, then `cargo xtask setup` again");
    }
    apt_update()?;
    Line::new("apt-get install -y --no-install-recommends")
        .args(packages.split(' '))
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
        .with_context(|| format!("cannot install the Debian packages {packages}"))
}

fn apt_update() -> Result<()> {
    Line::new("apt-get update").run()
}

/// Whether the toolchain of this project can link for `target`.
fn has_library(target: Target) -> bool {
    let line = Line::new("rustc --print target-libdir --target").arg(target.triple());
    line.output()
        .is_ok_and(|dir| Path::new(dir.trim()).join("self-contained").is_dir())
}

/// Where tools are that are fetched and not installed.
fn tools() -> PathBuf {
    target_dir().join("tools")
}

/// Whether Python loads it: the wheel holds a library for this machine.
fn has_helm() -> bool {
    let line = Line::new("python3 -c").arg("import helm_python");
    line.env("PYTHONPATH", tools().join("helm"))
        .output()
        .is_ok()
}

fn fetch_helm() -> Result<()> {
    let place = tools().join("helm");
    let _ = fs::remove_dir_all(&place);
    Line::new("python3 -m pip install --no-deps --only-binary=:all: --root-user-action=ignore")
        .args(["--disable-pip-version-check", "helm-python-sdk==0.2.2"])
        .arg("--target")
        .arg(&place)
        .run()?;
    // The wheel has the library three times, 85 MB each.
    for copy in ["libhelm_c.so.0", "libhelm_c.so.0.2.2"] {
        let _ = fs::remove_file(place.join("helm_python/lib").join(copy));
    }
    Ok(())
}

fn has_linker() -> bool {
    build_ebpf::linker().is_ok()
}

/// Whether busybox is static: a dynamic one does not start in an initramfs. `ldd` fails on a static program.
fn has_static_busybox() -> bool {
    find_program("busybox").is_some_and(|file| Line::new("ldd").arg(file).output().is_err())
}

/// The image of Debian's 6.1 cloud kernel, fetched but not installed.
///
/// It is the oldest kernel that Debian still maintains in the release that the project builds on.
pub(crate) fn old_kernel() -> Result<PathBuf> {
    let dir = root().join("target/kernels/6.1");
    let image = dir.join("vmlinuz");
    if image.exists() {
        return Ok(image);
    }
    say("setup: missing: Debian's 6.1 kernel (the tests load every program on it)");
    if find_program("apt-get").is_none() {
        bail!(
            "there is no apt-get here; unpack vmlinuz of Debian's linux-image-6.1.0-*-cloud-amd64 \
             as {}",
            image.display()
        );
    }
    // Outdated lists name packages that the mirror no longer has.
    fetch_kernel(&dir, &image).or_else(|error| {
        if !is_root() {
            return Err(error.context("not root; run `sudo apt-get update` and try again"));
        }
        say(format_args!("setup: {error:#}; trying with new lists"));
        apt_update()?;
        fetch_kernel(&dir, &image)
    })?;
    Ok(image)
}

fn fetch_kernel(dir: &Path, image: &Path) -> Result<()> {
    let listed = Line::new("apt-cache search --names-only")
        .arg("^linux-image-6\\.1\\.0-[0-9]+-cloud-amd64$")
        .output()?;
    let package = newest_kernel(&listed)
        .context("apt knows no linux-image-6.1.0-*-cloud-amd64; Debian 12's archive has it")?;

    let download = dir.join("download");
    unpack(package, &download)?;
    let version = package.trim_start_matches("linux-image-");
    fs::rename(download.join(format!("boot/vmlinuz-{version}")), image)
        .with_context(|| format!("{package} holds no kernel image"))?;
    fs::remove_dir_all(&download)?;
    Ok(())
}

/// Downloads one of Debian's packages and unpacks it here, without installing it.
fn unpack(package: &str, download: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(download);
    fs::create_dir_all(download)?;
    // Otherwise apt downloads as a user who cannot write here.
    Line::new("apt-get download -o APT::Sandbox::User=root")
        .arg(package)
        .dir(download)
        .run()?;
    let archive = fs::read_dir(download)?
        .find_map(|entry| entry.ok().map(|entry| entry.path()))
        .context("apt-get download left no file")?;
    Line::new("dpkg-deb -x").arg(archive).arg(download).run()
}

fn fetch_promtool() -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!(
            "there is no apt-get here; put Prometheus' promtool at {}",
            tools().join("promtool").display()
        );
    }
    let download = tools().join("download");
    // Outdated lists name packages that the mirror no longer has.
    if let Err(error) = unpack("prometheus", &download) {
        say(format_args!("setup: {error:#}; trying with new lists"));
        apt_update()?;
        unpack("prometheus", &download)?;
    }
    fs::rename(download.join("usr/bin/promtool"), tools().join("promtool"))
        .context("the package holds no promtool")?;
    fs::remove_dir_all(&download)?;
    Ok(())
}

/// The package with the highest ABI number in the output of `apt-cache search`.
fn newest_kernel(listed: &str) -> Option<&str> {
    let names = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names.max_by_key(|name| {
        let number = name.trim_start_matches("linux-image-6.1.0-").split('-');
        number.take(1).find_map(|digits| digits.parse::<u32>().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_highest_number_not_the_last_word() {
        let listed = "linux-image-6.1.0-100-cloud-amd64 - Linux 6.1 (signed)\n\
                      linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 (signed)\n\
                      linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 (signed)\n";
        assert_eq!(
            newest_kernel(listed),
            Some("linux-image-6.1.0-100-cloud-amd64")
        );
        assert_eq!(newest_kernel(""), None);
    }
}
