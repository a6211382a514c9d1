//! Why no server can be asked.

use std::io;
use std::path::PathBuf;

use http::Uri;
use http::uri::InvalidUri;
use kube::config::KubeconfigError;
use tokio_rustls::rustls::pki_types::InvalidDnsNameError;

use super::super::plugin::PluginError;

/// Why no connection can be attempted: something that was configured is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
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
    /// It may have a password in it, and is not shown.
    #[error(
        "the kubeconfig names a proxy-url, which yurt-net does not use: name a server that this node reaches without a proxy"
    )]
    Proxy,
    #[error(
        "nothing says who may sign the certificate of {url}; give --kube-ca, or install CA certificates: {errors}"
    )]
    NoCa { url: Uri, errors: String },
    #[error("certificates for {url} cannot be used: {why}")]
    Tls { url: Uri, why: String },
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
