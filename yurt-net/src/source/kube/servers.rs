//! Where apiservers and YurtHubs are, for those who keep Services off their addresses.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use tokio::time::timeout;

use super::access::Access;
use crate::source::spec::{Api, SourceSpec};

/// At the edge there may be nobody to ask for a name; an agent does not wait for it at its start.
const PATIENCE: Duration = Duration::from_secs(1);

/// The addresses and ports of what the sources, the kubeconfig and a Pod's environment name. A name that cannot be looked up
/// is left out, and said so: the endpoints of default/kubernetes are kept free without it.
pub async fn servers(specs: &[SourceSpec], access: &Access) -> Vec<SocketAddr> {
    let mut urls: Vec<Uri> = Vec::new();
    urls.extend(access.in_cluster.iter().filter_map(|url| url.parse().ok()));
    for spec in specs {
        match spec {
            SourceSpec::File(_) | SourceSpec::Kube(Api::Hub(None)) => {}
            SourceSpec::Kube(Api::Server(url) | Api::Hub(Some(url))) => urls.push(url.clone()),
            // Without credentials: a plugin for them may be slow.
            SourceSpec::Kube(Api::Inferred) => urls.extend(access.inferred().await),
        }
    }
    let mut found = Vec::new();
    for url in &urls {
        let host = url.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let default = if url.scheme_str() == Some("http") {
            80
        } else {
            443
        };
        let port = url.port_u16().unwrap_or(default);
        if let Ok(address) = host.parse() {
            found.push(SocketAddr::new(address, port));
            continue;
        }
        match timeout(PATIENCE, tokio::net::lookup_host((host, port))).await {
            Ok(Ok(addresses)) => found.extend(addresses),
            _ => tracing::warn!(
                host,
                "the apiserver's name cannot be looked up: its addresses are protected from Services only as endpoints of default/kubernetes, and by --protect"
            ),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_way_to_name_an_apiserver_says_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("config");
        let text = "{apiVersion: v1, kind: Config, current-context: a, \
            contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}], \
            clusters: [{name: a, cluster: {server: 'http://203.0.113.8:8080'}}]}";
        std::fs::write(&kubeconfig, text).unwrap();
        let access = Access {
            ca_file: None,
            service_account: dir.path().to_owned(),
            in_cluster: Some("https://[fd00:96::1]:443".to_owned()),
            kubeconfig: Some(kubeconfig),
        };
        let specs: Vec<SourceSpec> = [
            "kube:",
            "kube:https://203.0.113.6",
            "yurthub:http://127.0.0.1:10261",
            "yurthub:",
            "file:/x",
        ]
        .map(|spec| spec.parse().unwrap())
        .into();
        let found = servers(&specs, &access).await;
        let found: Vec<String> = found.iter().map(SocketAddr::to_string).collect();
        let expected = [
            "[fd00:96::1]:443",
            "203.0.113.8:8080",
            "203.0.113.6:443",
            "127.0.0.1:10261",
        ];
        assert_eq!(found, expected);
    }
}
