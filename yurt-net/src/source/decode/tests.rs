use std::fmt::Write as _;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

pub(super) fn yaml(text: &str) -> Decoded {
    decode(text, Format::Yaml, "web.yaml", &mut Names::default())
}

fn json(text: &str) -> Decoded {
    decode(text, Format::Json, "web.json", &mut Names::default())
}

/// `Kind namespace/name in document`, one for each object.
pub(super) fn objects(decoded: &Decoded) -> Vec<String> {
    let line = |located: &Located| {
        let ObjectId {
            kind,
            namespace,
            name,
        } = located.object.id();
        format!("{kind} {namespace}/{name} in {}", located.document)
    };
    decoded.objects.iter().map(line).collect()
}

/// `Kind namespace/name source: reason`, one for each Rejection.
pub(super) fn rejections(decoded: &Decoded) -> Vec<String> {
    let line = |r: &Rejection| {
        format!(
            "{} {}/{} {}: {}",
            r.kind, r.namespace, r.name, r.source, r.reason
        )
    };
    decoded.rejections.iter().map(line).collect()
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: NAME}\n";

fn node(name: &str) -> String {
    NODE.replace("NAME", name)
}

#[test]
fn documents_are_split_at_their_markers_and_counted_where_they_hold_something() {
    for (text, expected) in [
        ("", vec![]),
        ("# nothing\n---\n\n---\n  # here\n", vec![]),
        ("NODE", vec![1]),
        ("\u{feff}NODE", vec![1]),
        ("---\nNODE---\n# blank\n---\nNODE", vec![1, 2]),
        ("--- # first\nNODE--- \nNODE...\n---\nNODE", vec![1, 2, 3]),
        ("%YAML 1.2\n---\nNODE", vec![1]),
        ("kind: Foo\n---\r\nNODE", vec![2]),
        ("kind: Foo\ntext: |\n  ---\n  kind: Bar\n---\nNODE", vec![2]),
        ("kind: Foo\nname: ---x\n---x: y\n---\nNODE", vec![2]),
        (
            "--- {apiVersion: v1, kind: Node, metadata: {name: a}}\n---\nNODE",
            vec![1, 2],
        ),
        (
            "{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"a\"}}",
            vec![1],
        ),
    ] {
        let decoded = yaml(&text.replace("NODE", &node("a")));
        assert_eq!(decoded.rejections, [], "{text}");
        assert_eq!(
            decoded
                .objects
                .iter()
                .map(|o| o.document)
                .collect::<Vec<_>>(),
            expected,
            "{text}"
        );
    }
}

#[test]
fn a_broken_document_costs_only_itself() {
    for broken in [
        "a: [1,\n",
        "a: b: c\n",
        "*nowhere\n",
        "just text\n",
        "- a\n",
        "a: 1\n...\nb: 2\n",
        "'",
    ] {
        let decoded = yaml(&format!("{}---\n{broken}\n---\n{}", node("a"), node("b")));
        assert_eq!(
            objects(&decoded),
            ["Node /a in 1", "Node /b in 3"],
            "{broken:?}"
        );
        let [rejection] = decoded.rejections.as_slice() else {
            panic!("{broken:?}: {decoded:?}")
        };
        assert_eq!(
            (rejection.source.as_str(), rejection.name.as_str()),
            ("web.yaml#2", ""),
            "{broken:?}"
        );
        assert!(
            rejection.reason.starts_with("cannot be read: "),
            "{rejection:?}"
        );
    }
}

#[test]
fn a_syntax_error_is_located_in_the_file() {
    let decoded = yaml(&format!("{}---\na: [1,\n", node("a")));
    let reason = &decoded.rejections[0].reason;
    assert!(reason.contains("(line 5 of the file)"), "{reason}");
}

