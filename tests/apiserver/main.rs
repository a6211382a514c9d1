//! Ring 3's servers themselves: they answer as an apiserver and YurtHub would, and break as they are told.

mod client;
mod command;
mod faults;
mod hub;
mod lists;
mod watches;

use serde_json::Value;
use serde_json::json;
use yurt_net_tests::apiserver::objects;

/// A NodePool: the smallest object there is.
fn pool(name: &str, nodes: &[&str]) -> Value {
    objects::node_pool(name, nodes)
}

/// A Service of an app.
fn service(name: &str, app: &str) -> Value {
    let mut service = objects::service(name, [10, 96, 0, 10].into(), 80);
    service["metadata"]["labels"] = json!({"app": app});
    service
}
