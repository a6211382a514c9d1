//! What does not fit into the maps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::counted::{KEPT, counts};
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
    /// Some of its endpoints are in force; otherwise it is left out whole.
    pub has_some: bool,
    /// How many endpoints of its shortest set are in force, if only a part is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints_in_force: Option<usize>,
    /// Of how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<usize>,
}

impl From<&Refused> for RefusedService {
    fn from(refused: &Refused) -> Self {
        let Refused {
            service,
            map,
            has_some,
            part,
        } = refused;
        Self {
            service: service.to_string(),
            map: map.to_string(),
            flag: map.flag().to_owned(),
            has_some: *has_some,
            endpoints_in_force: part.map(|(in_force, _)| in_force),
            endpoints: part.map(|(_, all)| all),
        }
    }
}

/// All Service ports that do not fit, as far as a status lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoesNotFit {
    /// The first few.
    pub(super) first: Vec<RefusedService>,
    /// How many there are, by map.
    pub(super) by_map: BTreeMap<String, usize>,
}

impl DoesNotFit {
    /// Of these.
    pub fn of(all: &[Refused]) -> Self {
        let first = text::in_turns(all, KEPT, |refused| {
            text::by_namespace(&refused.service.namespace)
        });
        Self {
            first: first.into_iter().map(RefusedService::from).collect(),
            by_map: counts(all.iter().map(|refused| refused.map.to_string())),
        }
    }

    /// Full maps, how many Service ports do not fit into each, and the first of them.
    pub fn maps(&self) -> Vec<(&str, usize, &RefusedService)> {
        let named = |map: &str| self.first.iter().find(|refused| refused.map == map);
        let maps = self.by_map.iter();
        maps.filter_map(|(map, count)| Some((&**map, *count, named(map)?)))
            .collect()
    }
}