#[test]
fn a_list_is_read_item_by_item_wherever_its_kind_stands() {
    let items = "items:
- {apiVersion: v1, kind: Node, metadata: {name: a}}
- {apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {ports: [{port: none}, 7]}}
- {apiVersion: v1, kind: Job, metadata: {name: p}, spec: {containers: [{ports: [1]}]}}
- {apiVersion: v1, kind: Service, spec: {}}
-
- {apiVersion: v1, kind: Service, metadata: {name: web}}
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

/// An apiserver takes objects of up to 1.5 MB. Were each field compared with all before it, this would not end.
#[test]
fn an_object_with_more_labels_than_anybody_has_is_read() {
    let mut labels = String::new();
    for number in 0..200_000 {
        write!(labels, r#""l{number}":"","#).unwrap();
    }
    let node = format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"a","labels":{{{labels}"z":""}}}}}}"#
    );
    let decoded = json(&node);
    let Object::Node(node) = &decoded.objects[0].object else {
        panic!("{decoded:?}");
    };
    assert_eq!(node.labels.len(), 200_001);
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
fn json_files_hold_one_value_or_several() {
    let node = |name: &str| {
        format!(r#"{{"metadata": {{"name": "{name}"}}, "kind": "Node", "apiVersion": "v1"}}"#)
    };
    for between in ["", " ", "\n", "\r\n\n"] {
        let decoded = json(&format!("{}{between}{}\n", node("a"), node("b")));
        assert_eq!(objects(&decoded), ["Node /a in 1", "Node /b in 2"]);
    }
    let decoded = json(&format!("{}{{]{}", node("a"), node("b")));
    assert_eq!(objects(&decoded), ["Node /a in 1"]);
    assert_eq!(decoded.rejections[0].source, "web.json#2");
    assert_eq!(json(" \n"), Decoded::default());
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

#[test]
fn aliases_are_followed_but_do_not_multiply() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: &n a, labels: {l: *n}}\n";
    assert_eq!(objects(&yaml(text)), ["Node /a in 1"]);
    let mut bomb = String::from(
        "kind: Node\nmetadata:\n  labels:\n    a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n",
    );
    for level in 1..9 {
        let alias = format!("*a{}", level - 1);
        writeln!(
            bomb,
            "    a{level}: &a{level} [{}]",
            vec![alias; 10].join(", ")
        )
        .unwrap();
    }
    assert_eq!(yaml(&bomb).rejections.len(), 1);
    // Each of them costs its own document, wherever it stands.
    let good = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let bombs = vec![bomb; 3].join("---\n");
    let decoded = yaml(&[good("a"), bombs, good("b")].join("---\n"));
    assert_eq!(objects(&decoded), ["Node /a in 1", "Node /b in 5"]);
    let sources = decoded.rejections.iter().map(|r| r.source.as_str());
    assert_eq!(
        sources.collect::<Vec<_>>(),
        ["web.yaml#2", "web.yaml#3", "web.yaml#4"]
    );
}

/// What is done to an item of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Nothing,
    /// Its aliases multiply.
    Bomb,
    /// As a key, where the parser takes a word only.
    BombAsKey,
    /// It refers to an anchor that is not there.
    Nowhere,
    /// It refers to itself.
    Itself,
    /// All of it is an alias of an item to which something was done.
    Again,
}

