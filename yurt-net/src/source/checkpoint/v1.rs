//! Records of checkpoints of version 1: slices say nothing of Pods, and there are no Pods. Pure.

#![forbid(unsafe_code)]

use std::sync::Arc;

use serde::Deserialize;

use super::contents::{self, Edit};
use super::v2::Provenance;
use super::v4::Service;
use crate::model::{
    self, AddressFamily, EndpointPort, Endpoints, NamespacedName, Node, NodeBucket, NodePool,
    PoolService, ServiceCidr,
};

/// See [`contents::Record`]; the order is the format's.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) enum Record {
    Synced(Provenance),
    Service(Edit<NamespacedName, Service>),
    EndpointSlice(Edit<NamespacedName, EndpointSlice>),
    Node(Edit<Arc<str>, Node>),
    NodePool(Edit<Arc<str>, NodePool>),
    NodeBucket(Edit<Arc<str>, NodeBucket>),
    ServiceCidr(Edit<Arc<str>, ServiceCidr>),
    PoolService(Edit<NamespacedName, PoolService>),
}

/// See [`model::EndpointSlice`].
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct EndpointSlice {
    name: NamespacedName,
    service: Arc<str>,
    family: AddressFamily,
    is_headless: bool,
    ports: Arc<[EndpointPort]>,
    endpoints: Endpoints,
}

impl From<Record> for contents::Record {
    fn from(record: Record) -> Self {
        match record {
            Record::Synced(provenance) => Self::Synced(provenance.into()),
            Record::Service(edit) => Self::Service(edit.converted()),
            Record::EndpointSlice(Edit::Put(slice)) => {
                let EndpointSlice {
                    name,
                    service,
                    family,
                    is_headless,
                    ports,
                    endpoints,
                } = Arc::unwrap_or_clone(slice);
                let slice = model::EndpointSlice {
                    name,
                    service,
                    family,
                    is_headless,
                    ports,
                    endpoints,
                    pods: Box::default(),
                };
                Self::EndpointSlice(Edit::Put(slice.into()))
            }
            Record::EndpointSlice(Edit::Delete(name)) => Self::EndpointSlice(Edit::Delete(name)),
            Record::Node(edit) => Self::Node(edit),
            Record::NodePool(edit) => Self::NodePool(edit),
            Record::NodeBucket(edit) => Self::NodeBucket(edit),
            Record::ServiceCidr(edit) => Self::ServiceCidr(edit),
            Record::PoolService(edit) => Self::PoolService(edit),
        }
    }
}

#[cfg(test)]
impl Record {
    /// The record that an agent of version 1 would have written; `None` for what that version does not have.
    pub(super) fn of(record: contents::Record) -> Option<Self> {
        Some(match record {
            contents::Record::Synced(provenance) => Self::Synced(provenance.into()),
            contents::Record::Service(edit) => Self::Service(edit.converted()),
            contents::Record::EndpointSlice(Edit::Put(slice)) => {
                let slice = Arc::unwrap_or_clone(slice);
                Self::EndpointSlice(Edit::Put(Arc::new(EndpointSlice {
                    name: slice.name,
                    service: slice.service,
                    family: slice.family,
                    is_headless: slice.is_headless,
                    ports: slice.ports,
                    endpoints: slice.endpoints,
                })))
            }
            contents::Record::EndpointSlice(Edit::Delete(name)) => {
                Self::EndpointSlice(Edit::Delete(name))
            }
            contents::Record::Node(edit) => Self::Node(edit),
            contents::Record::NodePool(edit) => Self::NodePool(edit),
            contents::Record::NodeBucket(edit) => Self::NodeBucket(edit),
            contents::Record::ServiceCidr(edit) => Self::ServiceCidr(edit),
            contents::Record::PoolService(edit) => Self::PoolService(edit),
            contents::Record::LocalPod(_) | contents::Record::Manifest(_) => return None,
        })
    }
}
