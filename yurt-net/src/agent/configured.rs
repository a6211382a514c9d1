//! The configuration file: followed for changes, which are taken up where that drops nothing.
//!
//! What the file says is taken as a whole or not at all. A file that is wrong, or gone, is refused, and what was taken
//! last stays in force. Settings that a running agent cannot change wait for a restart, and are named.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::config::{Again, AgentConfig, Record, Unusable, Written};
use crate::error::chain;
use crate::host::disk::errand::{Errand, PATIENCE, SILENCE};
use crate::host::process::{most_open_files, set_oom_score};
use crate::observe::status::{Configuration, Status};
use crate::policy::{HEALTH_CHECK_SHARE, PolicyConfig, ProtectConfig};
use crate::table::MAX_HEALTH_CHECKS;

/// How often the file is looked at: a ConfigMap takes up to a minute to reach a node.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A file that has not changed for this long is whole.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// What tells one content of a file from another, through all links; `None`: it cannot be looked at.
type Stamp = Option<[i64; 5]>;

/// Follows the file, if there is one.
pub(super) struct Configured {
    written: Option<Written>,
    /// The file whose content was read last; `None`: none yet, or it has to be read again.
    read: Option<Stamp>,
    /// Another one, seen once.
    settling: Option<Stamp>,
    next_look: Instant,
    looking: Errand<Stamp>,
    reading: Errand<Result<Box<Again>, Unusable>>,
    /// What a reading has given that took longer than was waited for.
    late: Option<Result<Box<Again>, Unusable>>,
    /// The disk has not answered yet.
    is_silent: bool,
    /// Why the present content is not in force.
    problems: Vec<String>,
    /// Settings that wait for a restart.
    waiting: Vec<String>,
    /// What `load` is to be left, since that was last taken.
    record: Option<Record>,
}

impl Configured {
    /// Looks at the file from now on, if there is one.
    pub(super) fn start(written: Option<Written>) -> Self {
        Self {
            // One that changed between its reading and now is read again, once.
            read: None,
            written,
            settling: None,
            next_look: Instant::now(),
            looking: Errand::default(),
            reading: Errand::default(),
            late: None,
            is_silent: false,
            problems: Vec::new(),
            waiting: Vec::new(),
            record: None,
        }
    }