/// An item that shares the ports of the first one, one of which is an alias there, and has an anchor of its own, whatever is done to it. `borrowed` is
/// the item whose anchor it refers to.
fn shared_item(index: usize, deed: Deed, borrowed: Option<usize>, is_flow: bool) -> String {
    let levels = || {
        let level = |level: usize| match level {
            0 => format!("l0: &b{index}x0 [x, x, x, x, x, x, x, x, x, x]"),
            _ => {
                let lower = vec![format!("*b{index}x{}", level - 1); 10];
                format!("l{level}: &b{index}x{level} [{}]", lower.join(", "))
            }
        };
        (0..9).map(level).collect::<Vec<_>>().join(", ")
    };
    let done = match deed {
        Deed::Nothing => String::new(),
        Deed::Bomb => format!(", done: {{{}}}", levels()),
        Deed::BombAsKey => format!(", done: {{{}, *b{index}x8 : x}}", levels()),
        Deed::Nowhere => format!(", done: *nowhere{index}"),
        Deed::Itself => format!(", done: &self{index} [*self{index}]"),
        Deed::Again => return format!("- *item{}\n", borrowed.unwrap()),
    };
    let ports = match index {
        0 => "&ports [*port, {name: b, port: 81}]",
        _ => "*ports",
    };
    let port = match index {
        0 => ", first: &port {name: a, port: 80}",
        _ => "",
    };
    let keys = borrowed.map_or("kubernetes.io/hostname".to_owned(), |other| {
        format!("*own{other}")
    });
    let metadata = format!(
        "{{name: web-{index}, namespace: default, mine: &own{index} openyurt.io/nodepool{port}, annotations: {{openyurt.io/topologyKeys: {keys}}}{done}}}"
    );
    let spec = format!("{{clusterIP: 10.96.0.{index}, ports: {ports}}}");
    let fields = [
        "apiVersion: v1".to_owned(),
        "kind: Service".to_owned(),
        format!("metadata: {metadata}"),
        format!("spec: {spec}"),
    ];
    match is_flow {
        true => format!("- &item{index} {{{}}}\n", fields.join(", ")),
        false => format!("- &item{index}\n  {}\n", fields.join("\n  ")),
    }
}

/// Numbers of the items that cannot be read, as their rejections name them.
fn refused_items(decoded: &Decoded) -> Vec<usize> {
    let number = |rejection: &Rejection| {
        let (_, rest) = rejection.reason.split_once("items[")?;
        rest.split_once(']')?.0.parse().ok()
    };
    let all = decoded.rejections.iter();
    all.map(|rejection| number(rejection).unwrap_or_else(|| panic!("{rejection:?}")))
        .collect()
}

proptest! {
    #![proptest_config(crate::cases::cases(16))]

    #[test]
    fn whatever_aliases_of_one_item_do_the_others_are_read(
        done in prop::collection::vec(
            (prop::sample::select(vec![
                Deed::Nothing, Deed::Nothing, Deed::Nothing, Deed::Bomb, Deed::BombAsKey, Deed::Nowhere, Deed::Itself, Deed::Again,
            ]), any::<prop::sample::Index>(), any::<bool>(), any::<bool>()),
            1..12,
        ),
        is_kind_last in any::<bool>(),
    ) {
        let mut deeds: Vec<Deed> = Vec::new();
        let (mut text, mut tame) = (String::from("items:\n"), String::from("items:\n"));
        for (index, (deed, other, borrows, is_flow)) in done.into_iter().enumerate() {
            // One that is all of a good one is that one once more, and not what this is about.
            let bad: Vec<usize> = (0..index)
                .filter(|&other| !matches!(deeds[other], Deed::Nothing | Deed::Again))
                .collect();
            let (deed, other) = match deed {
                Deed::Again if bad.is_empty() => (Deed::Nothing, None),
                Deed::Again => (deed, Some(bad[other.index(bad.len())])),
                _ => {
                    // Its own labels are defined by an item that is an object.
                    let all: Vec<usize> = (0..index).filter(|&other| deeds[other] != Deed::Again).collect();
                    (deed, (borrows && !all.is_empty()).then(|| all[other.index(all.len())]))
                }
            };
            deeds.push(deed);
            text += &shared_item(index, deed, other, is_flow);
            if deed == Deed::Again {
                tame += "- null\n";
            } else {
                tame += &shared_item(index, Deed::Nothing, other, is_flow);
            }
        }
        let head = "apiVersion: v1\nkind: List\n";
        let document = |items: &str| match is_kind_last {
            true => format!("{items}{head}"),
            false => format!("{head}{items}"),
        };
        let names = |index: &usize| format!("web-{index}");
        let bad: Vec<usize> = (0..deeds.len()).filter(|&index| deeds[index] != Deed::Nothing).collect();
        let bad_names: Vec<String> = bad.iter().map(names).collect();
        let expected: Vec<Object> = yaml(&document(&tame)).objects.into_iter()
            .map(|located| located.object)
            .filter(|object| !bad_names.iter().any(|name| *name == *object.name().name))
            .collect();
        let decoded = yaml(&document(&text));
        prop_assert_eq!(refused_items(&decoded), bad, "{}", text);
        let objects: Vec<Object> = decoded.objects.into_iter().map(|located| located.object).collect();
        prop_assert_eq!(objects, expected, "{}", text);
    }
}

