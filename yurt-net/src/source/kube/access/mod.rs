//! The ways to name an apiserver: its address, the certificates that prove it, and our own credentials. kube-rs reads
//! kubeconfigs; what they say of TLS and of a user is `tls` and `user`, and exec plugins are run by `plugin`.
//!
//! All of it is read again for each connection, and a token for each request: certificates and tokens are rotated while
//! an agent runs for months. The answer of an exec plugin is kept for a while. A source without TLS needs none of this,
//! so it works in a file system that has nothing but the agent.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderValue;
use http::{Request, Uri};
use kube::Config;
use kube::config::{
    AuthInfo, Cluster, KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError,
};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::files::Questions;
use super::plugin;
use crate::error::chain;
use crate::host::disk::{check_size, errand, read_text};
use crate::source::hub::is_hub;
use crate::source::spec::names_a_user;

mod error;
mod tls;
mod user;

pub(super) use error::AccessError;
pub(super) use tls::Tls;
use tls::{MOST_BYTES, certificates, is_https};

#[cfg(test)]
mod tests;

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// More than any token takes.
const MOST_TOKEN_BYTES: u64 = 1 << 16;

/// What this process was given to reach apiservers with.
#[derive(Clone, Debug)]
pub struct Access {
    /// `--kube-ca`: certificates of those who may sign an apiserver's, where nothing nearer names them.
    pub ca_file: Option<PathBuf>,
    /// Where a Pod has its token and its `ca.crt`.
    pub service_account: PathBuf,
    /// Where a Pod's environment says the apiserver is.
    pub in_cluster: Option<String>,
    /// Instead of `$KUBECONFIG` and `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
}

impl Access {
    /// As the environment has it.
    pub fn from_env(ca_file: Option<PathBuf>) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = variable("KUBERNETES_SERVICE_HOST");
        let in_cluster = host.map(|host| {
            let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
            match host.contains(':') {
                true => format!("https://[{host}]:{port}"),
                false => format!("https://{host}:{port}"),
            }
        });
        Self {
            ca_file,
            service_account: PathBuf::from(SERVICE_ACCOUNT),
            in_cluster,
            kubeconfig: None,
        }
    }

    /// Whether a kubeconfig or else the environment names YurtHub.
    pub(crate) async fn leads_to_hub(&self) -> bool {
        self.inferred().await.is_some_and(|server| is_hub(&server))
    }

    /// The server that a kubeconfig or else the environment names, as far as they can be read.
    async fn inferred(&self) -> Option<Uri> {
        let access = self.clone();
        let named = errand::once(move || access.in_kubeconfig()).await;
        let in_cluster = || self.in_cluster.as_ref()?.parse().ok();
        named.flatten().or_else(in_cluster)
    }

    /// The server that a kubeconfig names, where one can be read. Blocks.
    pub(super) fn in_kubeconfig(&self) -> Option<Uri> {
        let config = self.read_kubeconfig().ok()?;
        current_cluster(&config)?.server.as_ref()?.parse().ok()
    }

    /// The one that was given, or those that kubectl takes: as kube-rs reads them, which knows no bound.
    fn read_kubeconfig(&self) -> Result<Kubeconfig, KubeconfigError> {
        let paths = match (&self.kubeconfig, std::env::var_os("KUBECONFIG")) {
            (Some(path), _) => vec![path.clone()],
            (None, named) => {
                let named = named.unwrap_or_default();
                let mut paths: Vec<_> = std::env::split_paths(&named).collect();
                paths.retain(|path| !path.as_os_str().is_empty());
                if paths.is_empty() {
                    let home = std::env::home_dir().ok_or(KubeconfigError::FindPath)?;
                    paths.push(home.join(".kube/config"));
                }
                paths
            }
        };
        let mut paths = paths.iter();
        paths.try_fold(Kubeconfig::default(), |all, path| {
            let wrong = |source| KubeconfigError::ReadConfig(source, path.clone());
            check_size(path, MOST_BYTES).map_err(wrong)?;
            let read = Kubeconfig::read_from(path)?;
            check_sizes(&read)?;
            all.merge(read)
        })
    }

    fn token_file(&self) -> Option<PathBuf> {
        let path = self.service_account.join("token");
        path.exists().then_some(path)
    }
}

