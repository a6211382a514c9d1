//! What is reported of objects that are not used as they were sent.
//!
//! Pure.
#![forbid(unsafe_code)]

use crate::model::{NamespacedName, Rejection};
use crate::text;

/// Of so many objects that cannot be read the snapshot tells. All of them are remembered, and each is reported when it
/// is among the first few.
pub(super) const SHOWN_REJECTIONS: usize = 1000;

/// So many that each namespace has one, and how many more there are.
pub(super) fn shown(all: &[&Rejection]) -> Vec<Rejection> {
    let shown = text::in_turns(all, SHOWN_REJECTIONS, |rejection| {
        text::by_namespace(&rejection.namespace)
    });
    let more = all.len() - shown.len();
    let mut shown: Vec<Rejection> = shown.into_iter().copied().cloned().collect();
    if more > 0 {
        shown.push(Rejection {
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            source: String::new(),
            reason: format!("more objects cannot be read than these {SHOWN_REJECTIONS}"),
        });
    }
    shown
}

/// A slice that is not kept whole.
pub(super) fn cut(name: &NamespacedName, reason: String) -> Rejection {
    Rejection {
        kind: "EndpointSlice".to_owned(),
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        source: String::new(),
        reason,
    }
}

/// An object that cannot be read, of which an earlier version may be known.
pub(super) fn keeping(mut rejection: Rejection, is_known: bool) -> Rejection {
    if is_known {
        rejection.reason += "; the last good version is kept";
    }
    rejection
}