#[test]
fn items_have_the_room_of_aliases_in_turn_and_one_that_has_none_says_so() {
    // 65,536 and a multiple of it: the third has no room any more, and the fourth needs little.
    let item = |name: &str, times: usize| {
        let all = vec!["*a"; times].join(", ");
        format!("- {{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, more: [{all}]}}\n")
    };
    let anchor = vec!["x"; 1 << 10].join(", ");
    let mut text = format!("kind: List\nanchor: &a [{anchor}]\nitems:\n");
    for (name, times) in [("a", 100), ("b", 100), ("c", 100), ("d", 40)] {
        text += &item(name, times);
    }
    let decoded = yaml(&text);
    assert_eq!(
        objects(&decoded),
        ["Node /a in 1", "Node /b in 1", "Node /d in 1"]
    );
    assert_eq!(refused_items(&decoded), [2]);
    // Outside of the items, it is the document's.
    let text = text.replace(
        "items:",
        &format!("more: [{}]\nitems:", vec!["*a"; 300].join(", ")),
    );
    let decoded = yaml(&text);
    assert_eq!((decoded.objects.len(), decoded.rejections.len()), (0, 1));
    assert!(!decoded.rejections[0].reason.contains("items["));
}

/// As PyYAML writes a list that objects share.
#[test]
fn a_list_whose_items_share_a_list_is_read() {
    for services in [200, 10_000] {
        let mut text = String::from("apiVersion: v1\nkind: List\nitems:\n");
        for index in 0..services {
            let ports = match index {
                0 => {
                    "&id001\n    - {name: http, port: 80}\n    - {name: https, port: 443}\n    - {name: dns, port: 53, protocol: UDP}"
                }
                _ => "*id001",
            };
            writeln!(
                text,
                "- apiVersion: v1\n  kind: Service\n  metadata:\n    name: web-{index}\n    namespace: default\n  \
                 spec:\n    clusterIP: 10.96.{}.{}\n    type: ClusterIP\n    ports: {ports}",
                index / 256,
                index % 256
            )
            .unwrap();
        }
        let decoded = yaml(&text);
        assert_eq!(decoded.rejections, []);
        assert_eq!(decoded.objects.len(), services);
    }
}

#[test]
fn files_are_read_in_the_encodings_that_editors_write() {
    let text = format!("{}---\n{}", node("a"), node("b"));
    let utf16 = |to_bytes: fn(u16) -> [u8; 2], with_mark: bool| -> Vec<u8> {
        let mark = with_mark.then_some(0xfeff);
        let units = mark.into_iter().chain(text.encode_utf16());
        units.flat_map(to_bytes).collect()
    };
    let read = |bytes: &[u8]| decode_bytes(bytes, Format::Yaml, "web.yaml", &mut Names::default());
    for with_mark in [true, false] {
        for to_bytes in [u16::to_le_bytes, u16::to_be_bytes] {
            let decoded = read(&utf16(to_bytes, with_mark));
            assert_eq!((decoded.objects.len(), decoded.rejections), (2, vec![]));
        }
    }
    let marked = [
        &b"\xef\xbb\xbf"[..],
        text.as_bytes(),
        b"\xef\xbb\xbf---\n\xef\xbb\xbf",
        node("c").as_bytes(),
    ]
    .concat();
    assert_eq!(
        objects(&read(&marked)),
        ["Node /a in 1", "Node /b in 2", "Node /c in 3"]
    );
    let utf32: Vec<u8> = text
        .chars()
        .flat_map(|c| u32::from(c).to_le_bytes())
        .collect();
    assert!(rejections(&read(&utf32))[0].contains("save it as UTF-8"));
    // Half a character at the end costs the last document.
    let mut cut = utf16(u16::to_le_bytes, true);
    cut.push(b'x');
    assert_eq!(objects(&read(&cut)), ["Node /a in 1"]);
}

