//! `cni`: the plugins into the node's configuration, and out of it.

use std::io;

use crate::config::{CniArgs, CniVerb};
use crate::output::print;
use crate::retain::install::Directories;
use crate::retain::install::files::{InstallError, Report};

/// Why it is not done, or not said.
#[derive(Debug, thiserror::Error)]
pub enum CniVerbError {
    /// It is not done.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Standard output.
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// Does it, and prints what was done.
pub fn cni(args: &CniArgs) -> Result<(), CniVerbError> {
    let cni = args.cni.cni();
    match args.verb {
        CniVerb::Install => {
            let has_installed = cni.install_plugins()?;
            let directories = Directories {
                data_dir: args.state_dir.display().to_string(),
                run_dir: args.run_dir.display().to_string(),
            };
            let Report {
                config,
                has_written,
                other_ipam,
            } = cni.install_config(&directories)?;
            let said = |is_new, what: &str| match is_new {
                true => format!("{what}: installed"),
                false => format!("{what}: as they are"),
            };
            let plugins = format!("plugins in {}", cni.bin_dir.display());
            let settings = format!("settings in {}", config.display());
            let other_ipam = other_ipam.map(|ipam| {
                format!(
                    "addresses are given by {ipam}: Pods keep their MAC, and their address as far as that one sees to it\n"
                )
            });
            print(format_args!(
                "{}\n{}\n{}",
                said(has_installed, &plugins),
                said(has_written, &settings),
                other_ipam.unwrap_or_default()
            ))?;
        }
        CniVerb::Uninstall => {
            // Before the plugins go, nobody may name them.
            let report = cni.uninstall_config()?;
            cni.uninstall_plugins()?;
            match report {
                Some(Report {
                    config,
                    has_written: true,
                    ..
                }) => print(format_args!("removed from {}\n", config.display()))?,
                _ => print("nothing to remove\n")?,
            }
        }
    }
    Ok(())
}
