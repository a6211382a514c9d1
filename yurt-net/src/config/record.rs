//! How the agent of this node was told to run, kept in its state directory: `load` serves as that agent would, at a
//! time when there is no Pod, and so none of its flags, environment and files.

use std::ffi::OsString;
use std::path::Path;

use clap::Parser as _;
use serde::{Deserialize, Serialize};

use super::agent::AgentConfig;
use super::flags::{Cli, Command};
use crate::pods::settings::Settings;

/// What an agent was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The command line, with what the environment and the file say as flags.
    arguments: Vec<String>,
    /// The apiserver that a Pod's environment names: it tells whether `kube:` leads to YurtHub.
    in_cluster: Option<String>,
}

impl Settings for Record {
    const FILE: &str = "run.json";
}

impl Record {
    /// What `words` say, decoded as `config`. A word that is no text is recorded with replacements: no flag but a path
    /// can have one.
    pub fn new(words: &[OsString], config: &AgentConfig) -> Self {
        let words = words.iter().map(|word| word.to_string_lossy().into_owned());
        Self {
            arguments: words.collect(),
            in_cluster: config.scope.access.in_cluster.clone(),
        }
    }

    /// The agent's configuration, with what is in `state_dir` now: a Pod may have had that directory at another path.
    /// Fails if this version does not know a flag.
    pub fn config(&self, state_dir: &Path) -> Result<AgentConfig, String> {
        let mut config = match Cli::try_parse_from(&self.arguments)
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Run(args) => args.config(),
            _ => return Err("it is of another verb than `run`".to_owned()),
        };
        config.place.state_dir = state_dir.to_owned();
        config.scope.access.in_cluster.clone_from(&self.in_cluster);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reading::{Said, read};

    /// What an agent records that is told this.
    fn record(words: &[&str]) -> Record {
        let words = words.iter().map(OsString::from).collect();
        let Said { cli, words, .. } = read(words).unwrap();
        match cli.command {
            Command::Run(args) => Record::new(&words, &args.config()),
            _ => unreachable!(),
        }
    }

    #[test]
    fn what_is_recorded_is_the_configuration_that_flags_and_file_gave() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let text = "apiVersion: yurt-net.openyurt.io/v1alpha1\nkind: YurtNetConfiguration\nmaxServices: 7\n\
                    closureFailure: closed\n";
        std::fs::write(&file, text).unwrap();
        let config = format!("--config={}", file.display());
        let said = ["yurt-net", "run", "--node=edge", "--source=kube:", &config];
        let recorded = record(
            &[
                &said[..],
                &["--max-slots4", "9", "--nodeport-addresses=primary"],
            ]
            .concat(),
        );
        // The file was in a Pod.
        std::fs::remove_file(&file).unwrap();
        let state_dir = directory.path().join("state");
        Record::leave(Some(&recorded), &state_dir).unwrap();
        let found = Record::load(&state_dir).unwrap().unwrap();
        assert_eq!(found, recorded);
        let config = found.config(&state_dir).unwrap();
        assert_eq!((config.capacity.services, config.capacity.slots4), (7, 9));
        assert_eq!(config.policy.node, "edge");
        assert_eq!(config.place.state_dir, state_dir);
        let closed = crate::policy::ClosureFailure::Closed;
        assert_eq!(config.policy.closure_failure, closed);
    }

    #[test]
    fn a_changed_file_changes_of_a_record_what_a_running_agent_takes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let write = |rest: &str| {
            let head = "apiVersion: yurt-net.openyurt.io/v1alpha1\nkind: YurtNetConfiguration\n";
            std::fs::write(&file, format!("{head}{rest}")).unwrap();
        };
        write("maxServices: 7\nprotect: [192.0.2.1]\n");
        let words = [
            "yurt-net",
            "run",
            "--node=edge",
            "--source=kube:",
            "--config",
        ];
        let words = words
            .iter()
            .map(OsString::from)
            .chain([file.clone().into()]);
        let written = read(words.collect()).unwrap().written.unwrap();
        write("maxServices: 9\nbpffs: /nowhere\nclosureFailure: closed\n");
        let again = written.read().unwrap();
        // The one after that starts from the same.
        for record in [again.record, again.written.read().unwrap().record] {
            let config = record.config(Path::new("/")).unwrap();
            assert_eq!(config.capacity.services, 7, "{record:?}");
            assert_eq!(config.place.bpffs, Path::new("/sys/fs/bpf"));
            assert!(config.policy.protect.given.is_empty());
            let closed = crate::policy::ClosureFailure::Closed;
            assert_eq!(config.policy.closure_failure, closed);
        }
    }

    #[test]
    fn a_record_with_a_flag_that_is_unknown_names_it() {
        let mut recorded = record(&["yurt-net", "run", "--node=edge", "--source=kube:"]);
        recorded.arguments.push("--of-another-version".to_owned());
        let error = recorded.config(Path::new("/")).unwrap_err();
        assert!(error.contains("--of-another-version"), "{error}");
        recorded.arguments = vec!["yurt-net".to_owned(), "status".to_owned()];
        assert!(recorded.config(Path::new("/")).is_err());
    }
}
