//! What the health ports answer. Pure: codes, headers and bodies are those of kube-proxy
//! (pkg/proxy/healthcheck/proxy_health.go, service_health.go), because load balancers and tests compare them byte for
//! byte.
#![forbid(unsafe_code)]

use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;

use crate::table::HealthCheck;

/// How long a table may wait to be written before the node is unhealthy: twice kube-proxy's sync period.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of this node's health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeHealth {
    /// When the kernel last agreed with all that is known; `None`: not yet.
    pub updated_at: Option<Timestamp>,
    /// Since when the kernel has lacked something that is known; `None`: it lacks nothing.
    pub behind_since: Option<Timestamp>,
    /// Load balancers should send no clients to this node: its Node is gone, or is being deleted.
    pub is_leaving: bool,
    /// The health checks of Services, sorted by port.
    pub checks: Vec<HealthCheck>,
}

/// An answer: its code, and its body of JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: String,
    /// `X-Load-Balancing-Endpoint-Weight`.
    pub(super) weight: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Proxy<'a> {
    last_updated: &'a str,
    current_time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Families<'a>>,
}

/// One table serves both families.
#[derive(Serialize)]
struct Families<'a> {
    #[serde(rename = "IPv4")]
    v4: Family<'a>,
    #[serde(rename = "IPv6")]
    v6: Family<'a>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Family<'a> {
    last_updated: &'a str,
    healthy: bool,
}

impl NodeHealth {
    /// Everything that is known is in the kernel, or has not waited for long. The apiserver does not matter.
    fn is_healthy(&self, now: Timestamp) -> bool {
        let late = |since: Timestamp| {
            let waited = Duration::try_from(now.duration_since(since));
            waited.is_ok_and(|waited| waited >= PATIENCE)
        };
        self.updated_at.is_none() || !self.behind_since.is_some_and(late)
    }

    /// `/healthz`: whether a load balancer is to send new clients to this node.
    pub(super) fn healthz(&self, now: Timestamp) -> Answer {
        let is_ok = self.is_healthy(now) && !self.is_leaving;
        self.proxy(now, is_ok, Some(!self.is_leaving))
    }

    /// `/livez`: the same, but a node that is leaving is still alive.
    pub(super) fn livez(&self, now: Timestamp) -> Answer {
        self.proxy(now, self.is_healthy(now), None)
    }

    fn proxy(&self, now: Timestamp, is_ok: bool, node_eligible: Option<bool>) -> Answer {
        let healthy = self.is_healthy(now);
        let updated = self.updated_at.map(|at| at.to_string());
        let current_time = &*now.to_string();
        // The zero time of Go.
        let last_updated = updated.as_deref().unwrap_or("0001-01-01T00:00:00Z");
        let family = Family {
            last_updated,
            healthy,
        };
        let proxy = Proxy {
            // Older readers expect the last update of a healthy proxy to be recent.
            last_updated: if is_ok { current_time } else { last_updated },
            current_time,
            node_eligible,
            healthy,
            status: updated.is_some().then_some(Families {
                v4: family,
                v6: family,
            }),
        };
        Answer {
            status: code(is_ok),
            // Serializing strings and booleans cannot fail.
            body: serde_json::to_string(&proxy).unwrap_or_default(),
            weight: None,
        }
    }

    /// What a load balancer is told at the port of a Service, whatever the path.
    pub(super) fn check(&self, port: u16, now: Timestamp) -> Answer {
        let at = self.checks.binary_search_by_key(&port, |check| check.port);
        let Ok(at) = at else {
            // The Service went away while it was being asked about.
            return Answer {
                status: StatusCode::SERVICE_UNAVAILABLE,
                body: String::new(),
                weight: Some(0),
            };
        };
        let HealthCheck {
            service,
            local_endpoints,
            ..
        } = &self.checks[at];
        let is_healthy = self.is_healthy(now);
        let quoted = |text: &str| serde_json::Value::from(text);
        let (namespace, name) = (quoted(&service.namespace), quoted(&service.name));
        Answer {
            status: code(is_healthy && *local_endpoints != 0),
            body: format!(
                "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\t\
                 \"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
            ),
            weight: Some(*local_endpoints),
        }
    }
}

