//! An answer of an apiserver that is not of what was asked for.
//!
//! Pure.
#![forbid(unsafe_code)]

/// What a list or a watch was asked for: items of a list need not say what they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) kind: &'a str,
    pub(super) api_version: &'a str,
}

/// An answer that is not of what was asked for: an object in it says that it is something else. All that it lacks or
/// replaces would be taken for deleted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not of {wanted}s: an object in it is {found:?}")]
pub struct OtherObject {
    /// API version and kind of the object, or the beginning of them.
    found: String,
    /// The kind of the objects that were asked for.
    wanted: String,
}

impl OtherObject {
    /// What an object is that says this of itself, where it is not what was asked for. Items of an apiserver's list say
    /// nothing; those of YurtHub's, and all objects of events, say both. Another version of the same group is decoded,
    /// and costs only itself.
    pub(crate) fn said(
        kind: &str,
        api_version: &str,
        asked_kind: &str,
        asked_version: &str,
    ) -> Option<Self> {
        let group = |version: &str| version.rsplit_once('/').map(|(group, _)| group.to_owned());
        let is_kind = kind.is_empty() || kind == asked_kind;
        let is_group = api_version.is_empty() || group(api_version) == group(asked_version);
        if is_kind && is_group {
            return None;
        }
        let found = format!("{api_version} {kind}");
        Some(Self {
            found: found.trim().chars().take(64).collect(),
            wanted: asked_kind.to_owned(),
        })
    }
}
