//! The kernel of a Debian release: its image, and the modules that the lab needs.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use super::archive::Apt;
use super::{Kernel, modules};
use crate::shell::{Line, find_program, say};

/// Fetches image and modules, unless they are here.
pub(super) fn fetch(kernel: Kernel) -> Result<()> {
    let dir = kernel.dir();
    if dir.join("vmlinuz").exists() && dir.join("modules").exists() {
        return Ok(());
    }
    say(format_args!(
        "test-kernel: missing: Debian's {kernel} kernel"
    ));
    ensure!(
        find_program("apt-get").is_some(),
        "there is no apt-get here; unpack a package whose name matches {} and put its image at {}, and its modules, numbered in \
         the order in which they are loaded (010-veth.ko), into {}",
        kernel.packages(),
        dir.join("vmlinuz").display(),
        dir.join("modules").display()
    );
    let apt = Apt::new(kernel.release, kernel.target, dir.join("apt"))?;
    let download = dir.join("download");
    let mut packages = apt.packages(&kernel.packages())?;
    packages.sort_by_key(|name| numbers(name));
    // A mirror may lack the newest package for some hours.
    while let Some(package) = packages.pop() {
        let _ = fs::remove_dir_all(&download);
        fs::create_dir_all(&download)?;
        if apt
            .line("apt-get")
            .arg("download")
            .arg(&package)
            .dir(&download)
            .run()
            .is_err()
        {
            continue;
        }
        let archive = fs::read_dir(&download)?.find_map(|entry| Some(entry.ok()?.path()));
        let archive = archive.context("apt-get download left no file")?;
        Line::new("dpkg-deb -x").arg(archive).arg(&download).run()?;
        let version = package.trim_start_matches("linux-image-");
        let modules =
            ["lib/modules", "usr/lib/modules"].map(|below| download.join(below).join(version));
        let modules = modules.iter().find(|dir| dir.is_dir());
        modules::take(
            modules.context("the package holds no modules")?,
            &dir.join("modules"),
        )?;
        fs::rename(
            download.join(format!("boot/vmlinuz-{version}")),
            dir.join("vmlinuz"),
        )
        .with_context(|| format!("{package} holds no kernel image"))?;
        fs::remove_dir_all(&download)?;
        return Ok(());
    }
    bail!(
        "apt has no package whose name matches {}",
        kernel.packages()
    )
}

/// All numbers in a name, by which kernels are ordered.
fn numbers(name: &str) -> Vec<u32> {
    let digits = name.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let mut names = [
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.12.74+deb13-cloud-amd64",
        ];
        names.sort_by_key(|name| numbers(name));
        assert_eq!(names[2], "linux-image-6.12.117+deb13-cloud-amd64");
    }
}
