//! The node's own devices: what the cloud says of them goes to their thread.

use crate::node::vtep::{OwnDevices, Word};
use crate::source::preferred::Sources;

/// Passes on what the source in charge says of the own Node.
pub(super) fn inform(devices: &OwnDevices, sources: &Sources, node: &str) {
    let known = sources
        .snapshot()
        .and_then(|snapshot| snapshot.nodes.get(node));
    let annotations = known.map(|node| node.annotations.clone());
    devices.hear(Word {
        node: node.to_owned(),
        annotations: annotations.unwrap_or_default(),
        is_fresh: sources.freshness().is_fresh(),
    });
}