fn code(is_ok: bool) -> StatusCode {
    match is_ok {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NamespacedName;

    const START: &str = "2026-01-02T03:04:05.5Z";

    fn at(seconds: i64) -> Timestamp {
        let start: Timestamp = START.parse().unwrap();
        start + jiff::SignedDuration::from_secs(seconds)
    }

    fn updated() -> NodeHealth {
        NodeHealth {
            updated_at: Some(at(0)),
            ..NodeHealth::default()
        }
    }

    #[test]
    fn a_healthy_proxy_says_what_kube_proxy_says() {
        let health = updated();
        let families = "\"status\":{\"IPv4\":{\"lastUpdated\":\"2026-01-02T03:04:05.5Z\",\"healthy\":true},\
            \"IPv6\":{\"lastUpdated\":\"2026-01-02T03:04:05.5Z\",\"healthy\":true}}";
        let now =
            "\"lastUpdated\":\"2026-01-02T03:04:06.5Z\",\"currentTime\":\"2026-01-02T03:04:06.5Z\"";
        let healthz = health.healthz(at(1));
        assert_eq!(healthz.status, StatusCode::OK);
        assert_eq!(
            healthz.body,
            format!("{{{now},\"nodeEligible\":true,\"healthy\":true,{families}}}")
        );
        let livez = health.livez(at(1));
        assert_eq!(livez.status, StatusCode::OK);
        assert_eq!(livez.body, format!("{{{now},\"healthy\":true,{families}}}"));
        assert_eq!([healthz.weight, livez.weight], [None, None]);
    }

    #[test]
    fn a_proxy_that_has_done_nothing_yet_is_healthy() {
        let healthz = NodeHealth::default().healthz(at(0));
        assert_eq!(healthz.status, StatusCode::OK);
        assert_eq!(
            healthz.body,
            format!(
                "{{\"lastUpdated\":\"{START}\",\"currentTime\":\"{START}\",\"nodeEligible\":true,\"healthy\":true}}"
            )
        );
    }

    #[test]
    fn a_node_that_leaves_is_alive_and_gets_no_clients() {
        let health = NodeHealth {
            is_leaving: true,
            ..updated()
        };
        let healthz = health.healthz(at(9));
        assert_eq!(healthz.status, StatusCode::SERVICE_UNAVAILABLE);
        let says = "{\"lastUpdated\":\"2026-01-02T03:04:05.5Z\",\"currentTime\":\"2026-01-02T03:04:14.5Z\",\
            \"nodeEligible\":false,\"healthy\":true,";
        assert!(healthz.body.starts_with(says), "{}", healthz.body);
        assert_eq!(health.livez(at(9)).status, StatusCode::OK);
    }

    #[test]
    fn a_proxy_is_unhealthy_when_a_change_has_waited_for_a_minute() {
        let mut health = updated();
        health.checks = vec![HealthCheck {
            port: 30999,
            service: NamespacedName::new("shop", "web"),
            local_endpoints: 1,
        }];
        health.behind_since = Some(at(10));
        let codes = |health: &NodeHealth, seconds| {
            let now = at(seconds);
            [
                health.healthz(now),
                health.livez(now),
                health.check(30999, now),
            ]
            .map(|answer| answer.status.as_u16())
        };
        assert_eq!(codes(&health, 69), [200; 3]);
        assert_eq!(codes(&health, 70), [503; 3]);
        let says = "\"nodeEligible\":true,\"healthy\":false,\"status\":{\"IPv4\":{\"lastUpdated\":\"2026-01-02T03:04:05.5Z\",\"healthy\":false}";
        assert!(health.healthz(at(70)).body.contains(says));
        let unhealthy = health.check(30999, at(70)).body;
        assert!(
            unhealthy.ends_with("\"serviceProxyHealthy\": false\n}"),
            "{unhealthy}"
        );
        health.behind_since = None;
        assert_eq!(codes(&health, 70), [200; 3]);
        // A clock that is set back makes no node unhealthy.
        health.behind_since = Some(at(1_000_000));
        assert_eq!(codes(&health, 70), [200; 3]);
    }

    #[test]
    fn a_load_balancer_hears_how_many_endpoints_are_here() {
        let check = |port, local_endpoints| HealthCheck {
            port,
            service: NamespacedName::new("shop", "web"),
            local_endpoints,
        };
        let health = NodeHealth {
            checks: vec![check(30998, 2), check(30999, 0)],
            ..updated()
        };
        let some = health.check(30998, at(0));
        assert_eq!((some.status, some.weight), (StatusCode::OK, Some(2)));
        assert_eq!(
            some.body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        let none = health.check(30999, at(0));
        assert_eq!(
            (none.status, none.weight),
            (StatusCode::SERVICE_UNAVAILABLE, Some(0))
        );
        let gone = health.check(31000, at(0));
        assert_eq!(gone.status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
