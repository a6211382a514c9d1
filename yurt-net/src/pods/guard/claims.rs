//! What Services and EndpointSlices say of an address. A claim weighs as much as the trust in those who may write it.
//! Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::NamespacedName;

/// The author of a claim on an address by a Service or an EndpointSlice, most trusted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// The cluster itself: default/kubernetes, or an object in kube-system.
    Cluster,
    /// A controller, in a status that tenants cannot write: the address of a load balancer.
    Controller,
    /// The author of a Service or an EndpointSlice, who may be any tenant.
    Author,
}

/// The claims on one address: the most trusted of each namespace, and separately (`true`) the most trusted for an
/// endpoint on another Node, or for another Pod of this one. A claim of the second kind never belongs to the Pod that
/// asks, whichever its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(BTreeMap<(Arc<str>, bool), (Word, String)>);

impl Claims {
    /// Adds the claim of a Service: on the address as such, or for another Pod on the Node `at`.
    pub(super) fn add(&mut self, word: Word, by: &NamespacedName, what: &str, at: &str) {
        let whose = || match at {
            "" => format!("{what} {by}"),
            at => format!("{what} {by} on Node {at}"),
        };
        let key = (by.namespace.clone(), !at.is_empty());
        let before = self.0.entry(key).or_insert_with(|| (word, whose()));
        if word < before.0 {
            *before = (word, whose());
        }
    }

    /// The most trusted claim, unless it is for Pods of this namespace on this node.
    pub(super) fn against(&self, namespace: &str) -> Option<(Word, &str)> {
        let word = self.0.values().map(|(word, _)| *word).min()?;
        let mut claims = self.0.iter();
        claims.find_map(|((by, is_elsewhere), (said, whose))| {
            let is_others = *is_elsewhere || &**by != namespace;
            (*said == word && is_others).then_some((word, &**whose))
        })
    }
}
