//! Which addresses are YurtHub's. A hub counts as one, whatever name it was given: OpenYurt's masterservice filter puts
//! its address into `KUBERNETES_SERVICE_HOST` of Pods on edge nodes, and kubeconfigs of edge components name it
//! (openyurt cmd/yurthub/app/options). A hub may answer from its cache, so a hub that is taken for an apiserver would
//! be trusted too much.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use http::Uri;

/// Of YurtHub's dummy interface.
const DUMMY: [&str; 2] = ["169.254.2.1", "fd00::2:1"];
/// Its ports on loopback: its proxy without and with TLS, its own status, and the entrance for its peers.
const PORTS: [u16; 4] = [10261, 10267, 10268, 10269];

/// Whether a server is YurtHub.
pub fn is_hub(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address: Option<IpAddr> = host.parse().ok();
    let is_loopback = match address {
        Some(address) => address.to_canonical().is_loopback(),
        None => host.eq_ignore_ascii_case("localhost"),
    };
    address.is_some_and(is_dummy)
        || is_loopback && server.port_u16().is_some_and(|port| PORTS.contains(&port))
}

/// Whether an address is of YurtHub's dummy interface. Each node has that address for itself: where the interface is
/// not there (yet), another machine answers.
pub(crate) fn is_dummy(address: IpAddr) -> bool {
    let mut all = DUMMY.iter().map(|dummy| dummy.parse::<IpAddr>());
    all.any(|dummy| dummy.is_ok_and(|dummy| dummy == address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_a_hub_however_it_is_written() {
        for hub in [
            "http://127.0.0.1:10261",
            "http://localhost:10261/",
            "https://127.0.0.1:10268",
            "https://[::1]:10268",
            "http://[::ffff:127.0.0.1]:10261",
            "https://169.254.2.1:10268",
            "https://169.254.2.1",
            "https://[fd00::2:1]:443",
            "https://[fd00:0:0:0:0:0:2:1]",
            "https://[::ffff:169.254.2.1]",
        ] {
            assert!(is_hub(&hub.parse().unwrap()), "{hub}");
        }
        for apiserver in [
            "https://127.0.0.1:6443",
            "https://localhost",
            "https://10.96.0.1:443",
            "https://192.0.2.1:10268",
            "https://169.254.2.2:10268",
            "https://hub.example:10261",
        ] {
            assert!(!is_hub(&apiserver.parse().unwrap()), "{apiserver}");
        }
    }
}
