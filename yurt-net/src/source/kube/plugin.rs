//! Exec plugins: programs that a kubeconfig names, which return our credentials (`client.authentication.k8s.io`).
//!
//! They are run here and not by kube-rs, which blocks the caller's thread until the plugin's output is closed: a child
//! that the plugin left behind would keep the agent waiting for as long as it lives.
//!
//! A credential is kept until its `expirationTimestamp`, or until a server refuses it, as client-go does
//! (plugin/pkg/client/auth/exec): every connection and every request asks, and a plugin that asks the cloud over a bad
//! link takes seconds.
#![expect(unsafe_code, reason = "a process group is ended by libc")]

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join;
use jiff::Timestamp;
use kube::config::{AuthInfo, ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::error::chain;
use crate::host::clock::unix_seconds;
use crate::text;

/// How long a plugin may run: it may ask the cloud over a bad link.
const PATIENCE: Duration = Duration::from_secs(20);
/// When a plugin ends, all that it wrote is in the pipe. Its children may hold the pipe open for ever.
const LEFT_OVER: Duration = Duration::from_millis(200);
/// Most bytes of a plugin's output, and of its errors.
const LONGEST_ANSWER: u64 = 1 << 20;
/// How often a plugin runs whose answers the server refuses every time: at once at first, then after the first of these
/// times, doubling up to the second.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The last answer. All tasks ask at once, so one runs the plugin and the others wait for its answer.
static LAST: Mutex<Option<Answer>> = Mutex::const_new(None);

/// Why a plugin gives no credential.
#[derive(Debug, thiserror::Error)]
#[error("the kubeconfig's exec plugin cannot be used: {why}")]
pub(super) struct PluginError {
    why: String,
}

#[derive(Deserialize)]
struct Credential {
    status: Option<Status>,
}

/// The credential itself; never shown.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    expiration_timestamp: Option<String>,
}

/// How a plugin is run, and what it is given.
#[derive(PartialEq, Eq)]
struct Question {
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// The value of `KUBERNETES_EXEC_INFO`.
    info: String,
}

/// The answer of a plugin.
struct Answer {
    question: Question,
    /// The credential, or why the plugin gave none.
    status: Result<Status, String>,
    came_at: Instant,
    is_refused: bool,
    refusals: Refusals,
}

impl Answer {
    /// Whether this answers a question that was asked at that time. A run that ended after the question does.
    fn serves(&self, question: &Question, asked_at: Instant) -> bool {
        let is_good = |status: &Status| status.end().is_ok_and(is_to_come);
        self.question == *question
            && !self.is_refused
            && (asked_at <= self.came_at || self.status.as_ref().is_ok_and(is_good))
    }
}

impl Status {
    /// Until when it can be used; `None`: without end.
    fn end(&self) -> Result<Option<Timestamp>, String> {
        let end = self.expiration_timestamp.as_deref();
        let end = end.map(str::parse).transpose();
        end.map_err(|_secret| {
            "its expirationTimestamp is no time of RFC 3339, as 2006-01-02T15:04:05Z".to_owned()
        })
    }
}

fn is_to_come(end: Option<Timestamp>) -> bool {
    let seconds = |end: Timestamp| u64::try_from(end.as_second()).unwrap_or(0);
    end.is_none_or(|end| seconds(end) > unix_seconds())
}

/// How often the answers of one plugin were refused.
#[derive(Debug)]
struct Refusals {
    /// When the next run of the plugin is worth its cost; `None`: now.
    next: Option<Instant>,
    wait: Duration,
}

impl Refusals {
    const NONE: Self = Self {
        next: None,
        wait: FIRST_WAIT,
    };

    /// Whether a refusal at that time makes the plugin run again.
    fn admit(&mut self, now: Instant) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        // No refusal for as long again: the plugin's answer was good.
        if self.next.is_some_and(|next| now >= next + self.wait) {
            *self = Self::NONE;
        }
        self.next = Some(now + self.wait);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        true
    }
}

/// Ends a plugin and its children, unless it has ended by itself.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // SAFETY: no pointers. The leader has not been waited for, so the number still belongs to its group.
            unsafe { libc::kill(-leader, libc::SIGKILL) };
        }
    }
}

/// A server has refused what was sent at that time: the plugin runs again, unless it has run meanwhile, or has helped
/// as little just before. True if another credential is sent from now on.
pub(super) async fn forget(sent_at: Instant) -> bool {
    let mut last = LAST.lock().await;
    let Some(last) = last.as_mut().filter(|last| last.came_at <= sent_at) else {
        return true;
    };
    last.is_refused = last.is_refused || last.refusals.admit(Instant::now());
    last.is_refused
}

/// Puts the credential of the user's plugin in its place.
pub(super) async fn resolve(user: &mut AuthInfo) -> Result<(), PluginError> {
    let Some(exec) = user.exec.take() else {
        return Ok(());
    };
    let wrong = |why: String| PluginError { why };
    let question = Question::new(&exec).map_err(wrong)?;
    let status = ask(question).await.map_err(wrong)?;
    if let Some(certificate) = status.client_certificate_data
        && let Some(key) = status.client_key_data
    {
        user.client_certificate_data = Some(BASE64_STANDARD.encode(certificate));
        user.client_key_data = Some(BASE64_STANDARD.encode(key).into());
    }
    // A credential in the kubeconfig itself comes first.
    if user.token.is_none() {
        user.token = status.token.map(Into::into);
    }
    Ok(())
}

