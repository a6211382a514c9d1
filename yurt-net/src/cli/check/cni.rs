//! Checks whether the next Pod will keep its addresses: what the runtime would do, as far as files tell.

use std::path::Path;

use serde_json::Value;

use super::finding::{Finding, Outcome};
use crate::cni::install::Directories;
use crate::cni::install::files::{Cni, InstallError};
use crate::cni::install::install;
use crate::error::chain;

const INSTALL: &str = "run `yurt-net cni install`, or the agent with --cni install";

/// Reads the configuration and the plugins.
pub(super) fn findings(cni: &Cni, directories: &Directories) -> Vec<Finding> {
    let (path, config) = match cni.config() {
        Ok(found) => found,
        Err(error @ InstallError::NoConfig { .. }) => {
            let remedy = "no Pod has a network without; --cni-conf-dir names another directory";
            return vec![Finding::new(
                "cni-config",
                Outcome::Warning,
                chain(&error),
                remedy,
            )];
        }
        Err(error) => {
            let remedy = "mend the file: the runtime cannot read it either";
            return vec![Finding::new(
                "cni-config",
                Outcome::Failed,
                chain(&error),
                remedy,
            )];
        }
    };
    vec![configuration(&path, &config, directories), plugins(cni)]
}

fn configuration(path: &Path, config: &Value, directories: &Directories) -> Finding {
    let path = path.display();
    let installed = match install(config, directories) {
        Ok(installed) => installed,
        Err(refusal) => {
            let detail = format!("{path}: {refusal}");
            let remedy = "until then the Pods of this node keep neither address nor MAC";
            return Finding::new("cni-config", Outcome::Warning, detail, remedy);
        }
    };
    if installed.config != *config {
        let detail = format!("{path} does not name yurt-ipam and yurt-cni as it should");
        return Finding::new("cni-config", Outcome::Warning, detail, INSTALL);
    }
    match installed.other_ipam {
        None => Finding::ok("cni-config", format!("{path} names yurt-ipam and yurt-cni")),
        Some(ipam) => Finding::new(
            "cni-config",
            Outcome::Warning,
            format!("{path} names yurt-cni, and {ipam} for addresses"),
            "Pods keep their MAC, and their address as far as that plugin sees to it",
        ),
    }
}

fn plugins(cni: &Cni) -> Finding {
    let directory = cni.bin_dir.display();
    let foreign = cni.foreign_plugins();
    // A configuration that others installed counts, too, if its plugins run.
    if let (false, Err(error)) = (foreign.len() == 2, cni.try_plugins()) {
        let remedy =
            "Pods do not start while a configuration names them: install a build that runs here";
        return Finding::new("cni-plugins", Outcome::Failed, chain(&error), remedy);
    }
    if foreign.is_empty() {
        let detail = format!("yurt-ipam and yurt-cni in {directory} are this program");
        return Finding::ok("cni-plugins", detail);
    }
    let detail = format!(
        "{} in {directory}: missing, or of another version than this program",
        foreign.join(" and ")
    );
    Finding::new("cni-plugins", Outcome::Warning, detail, INSTALL)
}
