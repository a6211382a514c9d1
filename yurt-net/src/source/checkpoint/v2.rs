//! The provenance in checkpoints of versions 1 and 2: without editions. These versions also have no manifests. Pure.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::contents;
use crate::table::edition::Edition;

/// See [`contents::Provenance`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Provenance {
    source: String,
    synced_at: u64,
    resource_versions: BTreeMap<String, String>,
}

impl From<Provenance> for contents::Provenance {
    fn from(provenance: Provenance) -> Self {
        let Provenance {
            source,
            synced_at,
            resource_versions,
        } = provenance;
        Self {
            source,
            synced_at,
            resource_versions,
            edition: Edition::default(),
            left_out: Vec::new(),
        }
    }
}

#[cfg(test)]
impl From<contents::Provenance> for Provenance {
    fn from(provenance: contents::Provenance) -> Self {
        let contents::Provenance {
            source,
            synced_at,
            resource_versions,
            edition: _,
            left_out: _,
        } = provenance;
        Self {
            source,
            synced_at,
            resource_versions,
        }
    }
}
