//! `cni`: the plugins into the node's configuration, and out of it.
#![expect(clippy::print_stdout, reason = "what this verb prints is its result")]

use crate::config::{CniArgs, CniVerb};
use crate::retain::install::Directories;
use crate::retain::install::files::{InstallError, Report};

/// Does it, and prints what was done.
pub fn cni(args: &CniArgs) -> Result<(), InstallError> {
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
            println!(
                "{}",
                said(
                    has_installed,
                    &format!("plugins in {}", cni.bin_dir.display())
                )
            );
            println!(
                "{}",
                said(has_written, &format!("settings in {}", config.display()))
            );
            if let Some(ipam) = other_ipam {
                println!(
                    "addresses are given by {ipam}: Pods keep their MAC, and their address as far as that one sees to it"
                );
            }
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
                }) => println!("removed from {}", config.display()),
                _ => println!("nothing to remove"),
            }
        }
    }
    Ok(())
}
