//! Debian's 6.1 kernel, booted under qemu with nothing in it but busybox and a program of ours, on one processor.
//!
//! Every program is loaded there, a Service is served, and one without endpoints is refused; and what waits for a
//! program that was preempted is tried where it can be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use yurt_net_tests::lab;

use crate::guest::{Guest, Initramfs, stripped};

/// Names the kernel to boot instead of the one that `cargo xtask setup --kernel` fetches.
const KERNEL: &str = "YURT_OLD_KERNEL";
const REMEDY: &str = "run `cargo xtask setup --kernel`";

/// The tests' own, which is their kernel's, too.
const ARCHITECTURE: &str = "x86_64";

const INIT: &str = include_str!("init.sh");
const INIT_GRACE: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/grace-period 2>&1
/bin/busybox poweroff -f
";
const MANIFESTS: &str = include_str!("old_kernel.yaml");

#[test]
fn debians_6_1_kernel_loads_every_program_and_serves_and_refuses() -> Result<()> {
    let mut initramfs = Initramfs::new(INIT);
    initramfs.busybox(REMEDY)?;
    initramfs.program("/bin/yurt-net", &lab::agent_program()?)?;
    initramfs.file("/manifests/cluster.yaml", MANIFESTS.as_bytes());
    let console = boot(initramfs, "")?;
    // The last lines are what an engineer wants to see of a failure.
    let said = |line: &str| console.lines().any(|said| said.trim_end() == line);
    assert!(
        said("YURT done"),
        "the guest did not get to its end:\n{console}"
    );
    for line in [
        "YURT check ok",
        "YURT ready",
        "YURT served tcp4: hello",
        "YURT refused",
    ] {
        assert!(said(line), "no {line:?} in:\n{console}");
    }
    // Services do without them, so `check` does as well.
    for optional in ["guard", "translation", "peer-repair"] {
        let line = format!("ok       {optional}");
        let loads = console.lines().any(|said| said.starts_with(&line));
        assert!(loads, "{optional}: does not load:\n{console}");
    }
    eprintln!("{console}");
    Ok(())
}

#[test]
fn a_grace_period_on_one_processor_waits_for_a_program_that_was_preempted() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = Path::new(env!("CARGO_BIN_EXE_grace-period"));
    let program = stripped(ARCHITECTURE, program, dir.path())?;
    let mut initramfs = Initramfs::new(INIT_GRACE);
    initramfs.busybox(REMEDY)?;
    initramfs.program("/bin/grace-period", &program)?;
    let console = boot(initramfs, "preempt=full")?;
    // The firmware's last words are on the first line.
    let said = |line: &str| console.lines().any(|said| said.trim_end().ends_with(line));
    assert!(said("YURT grace period: 10 of 10 had ended"), "{console}");
    // Else the guest has not shown that anything had to be waited for.
    assert!(said("YURT membarrier: 0 of 10 had ended"), "{console}");
    Ok(())
}

fn boot(initramfs: Initramfs, parameters: &str) -> Result<String> {
    let guest = Guest {
        architecture: ARCHITECTURE,
        kernel: &kernel()?,
        processors: 1,
        memory: 512,
        has_own_time: false,
        parameters,
        patience: Duration::from_secs(600),
    };
    guest.boot(&initramfs.finish(), REMEDY)
}

fn kernel() -> Result<PathBuf> {
    let path = match std::env::var_os(KERNEL) {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kernels/6.1/vmlinuz"),
    };
    ensure!(path.is_file(), "no kernel at {}; {REMEDY}", path.display());
    Ok(path)
}
