//! `<state-dir>/agent.sock`: how the other verbs ask the running agent. Root only; one line of JSON each way.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::cli::explain::Flow;

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_REQUEST_BYTES: u64 = 4096;

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// How the agent is.
    Status,
    /// The verdict for a flow.
    Explain(Flow),
}

/// A request on its way to the loop, and the way back.
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<serde_json::Value>,
}

/// The listening task; it ends, and its socket goes, when this is dropped.
pub struct Server {
    task: tokio::task::JoinHandle<()>,
    path: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // Left behind, it is replaced by the next agent.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens. The caller holds the lock of the node, so a socket that is there is a dead agent's.
pub fn serve(path: &Path, calls: mpsc::Sender<Call>) -> io::Result<Server> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let task = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        match tokio::time::timeout(PATIENCE, converse(stream, calls)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => debug!(%error, "a client of the socket left"),
                            Err(_) => debug!("a client of the socket was too slow"),
                        }
                    });
                }
                // Out of descriptors: others must close some first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(Server {
        task,
        path: path.to_owned(),
    })
}

async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_REQUEST_BYTES))
        .read_line(&mut line)
        .await?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (reply, answer) = oneshot::channel();
            calls
                .send(Call { request, reply })
                .await
                .map_err(io::Error::other)?;
            answer.await.map_err(io::Error::other)?
        }
        Err(error) => error_reply(&format!("unknown request: {error}")),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await
}

/// The form of a failure.
pub fn error_reply(error: &str) -> serde_json::Value {
    serde_json::json!({ "error": error })
}

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no agent answers at {} (is `yurt-net run` up, with this --state-dir?)", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not the expected form: another version.
    #[error("understand the agent's answer")]
    Answer(#[source] serde_json::Error),
    /// The agent said so.
    #[error("the agent answers: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
}

/// Asks the agent of a state directory.
pub async fn ask(state_dir: &Path, request: &Request) -> Result<serde_json::Value, ControlError> {
    let path = state_dir.join("agent.sock");
    let request = serde_json::to_string(request).map_err(ControlError::Answer)?;
    let answer = tokio::time::timeout(PATIENCE, exchange(&path, &request)).await;
    let answer = answer.unwrap_or_else(|elapsed| Err(io::Error::from(elapsed)));
    let answer = answer.map_err(|source| ControlError::NoAgent { path, source })?;
    let answer: serde_json::Value = serde_json::from_str(&answer).map_err(ControlError::Answer)?;
    match answer.get("error").and_then(serde_json::Value::as_str) {
        Some(reason) => Err(ControlError::Refused {
            reason: reason.to_owned(),
        }),
        None => Ok(answer),
    }
}

async fn exchange(path: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("{request}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
