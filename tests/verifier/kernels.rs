//! Kernels of other Debian releases under qemu: the lab's own tests are run there, feature by feature. `cargo xtask test-kernel`
//! fetches the kernels and says what else is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use yurt_net_tests::lab;

use crate::guest::{Guest, Initramfs, stripped};

const REMEDY: &str = "run `cargo xtask test-kernel VERSION`";
/// A kernel emulated on a busy machine takes minutes for the verifier alone.
const PATIENCE: Duration = Duration::from_secs(3600);

const INIT: &str = include_str!("kernels.sh");

/// What works there, and the lab's tests that say so: names of tests begin with it.
const FEATURES: [(&str, &str); 6] = [
    (
        "sockets: every frontend, TCP and UDP, both families",
        "frontends::",
    ),
    ("refusals", "refusal::"),
    ("UDP: one backend, answers from the address asked", "udp::"),
    ("traffic policies", "policies::"),
    ("affinity", "affinity::"),
    ("packet path: clients outside", "outside::"),
];

#[test]
#[ignore = "cargo xtask test-kernel runs it, for minutes"]
fn every_feature_works_on_another_kernel() -> Result<()> {
    let dir = PathBuf::from(variable("YURT_KERNEL")?);
    let wanted = std::env::var("YURT_KERNEL_FEATURE").unwrap_or_default();
    let features = FEATURES.iter().filter(|(name, _)| name.contains(&wanted));
    let features: Vec<_> = features.collect();
    ensure!(!features.is_empty(), "no feature is called {wanted}");
    let guest = Guest {
        kernel: &dir.join("vmlinuz"),
        processors: variable("YURT_KERNEL_PROCESSORS")?.parse()?,
        memory: 2048,
        parameters: "",
        patience: PATIENCE,
    };
    let tests: Vec<&str> = features.iter().map(|(_, tests)| *tests).collect();
    let console = guest.boot(&initramfs(&dir, &tests)?, REMEDY)?;
    eprintln!("{console}");
    // As `YURT passed 6 in 34 s: refusal::`.
    let passed = |tests: &str| {
        let mut counts = console.lines().filter_map(|line| {
            let (count, rest) = line.strip_prefix("YURT passed ")?.split_once(" in ")?;
            rest.trim_end()
                .ends_with(&format!(" s: {tests}"))
                .then_some(count)
        });
        counts.any(|count| count != "0")
    };
    let mut failed = Vec::new();
    for (feature, tests) in features {
        let is_good = passed(tests);
        eprintln!("{} {feature}", if is_good { "ok    " } else { "FAILED" });
        failed.extend((!is_good).then_some(*feature));
    }
    ensure!(
        failed.is_empty(),
        "not on this kernel: {}",
        failed.join("; ")
    );
    ensure!(
        console.contains("YURT done"),
        "the guest did not get to its end"
    );
    Ok(())
}

fn initramfs(dir: &Path, tests: &[&str]) -> Result<Vec<u8>> {
    let scratch = tempfile::tempdir()?;
    let mut initramfs = Initramfs::new(INIT, REMEDY)?;
    for (name, program) in [
        ("yurt-net", lab::agent_program()?),
        ("lab-tests", PathBuf::from(variable("YURT_LAB_TESTS")?)),
        (
            "lab-worker",
            PathBuf::from(env!("CARGO_BIN_EXE_lab-worker")),
        ),
    ] {
        let program = stripped(&program, scratch.path())?;
        initramfs.program(&format!("/bin/{name}"), &program)?;
    }
    let ip = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].map(Path::new);
    let ip = ip.into_iter().find(|path| path.exists());
    initramfs.program("/bin/ip", ip.context("no ip; run `cargo xtask setup`")?)?;
    let modules = dir.join("modules");
    for module in fs::read_dir(&modules).with_context(|| modules.display().to_string())? {
        let module = module?;
        let name = module.file_name();
        initramfs.file(
            &format!("/modules/{}", name.display()),
            &fs::read(module.path())?,
        );
    }
    initramfs.file("/features", format!("{}\n", tests.join("\n")).as_bytes());
    Ok(initramfs.finish())
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set; {REMEDY}"))
}
