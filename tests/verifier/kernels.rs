//! Kernels of other Debian releases under qemu: the lab's own tests are run there, feature by feature. `cargo xtask
//! test-kernel` fetches the kernels and says what else is needed.

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

/// Below it, hooks cannot choose the error of a call that they refuse.
const CHOOSES_ERRORS: [u32; 2] = [6, 1];
/// Below it, only the machine's first network namespace is known as the node's, and the nodes of the lab have others.
const KNOWS_NAMESPACES: [u32; 2] = [5, 14];
/// What is about a node's own namespace.
const OF_NAMESPACES: [&str; 1] =
    ["frontends::host_processes_reach_the_node_port_on_all_of_loopback"];

#[test]
#[ignore = "cargo xtask test-kernel runs it, for minutes"]
fn every_feature_works_on_another_kernel() -> Result<()> {
    let dir = PathBuf::from(variable("YURT_KERNEL")?);
    let wanted = std::env::var("YURT_KERNEL_FEATURE").unwrap_or_default();
    let features = FEATURES.iter().filter(|(name, _)| name.contains(&wanted));
    let features: Vec<_> = features.collect();
    ensure!(!features.is_empty(), "no feature is called {wanted}");
    let architecture = variable("YURT_KERNEL_ARCHITECTURE")?;
    let guest = Guest {
        architecture: &architecture,
        kernel: &dir.join("vmlinuz"),
        processors: variable("YURT_KERNEL_PROCESSORS")?.parse()?,
        memory: 2048,
        has_own_time: true,
        parameters: "",
        patience: PATIENCE,
    };
    let release: Vec<u32> = variable("YURT_KERNEL_RELEASE")?
        .split('.')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let mut environment = "export YURT_NET_BIN=/bin/yurt-net RUST_BACKTRACE=0".to_owned();
    if release[..] < CHOOSES_ERRORS[..] {
        environment.push_str(" YURT_LAB_REFUSAL=EPERM");
    }
    let without = if release[..] < KNOWS_NAMESPACES[..] {
        &OF_NAMESPACES[..]
    } else {
        &[]
    };
    let lines = features.iter().map(|(_, tests)| {
        let without = without.iter().map(|test| format!(" --skip {test}"));
        format!("{tests}{}\n", without.collect::<String>())
    });
    let mut initramfs = initramfs(&architecture, &dir)?;
    initramfs.file("/environment", environment.as_bytes());
    initramfs.file("/features", lines.collect::<String>().as_bytes());
    let console = guest.boot(&initramfs.finish(), REMEDY)?;
    eprintln!("{console}");
    // As `YURT passed 6 in 34 s: refusal::`.
    let passed = |tests: &str| {
        let mut counts = console.lines().filter_map(|line| {
            let (count, rest) = line.strip_prefix("YURT passed ")?.split_once(" in ")?;
            let (_, passed) = rest.split_once(" s: ")?;
            (passed.split_whitespace().next() == Some(tests)).then_some(count)
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

fn initramfs(architecture: &str, dir: &Path) -> Result<Initramfs> {
    let scratch = tempfile::tempdir()?;
    let mut initramfs = Initramfs::new(INIT);
    let lab_tests = PathBuf::from(variable("YURT_LAB_TESTS")?);
    // Cargo builds the programs of the tests with these, one directory above.
    let built = lab_tests.ancestors().nth(2);
    let lab_worker = built.context("the tests of the lab are not where cargo builds them")?;
    for (name, program) in [
        ("yurt-net", lab::agent_program()?),
        ("lab-worker", lab_worker.join("lab-worker")),
        ("lab-tests", lab_tests),
    ] {
        let program = stripped(architecture, &program, scratch.path())?;
        initramfs.program(&format!("/bin/{name}"), &program)?;
    }
    if let Some(userland) = std::env::var_os("YURT_KERNEL_USERLAND") {
        initramfs.tree(Path::new(&userland))?;
    } else {
        initramfs.busybox(REMEDY)?;
        let ip = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].map(Path::new);
        let ip = ip.into_iter().find(|path| path.exists());
        initramfs.program("/bin/ip", ip.context("no ip; run `cargo xtask setup`")?)?;
    }
    let modules = dir.join("modules");
    for module in fs::read_dir(&modules).with_context(|| modules.display().to_string())? {
        let module = module?;
        let name = module.file_name();
        initramfs.file(
            &format!("/modules/{}", name.display()),
            &fs::read(module.path())?,
        );
    }
    Ok(initramfs)
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set; {REMEDY}"))
}