/// What names an apiserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A kubeconfig, or a Pod's environment.
    Inferred,
    /// An address; `has_token`: the ServiceAccount's token goes along.
    Url { url: Uri, has_token: bool },
}

/// What an origin comes to, without what an exec plugin says.
pub(super) struct Named {
    config: Box<Config>,
    token_file: Option<PathBuf>,
}

/// What one connection's tasks ask of the disk.
#[derive(Default)]
pub(super) struct Files {
    /// What names a server: a kubeconfig, a CA's certificates.
    named: Questions<Result<Named, AccessError>>,
    /// Certificates and keys that a kubeconfig names.
    tls: Questions<Result<Option<Tls>, AccessError>>,
    /// Connections read them, too.
    tokens: Arc<Questions<io::Result<String>>>,
}

/// How one connection is made.
pub(super) struct Way {
    pub(super) url: Uri,
    pub(super) tls: Option<Tls>,
    pub(super) credentials: Credentials,
}

/// What a request says of who sends it. Secret.
pub(super) struct Credentials {
    /// A kubeconfig's: password, token, or exec plugin, and as whom it asks; nothing at all for a URL alone.
    user: AuthInfo,
    /// Where there is one, its token takes the place of the user's. It is read for each request.
    token_file: Option<PathBuf>,
    tokens: Arc<Questions<io::Result<String>>>,
}

impl Credentials {
    /// They say something.
    pub(super) fn is_any(&self) -> bool {
        let user = &self.user;
        let is_plain = user.token.is_none() && user.username.is_none();
        self.token_file.is_some()
            || !is_plain
            || user.exec.is_some()
            || user.auth_provider.is_some()
    }
}

impl Origin {
    /// Reads the files that it takes, and asks an exec plugin where there is one.
    pub(super) async fn way(&self, access: &Access, files: &Files) -> Result<Way, AccessError> {
        let (origin, with) = (self.clone(), access.clone());
        let named = files.named.ask(move || origin.read(&with)).await;
        let Named {
            mut config,
            token_file,
        } = named.ok_or(AccessError::Silent)??;
        let credentials = Credentials {
            user: config.auth_info.clone(),
            token_file,
            tokens: Arc::clone(&files.tokens),
        };
        let url = config.cluster_url.clone();
        let tls = match is_https(&url) {
            true => {
                // Its answer may be a certificate.
                plugin::resolve(&mut config.auth_info).await?;
                let tls = files.tls.ask(move || tls::tls(&config)).await;
                tls.ok_or(AccessError::Silent)??
            }
            false => None,
        };
        Ok(Way {
            url,
            tls,
            credentials,
        })
    }

    fn read(&self, access: &Access) -> Result<Named, AccessError> {
        match self {
            Self::Url { url, has_token } => to_url(url.clone(), *has_token, access),
            Self::Inferred => match kubeconfig(access) {
                Ok((config, has_proxy)) => from_kubeconfig(config, has_proxy, access),
                // In-cluster comes second, as for kubectl.
                Err(why) => {
                    let Some(address) = access.in_cluster.clone() else {
                        return Err(why);
                    };
                    let url = address.parse();
                    let url = url.map_err(|source| AccessError::Environment { address, source })?;
                    to_url(url, true, access)
                }
            },
        }
    }
}

/// The cluster of a kubeconfig's current context.
fn current_cluster(config: &Kubeconfig) -> Option<&Cluster> {
    let current = config.current_context.as_ref()?;
    let mut contexts = config.contexts.iter();
    let context = contexts.find(|named| named.name == *current)?;
    let context = context.context.as_ref()?;
    let mut clusters = config.clusters.iter();
    let cluster = clusters.find(|named| named.name == context.cluster)?;
    cluster.cluster.as_ref()
}

