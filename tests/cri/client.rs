//! CRI's client, as much of a kubelet as these tests need: one call at a time, each on a connection of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::UnixStream;

use super::protobuf::{Fields, Message};

/// The one namespace of these tests' Pods.
pub(crate) const NAMESPACE: &str = "shop";
const PATIENCE: Duration = Duration::from_secs(60);
/// `NamespaceMode.CONTAINER`: processes of a Pod do not see each other's, as kubelet has it unless told otherwise.
const OF_THE_CONTAINER: u64 = 1;

/// A sandbox, as the runtime tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) is_ready: bool,
    /// Both families' addresses; the runtime forgets those of a sandbox that is not ready.
    pub(crate) addresses: Vec<String>,
    /// As the plugins' result has it.
    pub(crate) mac: String,
    /// Its first process, 0 where there is none.
    pub(crate) pid: u32,
}

/// A container runtime at the other end of a socket.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// Nobody need be there yet.
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Whether it is up and has its network's configuration.
    pub(crate) fn is_ready(&self) -> Result<bool> {
        let reply = self.runtime("Status", Message::default())?;
        // StatusResponse.status.conditions: RuntimeReady, NetworkReady.
        let conditions = reply.message(1)?.messages(1)?;
        Ok(!conditions.is_empty() && conditions.iter().all(|condition| condition.number(2) == 1))
    }

    /// Whether it has an image.
    pub(crate) fn has_image(&self, name: &str) -> Result<bool> {
        let request = Message::default().message(1, Message::default().text(1, name));
        let reply = self.call("ImageService/ImageStatus", request)?;
        Ok(!reply.messages(1)?.is_empty())
    }

    /// Makes the sandbox of a Pod, and returns its ID.
    pub(crate) fn run_sandbox(&self, pod: &str, attempt: u64) -> Result<String> {
        let request = Message::default().message(1, sandbox_config(pod, attempt));
        self.runtime("RunPodSandbox", request)?.text(1)
    }

    /// Starts a container of an image in a Pod's sandbox.
    pub(crate) fn run_container(
        &self,
        (pod, attempt, sandbox): (&str, u64, &str),
        image: &str,
        arguments: &[&str],
    ) -> Result<()> {
        let options = Message::default().number(2, OF_THE_CONTAINER);
        let mut config = Message::default()
            .message(1, Message::default().text(1, "main").number(2, attempt))
            .message(2, Message::default().text(1, image))
            // LinuxContainerConfig.security_context.namespace_options
            .message(
                15,
                Message::default().message(2, Message::default().message(3, options)),
            );
        for argument in arguments {
            config = config.text(4, argument);
        }
        let request = Message::default()
            .text(1, sandbox)
            .message(2, config)
            .message(3, sandbox_config(pod, attempt));
        let container = self.runtime("CreateContainer", request)?.text(1)?;
        self.runtime("StartContainer", Message::default().text(1, &container))?;
        Ok(())
    }

    /// What has become of a sandbox.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Sandbox> {
        let request = Message::default().text(1, id).number(2, 1);
        let reply = self.runtime("PodSandboxStatus", request)?;
        let status = reply.message(1)?;
        let mut addresses = Vec::new();
        for network in status.messages(5)? {
            addresses.push(network.text(1)?);
            for other in network.messages(2)? {
                addresses.push(other.text(1)?);
            }
        }
        addresses.retain(|address| !address.is_empty());
        // PodSandboxStatusResponse.info is a map of one entry, "info", which is JSON.
        let info: Value = serde_json::from_str(&reply.message(2)?.text(2)?)?;
        let pid = info["pid"].as_u64().unwrap_or_default();
        let mac = &info["cniResult"]["Interfaces"]["eth0"]["Mac"];
        Ok(Sandbox {
            is_ready: status.number(3) == 0,
            addresses,
            mac: mac.as_str().unwrap_or_default().to_owned(),
            pid: u32::try_from(pid)?,
        })
    }

    /// The IDs of all sandboxes.
    pub(crate) fn sandboxes(&self) -> Result<Vec<String>> {
        let reply = self.runtime("ListPodSandbox", Message::default())?;
        reply.messages(1)?.iter().map(|item| item.text(1)).collect()
    }

    /// Ends what still runs of a sandbox, and takes its network away.
    pub(crate) fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.runtime("StopPodSandbox", Message::default().text(1, id))?;
        Ok(())
    }

    /// Forgets a sandbox that was stopped.
    pub(crate) fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.runtime("RemovePodSandbox", Message::default().text(1, id))?;
        Ok(())
    }

    fn runtime(&self, method: &str, request: Message) -> Result<Fields> {
        self.call(&format!("RuntimeService/{method}"), request)
    }

    fn call(&self, method: &str, request: Message) -> Result<Fields> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let call = async { tokio::time::timeout(PATIENCE, self.exchange(method, request)).await };
        let reply = runtime
            .block_on(call)
            .with_context(|| format!("{method} after {PATIENCE:?}"))?;
        Fields::read(&reply.with_context(|| method.to_owned())?).with_context(|| method.to_owned())
    }

    /// One call by gRPC: a frame there, a frame back, and how it went behind that.
    async fn exchange(&self, method: &str, request: Message) -> Result<Vec<u8>> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = request.into_bytes();
        let mut frame = vec![0]; // not compressed
        frame.extend(u32::try_from(request.len())?.to_be_bytes());
        frame.extend(request);
        let request = Request::post(format!("http://localhost/runtime.v1.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(frame)))?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        // Of a call that fails at once the trailers are the headers.
        let trailers = body.trailers().cloned().unwrap_or(head.headers);
        let trailer = |name| trailers.get(name).and_then(|value| value.to_str().ok());
        if trailer("grpc-status") != Some("0") {
            bail!(
                "{:?}: {:?}",
                trailer("grpc-status"),
                trailer("grpc-message")
            );
        }
        connection.abort();
        let body = body.to_bytes();
        let (head, message) = body.split_at_checked(5).context("no frame")?;
        ensure!(
            head[0] == 0,
            "a compressed frame, which nobody has asked for"
        );
        Ok(message.to_vec())
    }
}

fn sandbox_config(pod: &str, attempt: u64) -> Message {
    let metadata = Message::default()
        .text(1, pod)
        .text(2, &format!("uid-{pod}"))
        .text(3, NAMESPACE)
        .number(4, attempt);
    let options = Message::default().number(2, OF_THE_CONTAINER);
    // Below the root of the runtime's cgroup namespace.
    let linux = Message::default()
        .text(1, "/pods")
        .message(2, Message::default().message(1, options));
    Message::default()
        .message(1, metadata)
        .text(2, pod)
        .message(8, linux)
}
