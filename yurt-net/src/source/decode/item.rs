//! One object as an apiserver sends it, in a list or an event.

use serde::de::DeserializeSeed as _;

use super::names::Names;
use super::object::Object;
use super::other::{Asked, OtherObject};
use super::stream::{Found, Top};
use crate::model::Rejection;
use crate::text;

/// Why an object is not there.
#[derive(Debug)]
pub enum ItemError {
    /// It is what was asked for, and wrong: it costs only itself.
    Rejected(Rejection),
    /// It is not what was asked for: it costs the whole answer.
    Other(OtherObject),
}

/// Decodes one object of an apiserver; `None` when nothing reads it. `kind` and `api_version` are what its list or
/// watch is of.
pub fn item(
    json: &[u8],
    kind: &str,
    api_version: &str,
    names: &mut Names,
) -> Result<Option<Object>, ItemError> {
    let mut found = Found::default();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let item = Top {
        names,
        found: &mut found,
        index: Some(0),
        asked: Some(Asked { kind, api_version }),
        spared: None,
    };
    let parsed = item.deserialize(&mut deserializer);
    let refused = |kind, namespace, name, reason| {
        ItemError::Rejected(Rejection {
            kind,
            namespace,
            name,
            source: String::new(),
            reason,
        })
    };
    if let Err(error) = parsed.and_then(|()| deserializer.end()) {
        let reason = text::message(&format!("cannot be read: {error}")).to_string();
        return Err(refused(
            kind.to_owned(),
            String::new(),
            String::new(),
            reason,
        ));
    }
    if let Some(other) = found.other {
        return Err(ItemError::Other(other));
    }
    found.settle(kind, Some(api_version), names);
    match found.refusals.pop() {
        Some(refusal) => Err(refused(
            refusal.kind,
            refusal.namespace,
            refusal.name,
            refusal.reason,
        )),
        None => Ok(found.objects.pop()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_that_says_it_is_something_else_is_refused_and_one_that_says_nothing_is_believed() {
        let read = |json: &str, kind, api_version| {
            item(json.as_bytes(), kind, api_version, &mut Names::default())
        };
        for json in [
            r#"{"metadata":{"name":"web"},"spec":{}}"#,
            r#"{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1"}"#,
            r#"{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1beta1"}"#,
            r#"{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Service"}]}}"#,
            // It is rejected, and named.
            r#"{"kind":7,"metadata":{"name":"web"}}"#,
            r#"{"kind":"EndpointSlice","kind":"Pod","metadata":{"name":"web"}}"#,
            r#"{"kind":"#,
        ] {
            let read = read(json, "EndpointSlice", "discovery.k8s.io/v1");
            assert!(
                !matches!(read, Err(ItemError::Other(_))),
                "{json}: {read:?}"
            );
        }
        for (json, named) in [
            (
                r#"{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1"}"#,
                "EndpointSlice",
            ),
            (
                r#"{"kind":"PartialObjectMetadata"}"#,
                "PartialObjectMetadata",
            ),
            (
                r#"{"apiVersion":"serving.knative.dev/v1","kind":"Service"}"#,
                "serving.knative.dev/v1",
            ),
            (r#"{"apiVersion":"serving.knative.dev/v1"}"#, "serving"),
            (r#"{"metadata":{"name":"web"},"kind":"Pod"}"#, "Pod"),
            (r#"{"\u006bind":"P\u006fd"}"#, "Pod"),
            (
                r#"{"kind":"ServiceList","items":[{"kind":"Service"}]}"#,
                "ServiceList",
            ),
        ] {
            let read = read(json, "Service", "v1");
            let Err(ItemError::Other(error)) = read else {
                panic!("{json}: {read:?}");
            };
            assert!(error.to_string().contains(named), "{json}: {error}");
        }
    }
}
