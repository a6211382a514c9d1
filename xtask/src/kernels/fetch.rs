//! The kernel of a Debian release, from the archive that this machine's apt uses, whatever release the machine has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Kernel, modules};
use crate::shell::{Line, find_program, say};

/// Debian's own keys, of all releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    let apt = Apt::new(kernel, dir.join("apt"))?;
    let download = dir.join("download");
    let mut packages = apt.packages()?;
    packages.sort_by_key(|name| numbers(name));
    // A mirror may lack the last one for some hours.
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

/// The lists of one release, apart from those of this machine.
struct Apt {
    kernel: Kernel,
    dir: PathBuf,
}

impl Apt {
    fn new(kernel: Kernel, dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(dir.join("lists/partial"))?;
        fs::create_dir_all(dir.join("cache/archives/partial"))?;
        fs::write(dir.join("status"), "")?;
        let known = Line::new("apt-get indextargets --format")
            .arg("$(SITE) $(RELEASE)")
            .arg("Created-By: Packages")
            .output()?;
        let sources = sources(&known, kernel.suite());
        ensure!(
            !sources.is_empty(),
            "this machine's apt knows no archive of Debian; run apt-get update"
        );
        fs::write(dir.join("sources.list"), sources)?;
        let apt = Self { kernel, dir };
        apt.line("apt-get").arg("update").run()?;
        Ok(apt)
    }

    /// One of apt's programs, with this release in the place of the machine's.
    fn line(&self, program: &str) -> Line {
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let file = |name: &str| self.dir.join(name);
        let options = [
            option("Dir::Etc::SourceList", &file("sources.list")),
            option("Dir::Etc::SourceParts", Path::new("/dev/null")),
            option("Dir::State::Lists", &file("lists")),
            option("Dir::State::status", &file("status")),
            option("Dir::Cache", &file("cache")),
            "Acquire::Languages=none".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            // Root's downloads are otherwise handed to a user who cannot write here.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let options = options
            .into_iter()
            .flat_map(|option| ["-o".to_owned(), option]);
        Line::new(program).args(options)
    }

    fn packages(&self) -> Result<Vec<String>> {
        let listed = self.line("apt-cache").args(["search", "--names-only"]);
        let listed = listed.arg(self.kernel.packages()).output()?;
        let names = listed
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }
}

/// The archive's main and security parts for a release, by where they are for the releases in `known`: lines `SITE RELEASE`.
fn sources(known: &str, suite: &str) -> String {
    let mut sources = Vec::new();
    for line in known.lines() {
        let Some((site, release)) = line.split_once(' ') else {
            continue;
        };
        let suffix = match release.split_once('-') {
            None => "",
            Some((_, "security")) => "-security",
            Some(_) => continue,
        };
        // Other vendors' archives have other releases.
        if site.trim_end_matches('/').ends_with("debian") || suffix == "-security" {
            sources.push(format!(
                "deb [signed-by={KEYRING}] {site} {suite}{suffix} main\n"
            ));
        }
    }
    sources.sort();
    sources.dedup();
    sources.concat()
}

/// All numbers in a name, which order kernels.
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

    #[test]
    fn another_release_is_asked_for_where_this_machines_is() {
        let known = "http://mirror.example/debian bookworm\nhttp://mirror.example/debian bookworm-updates\n\
                     http://mirror.example/debian-security bookworm-security\nhttps://vendor.example/apt stable\n";
        let expected = format!(
            "deb [signed-by={KEYRING}] http://mirror.example/debian bullseye main\n\
             deb [signed-by={KEYRING}] http://mirror.example/debian-security bullseye-security main\n"
        );
        assert_eq!(sources(known, "bullseye"), expected);
    }
}
