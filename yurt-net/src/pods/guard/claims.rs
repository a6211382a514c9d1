//! What Services and EndpointSlices say of an address, and how much that weighs: as much as who may write it. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::NamespacedName;

/// Who has said, by a Service or an EndpointSlice, that an address is somebody's: the weightiest word first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// default/kubernetes or kube-system.
    Cluster,
    /// A controller, in a status that no tenant writes: the address of a load balancer.
    Controller,
    /// The author of a Service or an EndpointSlice, who may be anybody.
    Author,
}

/// What is said of one address: the weightiest word of each namespace, and apart from it (`true`) that for an endpoint which
/// is on another Node, or another Pod of this one. The second kind is no Pod's that asks here, not of that namespace either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(BTreeMap<(Arc<str>, bool), (Word, String)>);

impl Claims {
    /// Adds that a Service has the address: somewhere, or at another Pod, on the Node `at`.
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

    /// The weightiest claim, if it is not for Pods of this namespace on this node.
    pub(super) fn against(&self, namespace: &str) -> Option<(Word, &str)> {
        let word = self.0.values().map(|(word, _)| *word).min()?;
        let mut claims = self.0.iter();
        claims.find_map(|((by, is_elsewhere), (said, whose))| {
            let is_others = *is_elsewhere || &**by != namespace;
            (*said == word && is_others).then_some((word, &**whose))
        })
    }
}
