//! How numbers, texts and whole files are written.

use super::*;

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
    assert!(rejections(&read(&utf32))[0].contains("in UTF-32: save it as UTF-8"));
    // Big-endian, without a mark.
    assert!(rejections(&read(b"\0\0\0a\0\0\0:"))[0].contains("in UTF-32"));
    for zeros in [1, 2, 3, 4, 5, 4096] {
        let lost = rejections(&read(&vec![0; zeros]));
        assert!(
            lost[0].contains("begins with NUL bytes"),
            "{zeros}: {lost:?}"
        );
    }
    let begun = [&[0; 512][..], text.as_bytes()].concat();
    assert!(rejections(&read(&begun))[0].contains("begins with NUL bytes"));
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

/// A text of a megabyte, repeated by an alias of two characters, would be as many megabytes in memory as there are
/// aliases.
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