/// What the kubeconfig says, and whether it wants a proxy: kube-rs' own word of that has the environment's in it, which
/// is for others.
fn kubeconfig(access: &Access) -> Result<(Config, bool), AccessError> {
    let options = KubeConfigOptions::default();
    let wrong = |error| match &access.kubeconfig {
        Some(path) => AccessError::Kubeconfig {
            path: path.clone(),
            source: Box::new(error),
        },
        None => AccessError::Nowhere {
            kubeconfig: chain(&error),
        },
    };
    let read = access.read_kubeconfig().map_err(wrong)?;
    let proxy = current_cluster(&read).and_then(|cluster| cluster.proxy_url.as_ref());
    let has_proxy = proxy.is_some_and(|proxy| !proxy.is_empty());
    // It reads files, and waits for nothing else.
    let config = Config::from_custom_kubeconfig(read, &options);
    let config = Handle::current().block_on(config).map_err(wrong)?;
    Ok((config, has_proxy))
}

/// Of the files that kube-rs reads for a kubeconfig.
fn check_sizes(config: &Kubeconfig) -> Result<(), KubeconfigError> {
    for cluster in config.clusters.iter().filter_map(|it| it.cluster.as_ref()) {
        let Some(path) = cluster.certificate_authority.as_ref().map(PathBuf::from) else {
            continue;
        };
        check_size(&path, MOST_BYTES).map_err(|source| {
            KubeconfigError::LoadCertificateAuthority(LoadDataError::ReadFile(source, path))
        })?;
    }
    Ok(())
}

fn from_kubeconfig(
    mut config: Config,
    has_proxy: bool,
    access: &Access,
) -> Result<Named, AccessError> {
    if has_proxy {
        return Err(AccessError::Proxy);
    }
    if names_a_user(&config.cluster_url.to_string()) {
        return Err(AccessError::CredentialsInUrl);
    }
    if config.root_cert.is_none()
        && let Some(path) = &access.ca_file
    {
        config.root_cert = Some(certificates(path)?);
    }
    let token_file = config.auth_info.token_file.take();
    Ok(Named {
        token_file: token_file.map(PathBuf::from),
        config: Box::new(config),
    })
}

fn to_url(url: Uri, has_token: bool, access: &Access) -> Result<Named, AccessError> {
    let mut config = Config::new(url.clone());
    let own = access.service_account.join("ca.crt");
    let ca_file = access
        .ca_file
        .clone()
        .or_else(|| own.exists().then_some(own));
    if let Some(path) = ca_file.filter(|_| is_https(&url)) {
        config.root_cert = Some(certificates(&path)?);
    }
    Ok(Named {
        token_file: access.token_file().filter(|_| has_token),
        config: Box::new(config),
    })
}

impl Way {
    /// The server did not believe who we were at that time: a plugin is asked anew. False where there is none, or
    /// where it was just before, to no avail; files are read anew anyway.
    pub(super) async fn forget(&self, signed_at: Instant) -> bool {
        let Credentials {
            user, token_file, ..
        } = &self.credentials;
        let has_plugin = user.exec.is_some() && token_file.is_none();
        has_plugin && plugin::forget(signed_at).await
    }

    /// Adds our credentials to a request.
    pub(super) async fn sign(&self, mut request: Request<()>) -> Result<Request<()>, AccessError> {
        let wrong = |why| AccessError::Credentials {
            url: self.url.clone(),
            why,
        };
        let user = match &self.credentials.token_file {
            Some(path) => {
                let file = path.clone();
                let tokens = &self.credentials.tokens;
                let token = tokens.ask(move || read_text(&file, MOST_TOKEN_BYTES)).await;
                let token = token.ok_or(AccessError::Silent)?;
                let token = token.map_err(|source| AccessError::Read {
                    path: path.clone(),
                    source,
                })?;
                // Without what editors and shells put at its end.
                let token = token.trim();
                if HeaderValue::try_from(token).is_err() {
                    return Err(wrong(format!("{} holds more than a token", path.display())));
                }
                user::with_token(&self.credentials.user, token)
            }
            None => {
                let mut user = self.credentials.user.clone();
                plugin::resolve(&mut user).await?;
                user
            }
        };
        for (name, value) in user::headers(&user).map_err(wrong)? {
            request.headers_mut().append(name, value);
        }
        Ok(request)
    }
}
