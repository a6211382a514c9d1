//! Debian's archive as this machine's apt finds it, for any release and machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::Release;
use crate::build::Target;
use crate::shell::Line;

/// Debian's own keys, for all releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package lists of one release and one kind of machine, apart from those of this machine.
pub(super) struct Apt {
    target: Target,
    dir: PathBuf,
}

impl Apt {
    /// Fetches the lists.
    pub(super) fn new(release: Release, target: Target, dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(dir.join("lists/partial"))?;
        fs::create_dir_all(dir.join("cache/archives/partial"))?;
        fs::write(dir.join("status"), "")?;
        let known = Line::new("apt-get indextargets --format")
            .arg("$(SITE) $(RELEASE)")
            .arg("Created-By: Packages")
            .output()?;
        let sources = sources(&known, release.suite());
        ensure!(
            !sources.is_empty(),
            "this machine's apt knows no archive of Debian; run apt-get update"
        );
        fs::write(dir.join("sources.list"), sources)?;
        let apt = Self { target, dir };
        apt.line("apt-get").arg("update").run()?;
        Ok(apt)
    }

    /// One of apt's programs, with this release instead of the machine's.
    pub(super) fn line(&self, program: &str) -> Line {
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let file = |name: &str| self.dir.join(name);
        let options = [
            option("Dir::Etc::SourceList", &file("sources.list")),
            option("Dir::Etc::SourceParts", Path::new("/dev/null")),
            option("Dir::State::Lists", &file("lists")),
            option("Dir::State::status", &file("status")),
            option("Dir::Cache", &file("cache")),
            "Acquire::Languages=none".to_owned(),
            format!("APT::Architecture={}", self.target.arch()),
            format!("APT::Architectures={}", self.target.arch()),
            // Otherwise apt downloads as a user who cannot write here.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let options = options
            .into_iter()
            .flat_map(|option| ["-o".to_owned(), option]);
        Line::new(program).args(options)
    }

    /// The packages whose names match a regular expression.
    pub(super) fn packages(&self, names: &str) -> Result<Vec<String>> {
        let listed = self.line("apt-cache").args(["search", "--names-only"]);
        let listed = listed.arg(names).output()?;
        let names = listed
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }
}

/// The archive's main and security parts for a release, at the addresses of the releases in `known`: lines `SITE
/// RELEASE`.
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
        // Archives of other vendors have other releases.
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

#[cfg(test)]
mod tests {
    use super::*;

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
