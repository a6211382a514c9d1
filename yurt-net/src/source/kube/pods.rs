//! How the Pods of the own Node are read.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::task::News;

#[derive(Debug, Default)]
pub(super) struct PodsList {
    /// Makes it read again, where no watch reports changes.
    pub(super) is_asked_for: Arc<Notify>,
    /// When it was, and whether a watch follows it since.
    pub(super) read: Option<(Instant, bool)>,
}

impl PodsList {
    /// Takes note of what their task reports.
    pub(super) fn note(&mut self, news: &News) {
        let now = Instant::now();
        match news {
            News::Listed { version, .. } => self.read = Some((now, !version.is_empty())),
            News::Watching { .. } => self.read = Some((now, true)),
            // Its next messages are missed.
            News::Failed { .. } => self.read = None,
            News::Items { .. }
            | News::Put { .. }
            | News::Delete { .. }
            | News::Bookmark { .. }
            | News::Ended => {}
        }
    }
}