    /// Waits until the file says something else, and has settled, or until it has been read at last. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let Some(path) = self
            .written
            .as_ref()
            .map(|written| written.path().to_owned())
        else {
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                late = self.reading.late() => {
                    self.late = late;
                    return;
                }
                () = sleep_until(self.next_look) => {}
            }
            let looked_at = path.clone();
            self.looking.begin(move || stamp(&looked_at));
            let seen = self.looking.news(PATIENCE).await;
            self.next_look = Instant::now() + LOOK_EVERY;
            // A disk that does not answer says nothing.
            let Some(seen) = seen else {
                self.be_silent();
                continue;
            };
            self.is_silent = !self.reading.is_idle();
            if Some(seen) == self.read {
                self.settling = None;
            } else if self.settling != Some(seen) {
                self.settling = Some(seen);
                self.next_look = Instant::now() + SETTLED_AFTER;
            } else {
                self.settling = None;
                self.read = Some(seen);
                return;
            }
        }
    }

    /// Reads the file, and says what of it may be in force from now on: the whole configuration, of which other
    /// settings than those that a running agent can change are as they were. `None`: nothing.
    pub(super) async fn take(&mut self) -> Option<AgentConfig> {
        let written = self.written.clone()?;
        let again = match self.late.take() {
            Some(again) => Some(again),
            None if self.reading.is_idle() => {
                self.reading.begin(move || written.read().map(Box::new));
                self.reading.answer(PATIENCE).await
            }
            // It may have begun before the last change.
            None => {
                self.read = None;
                None
            }
        };
        let Some(again) = again else {
            match self.reading.is_idle() {
                // The job was lost with its thread. The next look finds the file changed.
                true => self.read = None,
                // [`Self::changed`] hears of its end.
                false => self.be_silent(),
            }
            return None;
        };
        self.is_silent = false;
        let file = self
            .written
            .as_ref()
            .map(|written| written.path().display().to_string());
        let file = file.unwrap_or_default();
        match again {
            Ok(again) => {
                let had_problems = !std::mem::take(&mut self.problems).is_empty();
                let Again {
                    config,
                    record,
                    written,
                    warnings,
                    changed,
                    waiting,
                } = *again;
                self.written = Some(written);
                self.record = Some(record);
                let waits_for_others = waiting != self.waiting;
                self.waiting = waiting;
                if changed.is_empty() && !waits_for_others && !had_problems {
                    return None;
                }
                for warning in warnings {
                    warn!("{warning}");
                }
                if !changed.is_empty() || had_problems {
                    info!(
                        file,
                        settings = changed.join(" "),
                        "took up the changed configuration"
                    );
                }
                if waits_for_others && !self.waiting.is_empty() {
                    let settings = self.waiting.join(" ");
                    warn!(
                        file,
                        settings, "the changed configuration waits for a restart of the agent"
                    );
                }
                (!changed.is_empty()).then_some(config)
            }
            Err(error) => {
                self.problems = match error {
                    Unusable::Settings(problems) => problems,
                    Unusable::CommandLine(error) => vec![chain(&error)],
                };
                let problems = self.problems.join("; ");
                warn!(
                    file,
                    problems,
                    "the changed configuration is refused, and the one before stays in force"
                );
                None
            }
        }
    }

    /// Notes that the disk keeps the file to itself.
    fn be_silent(&mut self) {
        let file = self.written.as_ref().map(Written::path);
        if !std::mem::replace(&mut self.is_silent, true)
            && let Some(file) = file
        {
            warn!(
                file = %file.display(),
                "the configuration file cannot be read: {SILENCE}; the configuration before stays in force"
            );
        }
    }

    /// Why the file is not in force, or may not be.
    fn complaints(&self) -> Vec<String> {
        let silence = || format!("it cannot be read: {SILENCE}");
        let problems = self.problems.iter().cloned();
        problems.chain(self.is_silent.then(silence)).collect()
    }

    /// All that is said since the file has changed, once.
    pub(super) fn take_record(&mut self) -> Option<Record> {
        self.record.take()
    }

    /// Why the file is not in force, on one line.
    pub(super) fn problem(&self) -> Option<String> {
        let complaints = self.complaints();
        let first = complaints.first()?;
        let more = match complaints.len() {
            1 => String::new(),
            count => format!("; and {} more", count - 1),
        };
        Some(format!("{first}{more}"))
    }

    /// Whether the file is in force.
    pub(super) fn report(&self, status: &mut Status) {
        status.configuration = self.written.as_ref().map(|written| Configuration {
            file: written.path().to_owned(),
            problems: self.complaints(),
            waiting: self.waiting.clone(),
        });
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    let size = i64::try_from(metadata.size()).unwrap_or(i64::MAX);
    let inode = metadata.ino().cast_signed();
    Some([
        inode,
        size,
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime_nsec(),
    ])
}

/// The policy, with the addresses and ports that no Service may take from this agent and its sources, and with what
/// this process has room for.
pub(super) fn policy(config: &AgentConfig, servers: Vec<SocketAddr>) -> PolicyConfig {
    let mut policy = config.policy.clone();
    policy.protect.servers = servers;
    let ours = config.metrics.iter().chain(&config.healthz);
    policy.protect.agent_ports = ours.map(|address| address.port()).collect();
    // Programs at the devices of Pods need most of them.
    policy.max_health_checks = MAX_HEALTH_CHECKS.min(most_open_files() / HEALTH_CHECK_SHARE);
    policy
}

