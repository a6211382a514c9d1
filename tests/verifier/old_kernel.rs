//! Debian's 6.1 kernel, booted under qemu with nothing in it but busybox and a program of ours, on one processor.
//!
//! Every program is loaded there, a Service is served, and one without endpoints is refused; and what waits for a program
//! that was preempted is tried where it can be. No network, no disk: all files are in the initramfs, and what happens is read
//! from the serial console.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use yurt_net_tests::lab;

use crate::cpio::Archive;

/// Names the kernel to boot instead of the one that `cargo xtask setup --kernel` fetches.
const KERNEL: &str = "YURT_OLD_KERNEL";
const REMEDY: &str = "run `cargo xtask setup --kernel`";
const PATIENCE: Duration = Duration::from_secs(600);

const INIT: &str = include_str!("init.sh");
const INIT_GRACE: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/grace-period 2>&1
/bin/busybox poweroff -f
";
const MANIFESTS: &str = include_str!("old_kernel.yaml");

#[test]
fn debians_6_1_kernel_loads_every_program_and_serves_and_refuses() -> Result<()> {
    let agent = lab::agent_program()?;
    let manifests = ("manifests/cluster.yaml", MANIFESTS);
    let console = boot(&initramfs(INIT, &agent, "yurt-net", &[manifests])?, "")?;
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
    // With its debug information it is larger than the guest's memory.
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("grace-period");
    let stripped = Command::new("strip")
        .arg("-o")
        .arg(&program)
        .arg(env!("CARGO_BIN_EXE_grace-period"))
        .status()
        .context("run strip, which comes with the linker")?;
    ensure!(stripped.success(), "strip: {stripped}");
    let image = initramfs(INIT_GRACE, &program, "grace-period", &[])?;
    let console = boot(&image, "preempt=full")?;
    // The firmware's last words are on the first line.
    let said = |line: &str| console.lines().any(|said| said.trim_end().ends_with(line));
    assert!(said("YURT grace period: 10 of 10 had ended"), "{console}");
    // Else the guest has not shown that anything had to be waited for.
    assert!(said("YURT membarrier: 0 of 10 had ended"), "{console}");
    Ok(())
}

/// What the guest says on its console. `parameters` are for its kernel.
fn boot(initramfs: &[u8], parameters: &str) -> Result<String> {
    let kernel = kernel()?;
    let dir = tempfile::tempdir()?;
    let [initrd, console] = ["initrd", "console"].map(|name| dir.path().join(name));
    fs::write(&initrd, initramfs)?;
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-m",
            "512",
            "-smp",
            "1",
            "-nographic",
            "-no-reboot",
            "-nic",
            "none",
        ])
        .args([OsStr::new("-kernel"), kernel.as_os_str()])
        .args([OsStr::new("-initrd"), initrd.as_os_str()])
        .arg("-append")
        .arg(format!("console=ttyS0 panic=-1 quiet {parameters}"))
        .stdin(Stdio::null())
        .stdout(File::create(&console)?)
        .stderr(File::create(dir.path().join("stderr"))?)
        .spawn()
        .with_context(|| format!("start qemu-system-x86_64; {REMEDY}"))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = qemu.try_wait()? {
            break Some(status);
        }
        if Instant::now() > deadline {
            qemu.kill()?;
            qemu.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
    match status {
        Some(status) if status.success() => Ok(said),
        Some(status) => {
            let complaint = fs::read_to_string(dir.path().join("stderr"))?;
            bail!("qemu: {status}\n{complaint}\n{said}")
        }
        None => bail!("the guest still runs after {PATIENCE:?}:\n{said}"),
    }
}

fn kernel() -> Result<PathBuf> {
    let path = match std::env::var_os(KERNEL) {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kernels/6.1/vmlinuz"),
    };
    ensure!(path.is_file(), "no kernel at {}; {REMEDY}", path.display());
    Ok(path)
}

/// Busybox, a program under a name, the libraries that it is linked with, at the paths that they have here, and other files.
fn initramfs(init: &str, program: &Path, name: &str, files: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for directory in ["bin", "dev", "proc", "sys", "run", "manifests"] {
        archive.directory(directory);
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .with_context(|| format!("no busybox; {REMEDY}"))?;
    archive.file("bin/busybox", &fs::read(busybox)?);
    archive.file(&format!("bin/{name}"), &fs::read(program)?);
    let mut directories = Vec::new();
    for library in libraries(program)? {
        for directory in Path::new(&library).ancestors().skip(1) {
            let directory = directory.display().to_string();
            if directory != "/" && !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        directories.sort();
    }
    for directory in &directories {
        archive.directory(directory);
    }
    for library in libraries(program)? {
        archive.file(&library, &fs::read(&library)?);
    }
    for (path, content) in files {
        archive.file(path, content.as_bytes());
    }
    archive.file("init", init.as_bytes());
    Ok(archive.finish())
}

/// What `ldd` lists: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x..)`, and the loader by its path.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect())
}
