//! Ring 3's servers themselves: they answer as an apiserver and YurtHub would, and break as they are told.

mod client;
mod faults;
mod lists;
mod watches;

use serde_json::Value;
use serde_json::json;

/// A NodePool: the smallest object there is.
fn pool(name: &str, nodes: &[&str]) -> Value {
    json!({
        "apiVersion": "apps.openyurt.io/v1beta2",
        "kind": "NodePool",
        "metadata": {"name": name, "labels": {"name": name}},
        "status": {"nodes": nodes},
    })
}

/// A Service that nothing is said of.
fn service(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
        "spec": {"clusterIP": "None"},
    })
}