/// What a plugin answers, or has answered.
async fn ask(question: Question) -> Result<Status, String> {
    let asked_at = Instant::now();
    let mut last = LAST.lock().await;
    if let Some(last) = &*last
        && last.serves(&question, asked_at)
    {
        return last.status.clone();
    }
    let status = match timeout(PATIENCE, run(&question)).await {
        Ok(output) => output.and_then(|output| read_status(&output)),
        Err(_elapsed) => {
            let seconds = PATIENCE.as_secs();
            Err(format!("it has not answered within {seconds} s"))
        }
    };
    let same = last.take_if(|last| last.question == question);
    *last = Some(Answer {
        refusals: same.map_or(Refusals::NONE, |same| same.refusals),
        is_refused: false,
        question,
        status: status.clone(),
        came_at: Instant::now(),
    });
    status
}

fn read_status(output: &[u8]) -> Result<Status, String> {
    // JSON is YAML, and some plugins answer in YAML.
    let credential: Result<Credential, _> = serde_saphyr::from_slice(output);
    let credential =
        credential.map_err(|_secret| "its answer is not an ExecCredential".to_owned())?;
    let status = credential.status;
    let status = status.ok_or_else(|| "its answer has no status".to_owned())?;
    status.end().map(|_is_read| status)
}

impl Question {
    fn new(exec: &ExecConfig) -> Result<Self, String> {
        let program = exec.command.clone().ok_or("it names no command")?;
        if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
            return Err(format!("{program} wants a terminal"));
        }
        let mut spec = json!({"interactive": false});
        if exec.provide_cluster_info {
            spec["cluster"] = json!(exec.cluster);
        }
        let info = json!({"apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec});
        let variables = exec.env.iter().flatten();
        let variables =
            variables.filter_map(|one| Some((one.get("name")?.clone(), one.get("value")?.clone())));
        Ok(Self {
            arguments: exec.args.iter().flatten().cloned().collect(),
            environment: variables.collect(),
            info: info.to_string(),
            program,
        })
    }
}

/// The output of a plugin that is run.
async fn run(question: &Question) -> Result<Vec<u8>, String> {
    let program = &question.program;
    let mut command = Command::new(program);
    command.args(&question.arguments);
    let variables = question.environment.iter();
    command.envs(variables.map(|(name, value)| (name, value)));
    command.env("KUBERNETES_EXEC_INFO", &question.info);
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());

    let cannot = |error: std::io::Error| format!("{program}: {}", chain(&error));
    let mut child = command.process_group(0).spawn().map_err(cannot)?;
    let leader = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(leader);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut answer, mut complaint) = (Vec::new(), Vec::new());
    let status = {
        let reading = join(read(stdout, &mut answer), read(stderr, &mut complaint));
        tokio::pin!(reading);
        let ended = tokio::select! {
            ended = child.wait() => Some(ended),
            _ = &mut reading => None,
        };
        match ended {
            Some(status) => {
                group.0 = None;
                let _held_open = timeout(LEFT_OVER, reading).await;
                status
            }
            None => {
                let status = child.wait().await;
                group.0 = None;
                status
            }
        }
    };
    let status = status.map_err(cannot)?;
    if !status.success() {
        // Its output, arguments and environment are never shown: they may be credentials.
        let said = String::from_utf8_lossy(&complaint);
        let said = said.trim().lines().last().unwrap_or_default();
        return Err(format!("{program}: {status}: {}", text::message(said)));
    }
    Ok(answer)
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, all: &mut Vec<u8>) {
    if let Some(pipe) = pipe {
        // If it breaks, the missing output shows that.
        let _broken = pipe.take(LONGEST_ANSWER).read_to_end(all).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(end: &str) -> Result<Status, String> {
        let answer = format!("{{status: {{token: t, expirationTimestamp: '{end}'}}}}");
        read_status(answer.as_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_everything_has_a_plugin_run_ever_more_seldom() {
        let (mut refusals, begun) = (Refusals::NONE, Instant::now());
        let mut runs = Vec::new();
        while begun.elapsed() < Duration::from_secs(1200) {
            if refusals.admit(Instant::now()) {
                runs.push(begun.elapsed().as_secs());
            }
            // Eight tasks ask, each every few seconds.
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(runs, [0, 10, 30, 70, 150, 310, 610, 910]);
        // It was good for a while, and is revoked.
        tokio::time::advance(2 * LONGEST_WAIT).await;
        let runs = [0, 1, 10].map(|seconds| {
            let now = Instant::now() + Duration::from_secs(seconds);
            refusals.admit(now)
        });
        assert_eq!(runs, [true, false, true]);
    }

    #[test]
    fn a_credential_is_good_until_its_end_in_whatever_offset_that_is_written() {
        for (end, is_good) in [
            ("2999-01-01T00:00:00Z", true),
            ("2999-01-01T08:00:00+08:00", true),
            ("2999-01-01T00:00:00.123456-03:30", true),
            ("2001-01-01T00:00:00Z", false),
            ("2001-01-01T08:00:00+08:00", false),
        ] {
            let end_of = said(end).and_then(|status| status.end());
            assert_eq!(end_of.map(is_to_come), Ok(is_good), "{end}");
        }
        assert!(is_to_come(None));
        let refused = said("tomorrow").err().unwrap_or_default();
        assert!(refused.contains("expirationTimestamp"), "{refused}");
    }
}