#[test]
fn json_objects_back_to_back_and_between_markers_are_documents() {
    let object = |name: &str| {
        format!(r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "{name}"}}}}"#)
    };
    let (a, b) = (object("a"), object("b"));
    for text in [
        format!("{a}{b}"),
        format!("{a}\n{b}\n"),
        format!("---\n{a}\n{b}"),
        format!("\u{feff}{a}\u{feff}{b}"),
        format!("{a}\n---\n{b}"),
        format!("--- {a}\n--- {b}\n"),
    ] {
        for decoded in [yaml(&text), json(&text)] {
            assert_eq!(decoded.rejections, [], "{text}");
            assert_eq!(
                objects(&decoded),
                ["Node /a in 1", "Node /b in 2"],
                "{text}"
            );
        }
    }
    // One that is broken costs only itself, whether it ends too early or too late.
    for broken in [
        r#"{"kind": "#,
        r#"{"kind": "Node", }"#,
        r#"{"kind": ["#,
        r#"{"a": {"#,
    ] {
        let text = format!("{a}\n{broken}\n{b}\n");
        for decoded in [yaml(&text), json(&text)] {
            assert_eq!(
                objects(&decoded),
                ["Node /a in 1", "Node /b in 3"],
                "{text}"
            );
            let refused = rejections(&decoded);
            assert!(
                refused.len() == 1 && refused[0].contains("#2: cannot be read"),
                "{refused:?}"
            );
        }
    }
    // Broken ones without end do not take forever.
    let many = "\n{\"a\": [".repeat(20_000);
    assert_eq!(json(&many).rejections.len(), MAX_BROKEN);
}

#[test]
fn numbers_are_read_as_yaml_had_them_when_kubernetes_began() {
    let service = |port: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
        );
        let decoded = yaml(&text);
        decoded
            .objects
            .first()
            .map(|located| match &located.object {
                Object::Service(service) => service.ports[0].port,
                other => panic!("{other:?}"),
            })
    };
    assert_eq!(service("0120"), Some(80));
    assert_eq!(service("0x50"), Some(80));
    assert_eq!(service("80"), Some(80));
    assert_eq!(service("'0120'"), None);
}

/// A text of a megabyte, repeated by an alias of two characters, would be as many megabytes in memory as there are aliases.
#[test]
fn a_long_text_is_not_repeated_without_end() {
    let long = "x".repeat(1 << 20);
    for (aliases, is_read) in [(8, true), (40, false)] {
        let aliases = vec!["*a"; aliases].join(", ");
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  labels: {{l: &a {long}}}\nstatus: {{nodes: [{aliases}]}}\n"
        );
        assert_eq!(yaml(&text).objects.len(), usize::from(is_read));
    }
}