/// The policy that is in force with those settings of another that a running agent can change.
pub(super) fn merged(in_force: &PolicyConfig, new: PolicyConfig) -> PolicyConfig {
    PolicyConfig {
        closure_failure: new.closure_failure,
        service_cidrs: new.service_cidrs,
        kubernetes_via_hub: new.kubernetes_via_hub,
        compat_drop_service: new.compat_drop_service,
        compat_all_vips: new.compat_all_vips,
        node_ports: new.node_ports,
        protect: ProtectConfig {
            given: new.protect.given,
            external_ips: new.protect.external_ips,
            ..in_force.protect.clone()
        },
        ..in_force.clone()
    }
}

/// Sets the score of `--oom-score-adj`.
pub(super) fn score(config: &AgentConfig) {
    if let Some(score) = config.oom_score_adj
        && let Err(error) = set_oom_score(score)
    {
        warn!(error = chain(&error), "--oom-score-adj has no effect");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::config::{Command, Said, read};
    use crate::policy::ClosureFailure;

    const OWN: &str = "apiVersion: yurt-net.openyurt.io/v1alpha1\nkind: YurtNetConfiguration\n";

    fn written(path: &Path) -> (Written, AgentConfig) {
        fs::write(path, OWN).unwrap();
        let words = [
            "yurt-net",
            "run",
            "--node=a",
            "--source=file:/x",
            "--config",
        ];
        let words = words.iter().map(Into::into).chain([path.into()]);
        let Ok(Said { cli, written, .. }) = read(words.collect()) else {
            panic!("not taken")
        };
        let (Command::Run(args), Some(written)) = (cli.command, written) else {
            unreachable!()
        };
        (written, args.config())
    }

    #[tokio::test]
    async fn a_file_whose_disk_answers_late_is_told_until_then_and_taken_when_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let (written, _) = written(&path);
        let mut configured = Configured::start(Some(written.clone()));
        let (answer, disk) = mpsc::channel::<()>();
        configured.reading.begin(move || {
            // Until the other end is gone.
            let _gone = disk.recv();
            written.read().map(Box::new)
        });
        assert!(configured.take().await.is_none());
        let told = configured.problem().unwrap();
        assert_eq!(told, "it cannot be read: it does not answer");
        let mut status = Status::default();
        configured.report(&mut status);
        assert_eq!(status.configuration.unwrap().problems, [told]);
        fs::write(&path, format!("{OWN}closureFailure: closed\n")).unwrap();
        drop(answer);
        configured.changed().await;
        let config = configured.take().await.unwrap();
        assert_eq!(config.policy.closure_failure, ClosureFailure::Closed);
        assert_eq!(configured.problem(), None);
    }

    /// A setting that is told to be in force must be one that the agent takes, and one that it takes must be told.
    #[test]
    fn what_is_told_of_a_changed_setting_is_what_becomes_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let (written, old) = written(&path);
        for (line, is_live) in [
            ("closureFailure: closed", true),
            ("compatAllVips: true", true),
            ("compatDropService: true", true),
            ("driftInterval: 7s", true),
            ("externalIps: none", true),
            ("kubernetesViaHub: off", true),
            ("nodeportAddresses: 10.0.0.0/8", true),
            ("oomScoreAdj: 7", true),
            ("protect: [192.0.2.1]", true),
            ("serviceCidr: [10.96.0.0/12]", true),
            ("nodepool: x", false),
            ("nodepoolLabel: x/y", false),
            ("packetPath: on", false),
            ("metricsBindAddress: 127.0.0.1:9", false),
        ] {
            fs::write(&path, format!("{OWN}{line}\n")).unwrap();
            let again = written
                .read()
                .unwrap_or_else(|error| panic!("{line}: {error}"));
            let told = (again.changed.len(), again.waiting.len());
            assert_eq!(
                told,
                (usize::from(is_live), usize::from(!is_live)),
                "{line}"
            );
            let new = again.config;
            let is_taken = merged(&old.policy, new.policy) != old.policy
                || new.drift_interval != old.drift_interval
                || new.oom_score_adj != old.oom_score_adj;
            assert_eq!(is_taken, is_live, "{line}");
        }
    }
}
