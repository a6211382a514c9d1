//! Documents, of which each costs only itself; in `tests/` lists, aliases, what is too much, and how texts and
//! addresses are written.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

mod addresses;
mod aliases;
mod large;
mod lists;
mod texts;

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
