//! What does not fit into the maps.

use serde::{Deserialize, Serialize};

use crate::plan::Refused;

/// A service port that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedService {
    /// `namespace/name:port`.
    pub service: String,
    /// The map that is full.
    pub map: String,
    /// The flag that makes it larger.
    pub flag: String,
    /// It serves some of its endpoints; else it is left out whole.
    pub has_some: bool,
}

impl From<&Refused> for RefusedService {
    fn from(refused: &Refused) -> Self {
        let Refused {
            service,
            map,
            has_some,
        } = refused;
        Self {
            service: service.to_string(),
            map: map.to_string(),
            flag: map.flag().to_owned(),
            has_some: *has_some,
        }
    }
}
