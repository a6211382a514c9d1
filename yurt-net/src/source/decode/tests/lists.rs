//! Lists of objects, whole and cut.

use super::*;

#[test]
fn a_list_is_read_item_by_item_wherever_its_kind_stands() {
    let items = "items:
- {apiVersion: v1, kind: Node, metadata: {name: a}}
- {apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {ports: [{port: none}, 7]}}
- {apiVersion: v1, kind: Job, metadata: {name: p}, spec: {containers: [{ports: [1]}]}}
- {apiVersion: v1, kind: Service, spec: {}}
-
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
";
    let head = "apiVersion: v1\nkind: List\n";
    for text in [format!("{head}{items}"), format!("{items}{head}")] {
        let decoded = yaml(&text);
        assert_eq!(
            objects(&decoded),
            ["Node /a in 1", "Service default/web in 1"]
        );
        assert_eq!(
            rejections(&decoded),
            [
                "Service default/bad web.yaml#1: spec.ports[0].port: expected a port up to 65535, found \"none\"",
                "Service default/ web.yaml#1: items[3]: metadata.name: expected the name of the object, found nothing",
            ]
        );
    }
}

#[test]
fn items_of_a_typed_list_inherit_kind_and_version() {
    let items = r#""items": [{"metadata": {"name": "a"}}, {"metadata": {}}]"#;
    let head = r#""kind": "NodeList", "apiVersion": "v1""#;
    for text in [
        format!("{{{head}, {items}}}"),
        format!("{{{items}, {head}}}"),
    ] {
        let decoded = json(&text);
        assert_eq!(objects(&decoded), ["Node /a in 1"]);
        assert_eq!(decoded.rejections.len(), 1, "{decoded:?}");
    }
    let slices = r#"{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "items": [
        {"metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "w"}}, "addressType": "IPv6"}]}"#;
    assert_eq!(objects(&json(slices)), ["EndpointSlice default/x in 1"]);
    assert_eq!(
        json(r#"{"kind": "JobList", "apiVersion": "v1", "items": [{"metadata": {}}, {}]}"#),
        Decoded::default()
    );
    assert_eq!(
        json(r#"{"kind": "List", "apiVersion": "v1", "items": null}"#),
        Decoded::default()
    );
}

#[test]
fn a_list_within_a_list_is_read_too() {
    let decoded = yaml(&format!(
        "kind: List\nitems:\n- kind: List\n  items:\n  - {}",
        "{apiVersion: v1, kind: Node, metadata: {name: a}}\n"
    ));
    assert_eq!(objects(&decoded), ["Node /a in 1"]);
}

#[test]
fn an_item_that_is_no_object_costs_only_itself() {
    let good = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a"}}"#;
    for (bad, reason) in [
        ("7", "items[0]: expected an object, found integer `7`"),
        ("-7", "items[0]: expected an object, found integer `-7`"),
        (
            "0.5",
            "items[0]: expected an object, found floating point `0.5`",
        ),
        ("true", "items[0]: expected an object, found boolean `true`"),
        ("\"x\"", "items[0]: expected an object, found string \"x\""),
        ("[[7]]", "items[0]: expected an object, found sequence"),
        (
            r#"{"kind":"List","items":7}"#,
            "items: expected a list, found integer `7`",
        ),
        (
            r#"{"kind":"List","items":{"a":7}}"#,
            "items: expected a list, found map",
        ),
    ] {
        let list = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{bad},{good}]}}"#);
        for decoded in [json(&list), yaml(&list)] {
            assert_eq!(objects(&decoded), ["Node /a in 1"], "{bad}");
            let found = &decoded.rejections;
            assert!(found.len() == 1 && found[0].name.is_empty(), "{found:?}");
            assert_eq!(found[0].reason, reason);
        }
    }
}

#[test]
fn an_item_without_a_kind_may_say_so() {
    let list =
        r#"{"apiVersion":"v1","kind":"NodeList","items":[{"kind":null,"metadata":{"name":"a"}}]}"#;
    assert_eq!(objects(&json(list)), ["Node /a in 1"]);
}

#[test]
fn only_lists_have_items() {
    let text = "items: [{apiVersion: v1, kind: Node, metadata: {name: a}}]\nkind: Bundle\napiVersion: x/v1\n";
    assert_eq!(yaml(text), Decoded::default());
}

#[test]
fn a_list_cut_off_in_the_middle_is_not_taken_at_all() {
    let item = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}"#;
    let decoded = json(&format!(
        r#"{{"kind": "List", "items": [{item}, {{"kind": "No"#
    ));
    assert_eq!(decoded.objects, []);
    assert_eq!(decoded.rejections.len(), 1);
}

#[test]
fn a_list_larger_than_the_parsers_own_limits_is_read() {
    // About 280,000 nodes: a default budget stops at 250,000.
    let mut text = String::from("items:\n");
    for index in 0..28_000 {
        writeln!(
            text,
            "- {{apiVersion: v1, kind: Node, metadata: {{name: n{index}}}}}"
        )
        .unwrap();
    }
    text.push_str("kind: List\n");
    let decoded = yaml(&text);
    assert_eq!(decoded.rejections, []);
    assert_eq!(decoded.objects.len(), 28_000);
}
