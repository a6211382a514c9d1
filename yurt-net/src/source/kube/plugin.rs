//! Exec plugins: programs that a kubeconfig names, which say who we are (`client.authentication.k8s.io`).
//!
//! They are run here and not by kube-rs, which waits on the caller's thread, and until nobody holds the plugin's output open any more:
//! a child that it has left behind would keep the agent waiting for as long as it lives.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join;
use kube::config::{AuthInfo, ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::access::AccessError;
use crate::error::chain;
use crate::text;

/// A plugin asks the cloud, be it over a bad link. Waiting for its turn counts, too.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a plugin has written is in the pipe when it ends. Its children may hold that open for ever.
const LEFT_OVER: Duration = Duration::from_millis(200);
/// Of what it says, and of what it complains of.
const LONGEST_ANSWER: u64 = 1 << 20;
/// One plugin runs at a time: all tasks ask for credentials at once.
static TURN: Semaphore = Semaphore::const_new(1);

#[derive(Deserialize)]
struct Credential {
    status: Option<Status>,
}

/// Secret.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Ends a plugin and what it has started, unless it has ended by itself.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // SAFETY: no pointers. The leader has not been waited for, so the number is still its group's.
            unsafe { libc::kill(-leader, libc::SIGKILL) };
        }
    }
}

/// Puts what the user's plugin says in its place.
pub(super) async fn resolve(user: &mut AuthInfo) -> Result<(), AccessError> {
    let Some(exec) = user.exec.take() else {
        return Ok(());
    };
    let wrong = |why: String| AccessError::Plugin { why };
    let answer = match timeout(PATIENCE, run(&exec)).await {
        Ok(answer) => answer.map_err(wrong)?,
        Err(_elapsed) => {
            let seconds = PATIENCE.as_secs();
            return Err(wrong(format!("it has not answered within {seconds} s")));
        }
    };
    // JSON is YAML, and some answer in YAML.
    let credential: Credential = serde_saphyr::from_slice(&answer)
        .map_err(|_secret| wrong("its answer is no ExecCredential".to_owned()))?;
    let status = credential.status;
    let status = status.ok_or_else(|| wrong("its answer has no status".to_owned()))?;
    if let Some(certificate) = status.client_certificate_data
        && let Some(key) = status.client_key_data
    {
        user.client_certificate_data = Some(BASE64_STANDARD.encode(certificate));
        user.client_key_data = Some(BASE64_STANDARD.encode(key).into());
    }
    // What the kubeconfig itself says comes first.
    if user.token.is_none() {
        user.token = status.token.map(Into::into);
    }
    Ok(())
}

/// What a plugin says.
async fn run(exec: &ExecConfig) -> Result<Vec<u8>, String> {
    let program = exec.command.as_deref().ok_or("it names no command")?;
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(format!("{program} wants a terminal"));
    }
    let mut spec = json!({"interactive": false});
    if exec.provide_cluster_info {
        spec["cluster"] = json!(exec.cluster);
    }
    let info = json!({"apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec});
    let mut command = Command::new(program);
    command.args(exec.args.iter().flatten());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    command.env("KUBERNETES_EXEC_INFO", info.to_string());
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());

    let turn = TURN.acquire().await;
    let _turn = turn.map_err(|error| chain(&error))?;
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
        // Of its output, arguments and environment nothing is shown: they may be credentials.
        let said = String::from_utf8_lossy(&complaint);
        let said = said.trim().lines().last().unwrap_or_default();
        return Err(format!("{program}: {status}: {}", text::message(said)));
    }
    Ok(answer)
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, all: &mut Vec<u8>) {
    if let Some(pipe) = pipe {
        // What breaks it shows in what is missing.
        let _broken = pipe.take(LONGEST_ANSWER).read_to_end(all).await;
    }
}
