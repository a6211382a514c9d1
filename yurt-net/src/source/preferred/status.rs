//! The state of the sources, for people and for metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::source::kube::Received;

/// Where the snapshot in force comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// There is no snapshot yet.
    #[default]
    None,
    /// From an apiserver.
    Live,
    /// From YurtHub, which may be answering from its cache.
    Hub,
    /// From manifests.
    File,
    /// From the checkpoint: no source has been in charge since the start.
    Checkpoint,
}

/// The sources, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The source in charge, as given; that of the checkpoint while none is.
    pub source: String,
    /// Where the snapshot in force comes from.
    pub provenance: Origin,
    /// Whether that is the cloud's present word, and not a cache's.
    pub is_fresh: bool,
    /// Seconds since the source in charge was last heard from, or since the checkpoint was true. For a checkpoint at
    /// least the agent's age.
    pub age_seconds: u64,
    /// The sources that are followed, in order of preference.
    pub sources: Vec<FollowedSource>,
    /// What fails at present; what was known before stays in force.
    pub source_error: Option<String>,
    /// Lists of a cache that are held back.
    pub held_lists: Vec<String>,
    /// What was received since the start, by resource.
    pub received: BTreeMap<String, Received>,
}

/// One of the sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FollowedSource {
    /// As given.
    pub source: String,
    /// The table comes from it.
    pub is_in_charge: bool,
    /// It has answered whole, and answers.
    pub is_good: bool,
    /// Seconds since it was last heard from; `None`: never, or it is a file.
    pub age_seconds: Option<u64>,
}
