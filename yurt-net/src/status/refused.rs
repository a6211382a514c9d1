//! What does not fit into the maps.

use serde::{Deserialize, Serialize};

use super::counted::counts;
use super::{KEPT, Status};
use crate::plan::Refused;
use crate::text;

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

impl Status {
    /// Tells of these Service ports.
    pub fn set_refused(&mut self, all: &[Refused]) {
        let first = text::in_turns(all, KEPT, |refused| &refused.service.namespace);
        self.refused = first.into_iter().map(RefusedService::from).collect();
        self.refused_by_map = counts(all.iter().map(|refused| refused.map.to_string()));
    }

    /// Full maps, how many Service ports do not fit into each, and the first of them.
    pub fn refused_maps(&self) -> Vec<(&str, usize, &RefusedService)> {
        let named = |map: &str| self.refused.iter().find(|refused| refused.map == map);
        let maps = self.refused_by_map.iter();
        maps.filter_map(|(map, count)| Some((&**map, *count, named(map)?)))
            .collect()
    }
}
