//! The ways to name an apiserver: its address, the certificates that prove it, and our own credentials. kube-rs reads kubeconfigs; exec
//! plugins are run here.
//!
//! All of it is read anew for each connection, and a token for each request: certificates and tokens are rotated under an agent that
//! runs for months. What an exec plugin says is kept for a while (`plugin`). A source without TLS needs none of it, so it works in a file system that has nothing but the agent.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use http::header::AUTHORIZATION;
use http::uri::{InvalidUri, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use tower::{Layer as _, ServiceExt as _, service_fn};

use super::files::Questions;
use super::plugin::{self, PluginError};
use crate::error::chain;
use crate::host::disk::{check_size, errand, read_text, read_whole};
use crate::source::hub::is_hub;
use crate::source::spec::names_a_user;

#[cfg(test)]
mod tests;

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Of a file with certificates, or of a kubeconfig: what Kubernetes lets a Secret have.
const MOST_BYTES: u64 = 1 << 20;
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
    pub(super) async fn inferred(&self) -> Option<Uri> {
        let access = self.clone();
        let config = errand::once(move || access.read_kubeconfig()).await;
        let named = config.and_then(Result::ok).and_then(|config| {
            let current = config.current_context?;
            let mut contexts = config.contexts.into_iter();
            let context = contexts.find(|named| named.name == current)?.context?;
            let mut clusters = config.clusters.into_iter();
            let cluster = clusters.find(|named| named.name == context.cluster)?;
            cluster.cluster?.server
        });
        named.or_else(|| self.in_cluster.clone())?.parse().ok()
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

/// Why no connection can be attempted: something that was configured is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccessError {
    #[error(
        "no kubeconfig can be used ({kubeconfig}), and the environment names no apiserver (KUBERNETES_SERVICE_HOST)"
    )]
    Nowhere { kubeconfig: String },
    #[error("the kubeconfig {} cannot be used", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    /// The URL is not shown.
    #[error(
        "the server's URL in the kubeconfig names a user or a password, which no apiserver reads: use a token or a client certificate"
    )]
    CredentialsInUrl,
    #[error("the Pod's environment names no apiserver: {address}")]
    Environment {
        address: String,
        #[source]
        source: InvalidUri,
    },
    #[error("the disk with the kubeconfig, certificates or token does not answer")]
    Silent,
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error(
        "nothing says who may sign the certificate of {url}; give --kube-ca, or install CA certificates"
    )]
    NoCa {
        url: Uri,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("certificates for {url} cannot be used")]
    Tls {
        url: Uri,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{name} is not the name of a server")]
    Name {
        name: String,
        #[source]
        source: InvalidDnsNameError,
    },
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("the credentials for {url} cannot be used: {why}")]
    Credentials { url: Uri, why: String },
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

/// How the server is verified, and how it verifies us.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    /// Not so where a kubeconfig says `insecure-skip-tls-verify`.
    pub(super) is_verified: bool,
}

/// Our credentials, where they are not a client certificate. Secret.
pub(super) enum Credentials {
    TokenFile(PathBuf, Arc<Questions<io::Result<String>>>),
    /// A kubeconfig's: password, token, or exec plugin; nothing at all for a URL alone.
    Config(Box<Config>),
}

