//! The devices of this machine, for verbs.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use crate::node::LinkWatch;

/// How long to wait for the kernel, which answers at once if there is netlink.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The names of this machine's devices, by index; none if they cannot be listed.
pub(super) async fn devices() -> BTreeMap<u32, String> {
    let links = async || LinkWatch::new()?.links().await;
    let links = timeout(PATIENCE, links()).await;
    let links = links.ok().and_then(Result::ok).unwrap_or_default();
    let links = links.into_iter();
    links.map(|link| (link.ifindex, link.name)).collect()
}
