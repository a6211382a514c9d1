//! One watch: a position in its resource's log, and what the watch may see of it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout_at;

use super::api::Api;
use super::api::expired_line;
use super::call::Call;
use super::call::Frames;
use super::resource::Resource;
use super::resource::Target;
use super::selector::Filter;
use super::store::Entry;
use super::store::Event;
use super::store::Object;

/// How long before its end a watch with a timeout sends a bookmark.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
const INITIAL_EVENTS_END: &str = r#","annotations":{"k8s.io/initial-events-end":"true"}"#;

pub(super) struct Watch {
    api: Arc<Api>,
    changes: watch::Receiver<()>,
    resource: Resource,
    version: &'static str,
    filter: Filter,
    /// What has to be sent before the log.
    first: VecDeque<Bytes>,
    position: u64,
    /// The end of the log when the watch was opened: earlier messages of scripts were not for it.
    opened_at: u64,
    /// The client knows the changes up to this version.
    known: u64,
    /// How often all watches had been ended when this one was opened.
    ends: u64,
    deadline: Instant,
    /// `None`: not wanted.
    next_bookmark: Option<Instant>,
    is_over: bool,
}

/// What to do next.
enum Step {
    Send(Bytes),
    /// Nothing until this time, or until something changes.
    Wait(Instant),
    End,
}

impl Watch {
    pub(super) fn open(
        api: Arc<Api>,
        target: &Target,
        filter: Filter,
        call: &Call,
        asked: Option<u64>,
        sends_initial: bool,
    ) -> Self {
        let now = Instant::now();
        let changes = api.changes();
        let store = api.store();
        let table = store.table(target.resource);
        let deadline = now + call.timeout().unwrap_or(FOR_EVER);
        let has_bookmarks = call.is_set("allowWatchBookmarks");
        let is_from_now = asked.unwrap_or(0) == 0;
        let known = asked.filter(|v| *v > 0).unwrap_or(table.version);
        let mut first = VecDeque::new();
        let mut is_over = false;
        let mut position = table.position_after(known);
        if sends_initial || is_from_now {
            for object in table.objects.values().filter(|o| o.is_in(&filter)) {
                first.push_back(line("ADDED", object, target.resource, target.version));
            }
            position = table.log_end();
            if sends_initial && has_bookmarks {
                let version = table.version;
                first.push_back(bookmark(target, version, INITIAL_EVENTS_END));
            }
        } else if known < table.oldest {
            first.push_back(expired_line(known, table.oldest));
            is_over = true;
        }
        let opened_at = table.log_end();
        let ends = table.ends;
        drop(store);
        let mut watch = Self {
            changes,
            resource: target.resource,
            version: target.version,
            filter,
            first,
            position,
            opened_at,
            known,
            ends,
            deadline,
            next_bookmark: None,
            is_over,
            api,
        };
        if has_bookmarks {
            watch.next_bookmark = Some(watch.bookmark_after(now));
        }
        watch
    }

    /// Its lines, until it ends.
    pub(super) fn into_frames(self) -> Frames {
        Box::pin(stream::unfold(self, async |mut watch| {
            let line = watch.next().await?;
            Some((io::Result::Ok(line), watch))
        }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.changes.borrow_and_update();
            match self.step(Instant::now()) {
                Step::Send(line) => return Some(line),
                Step::End => return None,
                Step::Wait(until) => {
                    // The api has the sender, and is held here.
                    let _ = timeout_at(until, self.changes.changed()).await;
                }
            }
        }
    }

    fn step(&mut self, now: Instant) -> Step {
        if let Some(line) = self.first.pop_front() {
            return Step::Send(line);
        }
        if self.is_over || now >= self.deadline {
            return Step::End;
        }
        let api = Arc::clone(&self.api);
        let store = api.store();
        let table = store.table(self.resource);
        if table.is_paused {
            return if table.ends == self.ends {
                Step::Wait(self.deadline)
            } else {
                Step::End
            };
        }
        loop {
            let entry = match table.entry(self.position) {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                // The watch was too slow, or the history is gone.
                Err(()) => return Step::End,
            };
            let is_old = self.position < self.opened_at;
            self.position += 1;
            match entry {
                Entry::Event(event) => {
                    if let Some(line) = self.tell(event) {
                        return Step::Send(line);
                    }
                }
                Entry::Line(_) | Entry::End if is_old => {}
                Entry::Line(line) => return Step::Send(line.clone()),
                Entry::End => return Step::End,
            }
        }
        let Some(due) = self.next_bookmark else {
            return Step::Wait(self.deadline);
        };
        if now < due {
            return Step::Wait(due.min(self.deadline));
        }
        self.next_bookmark = Some(self.bookmark_after(now));
        let version = store.version;
        drop(store);
        // A list from the watch cache is at least as new as what watches were told.
        api.store().table_mut(self.resource).version = version;
        Step::Send(bookmark_of(self.resource, self.version, version, ""))
    }

    fn bookmark_after(&self, now: Instant) -> Instant {
        let regular = now + self.api.settings.bookmark_every;
        match self.deadline.checked_sub(LAST_BOOKMARK) {
            Some(last) if last > now => regular.min(last),
            _ => regular,
        }
    }

    /// A change as this watch sees it: an object that leaves its selector looks deleted.
    fn tell(&self, event: &Event) -> Option<Bytes> {
        if event.version <= self.known {
            return None;
        }
        let was_in = event.before.as_ref().is_some_and(|o| o.is_in(&self.filter));
        let is_in = !event.is_deletion && event.object.is_in(&self.filter);
        let change = match (was_in, is_in) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        Some(line(change, &event.object, self.resource, self.version))
    }
}

/// An event.
pub(super) fn line(change: &str, object: &Object, resource: Resource, version: &str) -> Bytes {
    let mut line = format!(r#"{{"type":"{change}","object":"#).into_bytes();
    line.extend(object.typed(resource, version));
    line.extend_from_slice(b"}\n");
    line.into()
}

fn bookmark(target: &Target, version: u64, more: &str) -> Bytes {
    bookmark_of(target.resource, target.version, version, more)
}

/// A bookmark: an object with only its version set.
pub(super) fn bookmark_of(
    resource: Resource,
    api_version: &str,
    version: u64,
    more: &str,
) -> Bytes {
    let kind = resource.kind();
    let blank = resource.shape().blank;
    let api_version = resource.api_version(api_version);
    format!(
        r#"{{"type":"BOOKMARK","object":{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{version}","creationTimestamp":null{more}}}{blank}}}}}
"#
    )
    .into()
}
