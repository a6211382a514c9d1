//! What is too much: of an object, of a document, of a file.

use super::super::stream::{MAX_OBJECTS, MAX_REFUSALS};
use super::super::value::MAX_VALUES;
use super::*;

/// A Service of so many external IPs, and another object.
fn with_external_ips(count: usize) -> String {
    let ips = vec!["0"; count].join(",");
    let service = format!(
        r#"{{"spec":{{"externalIPs":[{ips}]}},"kind":"Service","apiVersion":"v1","metadata":{{"namespace":"shop","name":"big"}}}}"#
    );
    let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a"}}"#;
    format!(r#"{{"kind":"List","items":[{service},{node}]}}"#)
}

#[test]
fn an_object_of_too_many_values_costs_only_itself_and_is_named_wherever_its_name_stands() {
    // Without the fields of the Service itself.
    let decoded = json(&with_external_ips(MAX_VALUES - 16));
    assert_eq!(objects(&decoded), ["Node /a in 1"]);
    assert!(rejections(&decoded)[0].contains("spec.externalIPs[0]"));
    let text = with_external_ips(MAX_VALUES + 1);
    let told =
        "Service shop/big web.json#1: it has more than 262144 values in the fields that are read";
    let of_list = text
        .replace(r#""kind":"Service","#, "")
        .replace(r#""List""#, r#""ServiceList","apiVersion":"v1""#);
    for text in [&text, &of_list] {
        let decoded = json(text);
        assert_eq!(objects(&decoded), ["Node /a in 1"]);
        assert_eq!(rejections(&decoded), [told]);
    }
    // Of an object that nobody reads, nobody asks how large it is.
    let decoded = json(&text.replace("Service", "Gateway"));
    assert_eq!((decoded.objects.len(), decoded.rejections), (1, vec![]));
}

#[test]
fn a_file_of_too_many_objects_has_the_first_of_them_and_may_hide_the_others() {
    let item = |version: &str| {
        format!(r#"{{"apiVersion":"{version}","kind":"Node","metadata":{{"name":"a"}}}}"#)
    };
    let list = |version: &str, count: usize| {
        let items = vec![item(version); count].join(",");
        format!(r#"{{"kind":"List","items":[{items}]}}"#)
    };
    let told = "a file may have 100000 objects and 10000 that cannot be read: 2 more are left out: split it";
    let half = MAX_OBJECTS / 2;
    let decoded = json(&(list("v1", half) + &list("v1", half + 2)));
    assert_eq!(decoded.objects.len(), MAX_OBJECTS);
    assert_eq!(rejections(&decoded), [format!(" / web.json: {told}")]);
    let half = list("v2", MAX_REFUSALS / 2 + 1);
    let decoded = json(&[half.clone(), half, item("v1")].concat());
    assert_eq!(objects(&decoded), ["Node /a in 3"]);
    assert_eq!(decoded.rejections.len(), MAX_REFUSALS + 1);
    let last = decoded.rejections.last().unwrap();
    assert_eq!((&*last.name, &*last.reason), ("", told));
}

/// As people write them, and as tools write texts that look like them.
#[test]
fn merge_keys_are_followed_and_texts_that_look_like_them_are_read() {
    let text = "apiVersion: v1\nkind: List\nbase: &b\n  apiVersion: v1\n  kind: Node\nitems:\n\
        - <<: *b\n  metadata: {name: a}\n- {? <<\n  : *b, metadata: {name: b}}\n- {!!merge \"<<\": *b, metadata: {name: c}}\n";
    let decoded = yaml(text);
    assert_eq!(decoded.rejections, []);
    assert_eq!(
        objects(&decoded),
        ["Node /a in 1", "Node /b in 1", "Node /c in 1"]
    );
    // 110,000 parts, with a script in an annotation: no merge key.
    let script = "annotations: {x: \"cat <<EOF\\nwhat? no: yes\\nEOF\"}";
    let mut text = String::from("items:\n");
    for index in 0..10_000 {
        writeln!(
            text,
            "- {{apiVersion: v1, kind: Node, metadata: {{{script}, name: n{index}}}}}"
        )
        .unwrap();
    }
    let decoded = yaml(&(text + "kind: List\n"));
    assert_eq!(
        (decoded.objects.len(), decoded.rejections),
        (10_000, vec![])
    );
}

/// As PyYAML writes labels that an object has twice.
#[test]
fn a_list_of_which_each_object_shares_something_within_itself_is_read() {
    let mut text = String::from("apiVersion: v1\nitems:\n");
    for n in 0..5_000 {
        writeln!(
            text,
            "- apiVersion: v1\n  kind: Service\n  metadata:\n    labels: &id{n}\n      app: web-{n}\n    name: web-{n}\n  \
             spec:\n    clusterIP: None\n    selector: *id{n}"
        )
        .unwrap();
    }
    let decoded = yaml(&(text + "kind: List\n"));
    assert_eq!((decoded.objects.len(), decoded.rejections), (5_000, vec![]));
}