#[test]
fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
    ] {
        assert_eq!(yaml(&text).rejections.len(), 1);
        assert_eq!(yaml(&format!("kind: X\nspec: {text}")).rejections.len(), 1);
    }
    assert_eq!(json(&r#"{"a":"#.repeat(100_000)).rejections.len(), 1);
}

#[test]
fn addresses_are_read_as_kubernetes_reads_them() {
    for (text, expected) in [
        ("10.96.0.10", Some("10.96.0.10")),
        ("010.096.000.010", Some("10.96.0.10")),
        ("0000010.1.1.1", Some("10.1.1.1")),
        ("fd00::1", Some("fd00::1")),
        ("::ffff:010.0.0.1", Some("10.0.0.1")),
        ("64:ff9b::010.0.0.1", Some("64:ff9b::a00:1")),
        ("256.0.0.1", None),
        ("10.0.0", None),
        ("10.0.0.1.1", None),
        ("10.0.0.+1", None),
        ("10.0..1", None),
        (" 10.0.0.1", None),
        ("fe80::1%eth0", None),
        ("", None),
        (":", None),
        ("None", None),
    ] {
        assert_eq!(
            parse_address(text),
            expected.map(|e| e.parse().unwrap()),
            "{text:?}"
        );
    }
}

#[test]
fn prefixes_are_masked_and_may_have_leading_zeros() {
    assert_eq!(
        parse_cidr("010.096.1.1/012"),
        Some("10.96.0.0/12".parse().unwrap())
    );
    assert_eq!(
        parse_cidr("fd00::1/108"),
        Some("fd00::/108".parse().unwrap())
    );
    for wrong in [
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/",
        "fd00::/129",
        "/8",
    ] {
        assert_eq!(parse_cidr(wrong), None, "{wrong}");
    }
}

/// Text that gets far into the decoder: pieces of real manifests, cut and joined at random.
fn manifest_pieces() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "apiVersion: v1\n",
        "kind: Service\n",
        "kind: List\n",
        "kind: Node\n",
        "items:\n",
        "- ",
        "  ",
        "\n",
        "---\n",
        "metadata:\n",
        "name: a\n",
        "{",
        "}",
        "[",
        "]",
        ": ",
        ",",
        "\"",
        "'",
        "&a ",
        "*a",
        "<<: ",
        "!!binary ",
        "|\n",
        "spec: {ports: [{port: 80}]}\n",
        "\u{feff}",
        "\t",
        "# c\n",
        "...\n",
        "%YAML 1.2\n",
        "? ",
        "é",
        "\0",
        "\r",
    ];
    prop::collection::vec(prop::sample::select(PIECES), 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn whatever_is_done_to_one_document_the_others_are_read(
        cut in any::<prop::sample::Index>(),
        junk in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            manifest_pieces().prop_map(String::into_bytes),
        ],
        is_json in any::<bool>(),
    ) {
        let of = |name: &str| match is_json {
            true => format!("{{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {{\"name\": \"{name}\"}}}}\n"),
            false => node(name),
        };
        let (format, middle) = (if is_json { Format::Json } else { Format::Yaml }, of("b"));
        let (head, tail) = middle.split_at(cut.index(middle.len()));
        let damaged = [head.as_bytes(), &junk, tail.as_bytes()].concat();
        let text = [of("first").as_bytes(), b"---\n", &damaged, b"\n---\n", of("last").as_bytes()].concat();
        let decoded = decode_bytes(&text, format, "web", &mut Names::default());
        let names: Vec<_> = decoded.objects.iter().map(|located| located.object.name().name.to_string()).collect();
        prop_assert!(names.first().is_some_and(|name| name == "first"), "{:?}", decoded);
        prop_assert!(names.last().is_some_and(|name| name == "last"), "{:?}", decoded);
    }

    #[test]
    fn decoding_never_panics_and_every_line_is_accounted_for(text in prop_oneof![any::<String>(), manifest_pieces()]) {
        yaml(&text);
        json(&text);
        let whole = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let split: usize = stream::documents(&text).map(|document| document.text.len()).sum();
        prop_assert!(split <= whole.len());
    }

    #[test]
    fn addresses_survive_printing(address: IpAddr) {
        prop_assert_eq!(parse_address(&address.to_string()), Some(address.to_canonical()));
    }
}

/// A log with ruled lines, or the list of a tool, under the name of a manifest.
#[test]
fn of_many_documents_that_are_no_objects_the_first_are_told_and_the_rest_is_counted() {
    let text = "a\n---\n".repeat(20_000) + "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n";
    let decoded = decode(&text, Format::Yaml, "log.yaml", &mut Names::default());
    assert_eq!(decoded.objects.len(), 1);
    assert_eq!(decoded.rejections.len(), 101);
    let last = &decoded.rejections[100];
    assert_eq!(last.source, "log.yaml");
    assert!(last.reason.starts_with("19900 more documents"), "{last:?}");
}
