//! The provenance in checkpoints of version 3: without the Services that had no room. Pure.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::{contents, v2};
use crate::table::edition::Edition;

/// See [`contents::Provenance`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Provenance {
    older: v2::Provenance,
    edition: Edition,
}

impl From<Provenance> for contents::Provenance {
    fn from(Provenance { older, edition }: Provenance) -> Self {
        Self {
            edition,
            ..older.into()
        }
    }
}

#[cfg(test)]
impl From<contents::Provenance> for Provenance {
    fn from(provenance: contents::Provenance) -> Self {
        Self {
            edition: provenance.edition,
            older: provenance.into(),
        }
    }
}
