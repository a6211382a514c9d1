//! `cni`: puts the plugins into the node's configuration, and takes them out.

use std::io;
use std::path::Path;

use crate::cni::install::Directories;
use crate::cni::install::files::{InstallError, Report};
use crate::config::flags::{CniArgs, CniVerb};
use crate::output::print;
use crate::text;

/// Why the verb failed.
#[derive(Debug, thiserror::Error)]
pub enum CniVerbError {
    /// The configuration or a plugin could not be written.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Standard output.
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// Installs or uninstalls, and prints what was done.
pub fn cni(args: &CniArgs) -> Result<(), CniVerbError> {
    let cni = args.cni.cni();
    match args.verb {
        CniVerb::Install => {
            let has_installed = cni.install_plugins()?;
            let directories = Directories {
                data_dir: args.state_dir.display().to_string(),
                run_dir: args.run_dir.display().to_string(),
            };
            let report = cni.install_config(&directories)?;
            print(installed(has_installed, &cni.bin_dir, &report))?;
        }
        CniVerb::Uninstall => {
            // The configuration comes first: it must not name plugins that are gone.
            let report = cni.uninstall_config()?;
            cni.uninstall_plugins()?;
            match report {
                Some(Report {
                    config,
                    has_written: true,
                    ..
                }) => print(format_args!(
                    "removed from {}\n",
                    text::line(&config.display().to_string())
                ))?,
                _ => print("nothing to remove\n")?,
            }
        }
    }
    Ok(())
}

/// What was done, as text. Names of files, and of plugins in them, come from others, and are escaped.
fn installed(has_installed: bool, bin_dir: &Path, report: &Report) -> String {
    let said = |is_new, what: &str, at: &Path| {
        let at = at.display().to_string();
        let done = if is_new { "installed" } else { "as they are" };
        format!("{what} in {}: {done}\n", text::line(&at))
    };
    let mut all = said(has_installed, "plugins", bin_dir);
    all += &said(report.has_written, "settings", &report.config);
    if let Some(ipam) = &report.other_ipam {
        all += &format!(
            "addresses are given by {}: Pods keep their MAC, and their address as far as that one sees to it\n",
            text::name(ipam)
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_and_plugins_are_shown_without_what_forges_lines() {
        let report = Report {
            config: "/etc/cni/net.d/10-\u{1b}[2K\u{202e}x\n.conflist".into(),
            has_written: true,
            other_ipam: Some("host-local\nplugins in /x: installed\r".to_owned()),
        };
        let said = installed(false, Path::new("/opt/cni/bin"), &report);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{said}");
        assert!(lines.iter().all(|line| line.chars().all(text::is_plain)));
        assert_eq!(lines[0], "plugins in /opt/cni/bin: as they are");
        assert!(lines[2].starts_with(r"addresses are given by host-local\nplugins in /x"));
    }
}
