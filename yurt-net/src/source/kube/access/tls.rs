//! Whom to trust, and how we prove who we are, over TLS: a kubeconfig's certificates and keys, as rustls takes them.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Uri;
use http::uri::Scheme;
use kube::Config;
use kube::config::AuthInfo;
use rustls_native_certs::load_native_certs;
use secrecy::ExposeSecret as _;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::error::AccessError;
use crate::error::chain;
use crate::host::disk::read_whole;

/// Of a file with certificates, or of a kubeconfig: what Kubernetes lets a Secret have.
pub(super) const MOST_BYTES: u64 = 1 << 20;
/// How the server is verified, and how it verifies us.
pub(crate) struct Tls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    /// False where a kubeconfig says `insecure-skip-tls-verify`.
    pub(crate) is_verified: bool,
}

pub(super) fn is_https(url: &Uri) -> bool {
    url.scheme() == Some(&Scheme::HTTPS)
}

/// Reads what is needed for it; `None`: the server is asked without TLS. Blocks.
pub(super) fn tls(config: &Config) -> Result<Option<Tls>, AccessError> {
    let url = &config.cluster_url;
    if !is_https(url) {
        return Ok(None);
    }
    let name = config.tls_server_name.as_deref().or_else(|| url.host());
    let name = name.unwrap_or_default();
    let name = name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let server = ServerName::try_from(name.clone());
    Ok(Some(Tls {
        config: Arc::new(client(config)?),
        name: server.map_err(|source| AccessError::Name { name, source })?,
        is_verified: !config.accept_invalid_certs,
    }))
}

fn client(config: &Config) -> Result<ClientConfig, AccessError> {
    let wrong = |why| AccessError::Tls {
        url: config.cluster_url.clone(),
        why,
    };
    let builder = ClientConfig::builder();
    let builder = match config.accept_invalid_certs {
        true => {
            let any = AnyServer(Arc::clone(builder.crypto_provider()));
            let builder = builder.dangerous();
            builder.with_custom_certificate_verifier(Arc::new(any))
        }
        false => builder.with_root_certificates(roots(config)?),
    };
    Ok(match identity(&config.auth_info).map_err(wrong)? {
        Some((certificates, key)) => {
            let client = builder.with_client_auth_cert(certificates, key);
            client.map_err(|error| wrong(format!("the client key: {}", chain(&error))))?
        }
        None => builder.with_no_client_auth(),
    })
}

/// The authorities that may sign the server's certificate: those that are named, or else those that the machine trusts.
fn roots(config: &Config) -> Result<RootCertStore, AccessError> {
    let mut roots = RootCertStore::empty();
    let url = || config.cluster_url.clone();
    let Some(named) = &config.root_cert else {
        let found = load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let errors = found.errors.iter().map(|error| chain(error));
            let errors = errors.collect::<Vec<_>>().join("; ");
            return Err(AccessError::NoCa { url: url(), errors });
        }
        return Ok(roots);
    };
    for der in named {
        let added = roots.add(CertificateDer::from(der.clone()));
        added.map_err(|error| AccessError::Tls {
            url: url(),
            why: format!("a certificate of its CA: {}", chain(&error)),
        })?;
    }
    Ok(roots)
}

/// The certificates of a file, in DER.
pub(super) fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, AccessError> {
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

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Our client certificate and its key, where there are any. Secret.
fn identity(user: &AuthInfo) -> Result<Option<Identity>, String> {
    let certificate = pem(
        "client-certificate",
        user.client_certificate_data.as_deref(),
        user.client_certificate.as_deref(),
    )?;
    let key = user.client_key_data.as_ref();
    let key = pem(
        "client-key",
        key.map(|key| key.expose_secret()),
        user.client_key.as_deref(),
    )?;
    let (certificate, key) = match (certificate, key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => {
            return Err("the user has a client-certificate, but no client-key".into());
        }
        (None, Some(_)) => {
            return Err("the user has a client-key, but no client-certificate".into());
        }
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
    let certificates = certificates.ok().filter(|all| !all.is_empty());
    let certificates = certificates.ok_or("client-certificate holds no certificate in PEM")?;
    let key = PrivateKeyDer::from_pem_slice(&key);
    let key = key.map_err(|_secret| "client-key holds no private key in PEM")?;
    Ok(Some((certificates, key)))
}

/// A value that a kubeconfig has in base64, or else in a file.
fn pem(field: &str, data: Option<&str>, path: Option<&str>) -> Result<Option<Vec<u8>>, String> {
    let is_given = |text: &&str| !text.is_empty();
    if let Some(data) = data.filter(is_given) {
        let decoded = BASE64_STANDARD.decode(data);
        return match decoded {
            Ok(pem) => Ok(Some(pem)),
            Err(_secret) => Err(format!("{field}-data is not in base64")),
        };
    }
    let Some(path) = path.filter(is_given) else {
        return Ok(None);
    };
    let read = read_whole(Path::new(path), MOST_BYTES);
    let read = read.map_err(|error| format!("{field} {path}: {}", chain(&error)))?;
    Ok(Some(read))
}

/// `insecure-skip-tls-verify`: any server is trusted that has the key of its own certificate.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
