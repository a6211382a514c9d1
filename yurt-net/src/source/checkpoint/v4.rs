//! Services in checkpoints up to version 4: without their creation time. Pure.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::v5::Rest;
use crate::model::{self, NamespacedName};

/// See [`model::Service`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Service {
    name: NamespacedName,
    rest: Rest,
}

impl From<Service> for model::Service {
    fn from(old: Service) -> Self {
        old.rest.of(old.name, 0)
    }
}

#[cfg(test)]
impl From<model::Service> for Service {
    fn from(service: model::Service) -> Self {
        Self {
            rest: Rest::from(&service),
            name: service.name,
        }
    }
}
