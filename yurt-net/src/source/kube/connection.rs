//! The way to an API: addresses, credentials, TLS. All of it is kube-rs' work.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use super::{Api, Resource};
use crate::agent::chain;

/// Where YurtHub listens (openyurt cmd/yurthub/app/options): on loopback, and on its dummy interface.
const YURTHUB: [&str; 2] = ["http://127.0.0.1:10261", "http://169.254.2.1:10261"];
/// Where YurtHub lists the Pods of this node, as the kubelet was last told them (openyurt pkg/yurthub/otaupdate): on loopback
/// only, whichever of its addresses the API is asked at.
const YURTHUB_PODS_PORT: u16 = 10267;
/// Of YurtHub's dummy interface.
const DUMMY_ADDRESS: &str = "169.254.2.1";
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("no kubeconfig can be used ({kubeconfig}) and no ServiceAccount ({in_cluster})")]
    Infer {
        kubeconfig: String,
        in_cluster: String,
    },
    #[error("configuring the client for {url}")]
    Build {
        url: String,
        #[source]
        source: Box<kube::Error>,
    },
}

/// Clients of one API.
pub(super) struct Connection {
    /// Tried in turn.
    servers: Vec<Client>,
    /// Index of the one in use.
    current: AtomicUsize,
    /// The same with the ServiceAccount's token, for what YurtHub may not read by its own rights.
    with_token: Vec<Client>,
    /// For the Pods that YurtHub lists by itself.
    pods: Option<Client>,
}

impl Connection {
    /// Reads what there is to configure it.
    pub(super) async fn new(api: &Api) -> Result<Self, ClientError> {
        let token = Path::new(SERVICE_ACCOUNT_TOKEN);
        let has_token = token.exists();
        let token = has_token.then(|| token.to_owned());
        let (servers, with_token, pods) = match api {
            Api::Inferred => {
                // In-cluster comes second, as for kubectl; it reads the address from the environment, without DNS.
                let options = KubeConfigOptions::default();
                let config = match Config::from_kubeconfig(&options).await {
                    Ok(config) => config,
                    Err(kubeconfig) => {
                        Config::incluster_env().map_err(|in_cluster| ClientError::Infer {
                            kubeconfig: chain(&kubeconfig),
                            in_cluster: chain(&in_cluster),
                        })?
                    }
                };
                (vec![client(config)?], Vec::new(), None)
            }
            Api::Server(url) => {
                let client = client(config(url.clone(), token))?;
                (vec![client], Vec::new(), None)
            }
            Api::Hub(url) => {
                let urls = match url {
                    Some(url) => vec![url.clone()],
                    None => YURTHUB.map(Uri::from_static).to_vec(),
                };
                let clients = |token: Option<PathBuf>| {
                    let configs = urls.iter().map(|url| config(url.clone(), token.clone()));
                    configs.map(client).collect::<Result<Vec<_>, _>>()
                };
                let with_token = match token {
                    Some(token) => clients(Some(token))?,
                    None => Vec::new(),
                };
                let pods = urls.first().and_then(pods_url);
                let pods = pods.map(|url| client(config(url, None))).transpose()?;
                (clients(None)?, with_token, pods)
            }
        };
        Ok(Self {
            servers,
            current: AtomicUsize::new(0),
            with_token,
            pods,
        })
    }

    /// The one that lists the Pods of this node at no cost to the uplink; `None` where there is no YurtHub.
    pub(super) fn pods(&self) -> Option<&Client> {
        self.pods.as_ref()
    }

    /// The one to ask for a resource.
    pub(super) fn client(&self, resource: Resource) -> Option<&Client> {
        let clients = match resource.needs_token_at_hub() && !self.with_token.is_empty() {
            true => &self.with_token,
            false => &self.servers,
        };
        clients.get(self.current.load(Ordering::Relaxed) % clients.len())
    }

    /// Goes to the next server, after the one in use could not be reached.
    pub(super) fn rotate(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }
}

fn pods_url(hub: &Uri) -> Option<Uri> {
    let host = match hub.host()? {
        DUMMY_ADDRESS => "127.0.0.1",
        host => host,
    };
    format!("http://{host}:{YURTHUB_PODS_PORT}").parse().ok()
}

fn config(url: Uri, token_file: Option<PathBuf>) -> Config {
    let mut config = Config::new(url);
    config.auth_info.token_file = token_file.map(|path| path.display().to_string());
    config
}

fn client(mut config: Config) -> Result<Client, ClientError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Silence is judged here, by what was asked for.
    config.read_timeout = None;
    config.default_retry = false;
    config.proxy_url = None;
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|source| ClientError::Build {
        url,
        source: Box::new(source),
    })
}
