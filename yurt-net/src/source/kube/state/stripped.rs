//! What an object cannot have lost, so that whoever stands between has taken it.
//!
//! Pure.
#![forbid(unsafe_code)]

use crate::model::{Kind, NamespacedName, Rejection};
use crate::source::decode::Object;

/// What nobody takes away from an object that is in force, and this one of its name lacks. A Node that has lost some of
/// its labels, or a pool some of its nodes, was changed by people.
pub(super) fn lost(in_force: &Object, object: &Object, node: &str) -> Option<&'static str> {
    let has_left_nothing = |were: &[String], are: &[String]| {
        // A pool or a bucket has this node for as long as its objects are asked for.
        are.is_empty() && were.iter().any(|name| name == node)
    };
    match (in_force, object) {
        // The kubelet sets three of them, and nobody else may remove those for long.
        (Object::Node(was), Object::Node(is)) if is.labels.is_empty() && !was.labels.is_empty() => {
            Some("labels")
        }
        // An apiserver refuses to change them (kubernetes pkg/apis/core/validation, ValidateNodeUpdate).
        (Object::Node(was), Object::Node(is))
            if is.pod_cidrs.is_empty() && !was.pod_cidrs.is_empty() =>
        {
            Some("Pod CIDRs")
        }
        (Object::NodePool(was), Object::NodePool(is))
            if has_left_nothing(&was.nodes, &is.nodes) =>
        {
            Some("nodes")
        }
        (Object::NodeBucket(was), Object::NodeBucket(is))
            if has_left_nothing(&was.nodes, &is.nodes) =>
        {
            Some("nodes")
        }
        // It may get a second one, and keeps the first (pkg/apis/networking/validation, ValidateServiceCIDRUpdate).
        (Object::ServiceCidr(was), Object::ServiceCidr(is))
            if is.cidrs.is_empty() && !was.cidrs.is_empty() =>
        {
            Some("CIDRs")
        }
        _ => None,
    }
}

/// Reports an object that has lost what nobody takes away.
pub(super) fn stripped(kind: Kind, name: &NamespacedName, lost: &str) -> Rejection {
    Rejection {
        kind: kind.name().to_owned(),
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        source: String::new(),
        reason: format!(
            "it has no {lost} any more, which nobody takes away: it was damaged on its way, as by a broken cache"
        ),
    }
}
