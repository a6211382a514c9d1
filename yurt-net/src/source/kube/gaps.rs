//! Times in which no watch follows what a table needs. What happens in such a gap is seen only when a list or the next
//! watch arrives, and either may hang.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::resource::Resource;
use super::task::News;

/// A gap as long as this is reported.
const PATIENCE: Duration = Duration::from_secs(10);

/// Since when there is a gap, by resource.
#[derive(Debug, Default)]
pub(super) struct Gaps(BTreeMap<Resource, Instant>);

impl Gaps {
    /// Everything is requested from now on.
    pub(super) fn open(&mut self) {
        let now = Instant::now();
        for resource in Resource::ALL.into_iter().filter(|r| r.is_required()) {
            self.0.entry(resource).or_insert(now);
        }
    }

    /// Takes note of what a task reports.
    pub(super) fn note(&mut self, resource: Resource, news: &News) {
        if !resource.is_required() {
            return;
        }
        let now = Instant::now();
        match news {
            News::Ended | News::Failed { .. } => {
                self.0.entry(resource).or_insert(now);
            }
            // A cache that knows no version sends only lists.
            News::Listed { version, .. } if !version.is_empty() => {
                self.0.insert(resource, now);
            }
            News::Listed { .. } | News::Watching { .. } => {
                self.0.remove(&resource);
            }
            News::Items { .. } | News::Put { .. } | News::Delete { .. } | News::Bookmark { .. } => {
            }
        }
    }

    /// The resources that have not been followed for too long.
    pub(super) fn long(&self) -> impl Iterator<Item = Resource> {
        let gaps = self.0.iter();
        let gaps = gaps.filter(|(_, since)| since.elapsed() >= PATIENCE);
        gaps.map(|(resource, _)| *resource)
    }

    /// When the first of the gaps becomes, or became, too long.
    pub(super) fn is_long_at(&self) -> Option<Instant> {
        self.0.values().min().map(|since| *since + PATIENCE)
    }
}
