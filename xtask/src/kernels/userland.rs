//! Programs of other projects for an emulated machine of another architecture: busybox, `ip`, and the libraries of
//! `ip`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Release;
use super::archive::Apt;
use crate::build::Target;
use crate::shell::{Line, find_program, say, target_dir};

/// Fetches them, unless they are here. In the directory that is returned, each file has its path on the emulated
/// machine.
pub(super) fn fetch(target: Target) -> Result<PathBuf> {
    let dir = target_dir().join("kernels/userland").join(target.arch());
    let userland = dir.join("root");
    if userland.exists() {
        return Ok(userland);
    }
    say(format_args!(
        "test-kernel: missing: busybox and ip for {}",
        target.arch()
    ));
    ensure!(
        find_program("apt-get").is_some(),
        "there is no apt-get here; put a static busybox, ip (iproute2) and the libraries that it needs below {}, each at \
         the path that it has on a machine: bin/busybox, bin/ip",
        userland.display()
    );
    // The release that still has the programs at their traditional paths.
    let apt = Apt::new(Release::Bookworm, target, dir.join("apt"))?;
    apt.line("apt-get")
        .args([
            "install",
            "--download-only",
            "--yes",
            "--no-install-recommends",
        ])
        .args(["busybox-static", "iproute2"])
        .run()?;
    let unpacked = dir.join("unpacked");
    for archive in fs::read_dir(dir.join("apt/cache/archives"))? {
        let archive = archive?.path();
        if archive
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            Line::new("dpkg-deb -x").arg(archive).arg(&unpacked).run()?;
        }
    }
    // The directory appears only when it is complete.
    let partial = dir.join("partial");
    let _ = fs::remove_dir_all(&partial);
    for file in ["bin/busybox", "bin/ip", loader(target)] {
        copy(&unpacked.join(file), &partial.join(file))?;
    }
    for library in libraries(target, &unpacked)? {
        copy(&unpacked.join(&library), &partial.join(&library))?;
    }
    fs::rename(&partial, &userland)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(userland)
}

/// The interpreter that programs name, relative to the root.
const fn loader(target: Target) -> &'static str {
    match target {
        Target::X86 => "lib64/ld-linux-x86-64.so.2",
        Target::Arm => "lib/ld-linux-aarch64.so.1",
    }
}

/// The libraries of `ip`, relative to the root. Its own loader, which runs here, finds them.
fn libraries(target: Target, root: &Path) -> Result<Vec<String>> {
    let listed = Line::new(&format!("qemu-{}-static -L", target.machine()))
        .arg(root)
        .arg(root.join(loader(target)))
        .arg("--list")
        .arg(root.join("bin/ip"))
        .output()?;
    // As `libc.so.6 => /lib/aarch64-linux-gnu/libc.so.6 (0x..)`; the loader itself has a path on the left.
    let libraries = listed.lines().filter_map(|line| {
        let (name, found) = line.split_once(" => /")?;
        let path = found.split_whitespace().next()?;
        (!name.contains('/')).then_some(path)
    });
    Ok(libraries.map(str::to_owned).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}