impl Credentials {
    /// They say something.
    pub(super) fn is_any(&self) -> bool {
        match self {
            Self::TokenFile(..) => true,
            Self::Config(config) => {
                let user = &config.auth_info;
                let is_plain = user.token.is_none() && user.username.is_none();
                !is_plain || user.exec.is_some() || user.auth_provider.is_some()
            }
        }
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
        // Read for each request, without what editors and shells put at its end.
        let credentials = match token_file {
            Some(path) => Credentials::TokenFile(path, Arc::clone(&files.tokens)),
            None => Credentials::Config(config.clone()),
        };
        let url = config.cluster_url.clone();
        let tls = match is_https(&url) {
            true => {
                // Its answer may be a certificate.
                plugin::resolve(&mut config.auth_info).await?;
                let tls = files.tls.ask(move || tls(&config)).await;
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
        let config = match self {
            Self::Url { url, has_token } => return to_url(url.clone(), *has_token, access),
            Self::Inferred => match kubeconfig(access) {
                Ok(config) => config,
                // In-cluster comes second, as for kubectl.
                Err(why) => {
                    let Some(address) = access.in_cluster.clone() else {
                        return Err(why);
                    };
                    let url = address.parse();
                    let url = url.map_err(|source| AccessError::Environment { address, source })?;
                    return to_url(url, true, access);
                }
            },
        };
        from_kubeconfig(config, access)
    }
}

fn kubeconfig(access: &Access) -> Result<Config, AccessError> {
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
    // It reads files, and waits for nothing else.
    let config = Config::from_custom_kubeconfig(read, &options);
    Handle::current().block_on(config).map_err(wrong)
}

/// Of the files that kube-rs reads for a kubeconfig.
fn check_sizes(config: &Kubeconfig) -> Result<(), KubeconfigError> {
    let check = |path: &Option<String>, wrong: fn(LoadDataError) -> KubeconfigError| {
        let Some(path) = path.as_ref().map(PathBuf::from) else {
            return Ok(());
        };
        check_size(&path, MOST_BYTES).map_err(|source| wrong(LoadDataError::ReadFile(source, path)))
    };
    for cluster in config.clusters.iter().filter_map(|it| it.cluster.as_ref()) {
        let path = &cluster.certificate_authority;
        check(path, KubeconfigError::LoadCertificateAuthority)?;
    }
    for user in config
        .auth_infos
        .iter()
        .filter_map(|it| it.auth_info.as_ref())
    {
        let path = &user.client_certificate;
        check(path, KubeconfigError::LoadClientCertificate)?;
        check(&user.client_key, KubeconfigError::LoadClientKey)?;
    }
    Ok(())
}

fn from_kubeconfig(mut config: Config, access: &Access) -> Result<Named, AccessError> {
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

fn is_https(url: &Uri) -> bool {
    url.scheme() == Some(&Scheme::HTTPS)
}

fn tls(config: &Config) -> Result<Option<Tls>, AccessError> {
    let url = &config.cluster_url;
    if !is_https(url) {
        return Ok(None);
    }
    let client = config.rustls_client_config().map_err(|source| {
        let (url, source) = (url.clone(), Box::new(source));
        match config.root_cert.is_none() && !config.accept_invalid_certs {
            true => AccessError::NoCa { url, source },
            false => AccessError::Tls { url, source },
        }
    })?;
    let name = config.tls_server_name.as_deref().or_else(|| url.host());
    let name = name.unwrap_or_default();
    let name = name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let server = ServerName::try_from(name.clone());
    Ok(Some(Tls {
        config: Arc::new(client),
        name: server.map_err(|source| AccessError::Name { name, source })?,
        is_verified: !config.accept_invalid_certs,
    }))
}

/// The certificates of a file, in DER.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, AccessError> {
    let pem = read_whole(path, MOST_BYTES).map_err(|source| AccessError::Read {
        path: path.to_owned(),
        source,
    })?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all.iter().map(|der| der.to_vec()).collect()),
        _ => Err(AccessError::NoCertificate {
            path: path.to_owned(),
        }),
    }
}

impl Way {
    /// The server did not believe who we were at that time: a plugin is asked anew. False where there is none; files are read anew
    /// anyway.
    pub(super) async fn forget(&self, signed_at: Instant) -> bool {
        let Credentials::Config(config) = &self.credentials else {
            return false;
        };
        let has_plugin = config.auth_info.exec.is_some();
        if has_plugin {
            plugin::forget(signed_at).await;
        }
        has_plugin
    }

    /// Adds our credentials to a request.
    pub(super) async fn sign(&self, request: Request<()>) -> Result<Request<()>, AccessError> {
        let wrong = |why| AccessError::Credentials {
            url: self.url.clone(),
            why,
        };
        match &self.credentials {
            Credentials::TokenFile(path, tokens) => {
                let file = path.clone();
                let token = tokens.ask(move || read_text(&file, MOST_TOKEN_BYTES)).await;
                let token = token.ok_or(AccessError::Silent)?;
                let token = token.map_err(|source| AccessError::Read {
                    path: path.clone(),
                    source,
                })?;
                let bearer = HeaderValue::try_from(format!("Bearer {}", token.trim()));
                let mut bearer = bearer.map_err(|_invalid| {
                    wrong(format!("{} holds more than a token", path.display()))
                })?;
                bearer.set_sensitive(true);
                let mut request = request;
                request.headers_mut().insert(AUTHORIZATION, bearer);
                Ok(request)
            }
            Credentials::Config(config) => {
                let mut request = request;
                let headers = std::mem::take(request.headers_mut());
                let mut config = config.clone();
                plugin::resolve(&mut config.auth_info).await?;
                let signed = signed(&config, headers).map_err(|error| wrong(chain(&error)))?;
                let signed = signed.await.map_err(|error| wrong(chain(&*error)))?;
                *request.headers_mut() = signed.into_parts().0.headers;
                Ok(request)
            }
        }
    }
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;
type Signed = BoxFuture<'static, Result<Response<()>, Boxed>>;

/// These headers, and what a kubeconfig's user adds to them. (kube-rs' layers change a request on its way, which here leads back.)
fn signed(config: &Config, headers: HeaderMap) -> Result<Signed, kube::Error> {
    let here = service_fn(|signed: Request<NoBody>| async move {
        let mut answer = Response::new(());
        *answer.headers_mut() = signed.into_parts().0.headers;
        Ok::<_, Boxed>(answer)
    });
    let mut sent = Request::new(NoBody::new());
    *sent.headers_mut() = headers;
    let extra = config.extra_headers_layer()?;
    Ok(match config.auth_layer()? {
        Some(auth) => extra.layer(auth.layer(here)).oneshot(sent).boxed(),
        None => extra.layer(here).oneshot(sent).boxed(),
    })
}

type NoBody = http_body_util::Empty<bytes::Bytes>;
