//! Manifests: any text, as YAML and as JSON. What is wrong costs only its own document, and what is right goes the
//! whole way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yurt_net::source::decode::{Decoded, Format, Names, Object, decode};
use yurt_net_fuzz::{follow, snapshot};

const GOOD: &str = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"unharmed"}}"#;

fuzz_target!(|text: &str| {
    // One thing for each input: to read YAML takes long.
    match text.len() % 4 {
        0 => in_another_document(text),
        1 => in_another_item(text),
        2 => go_on(text, Format::Json),
        _ => go_on(text, Format::Yaml),
    }
});

/// What is read goes the whole way.
fn go_on(text: &str, format: Format) {
    let decoded = decode(text, format, "a", &mut Names::default());
    follow(&snapshot(
        decoded.objects.iter().map(|located| &located.object),
    ));
}

/// A document that follows is read as if it were alone, whatever comes before it.
fn in_another_document(text: &str) {
    let both = format!("{text}\n---\n{GOOD}\n");
    let decoded = decode(&both, Format::Yaml, "a", &mut Names::default());
    assert!(has_good(&decoded), "{:?}", decoded.rejections);
    // And it takes nothing from the ones before.
    let alone = decode(
        &format!("{text}\n"),
        Format::Yaml,
        "a",
        &mut Names::default(),
    );
    let objects = &decoded.objects[..decoded.objects.len() - 1];
    assert_eq!(objects, alone.objects);
}

/// An item of a list is read whatever other items there are.
fn in_another_item(text: &str) {
    // As deep as in the list: what is nested deeper than the parser goes cannot be skipped either.
    let is_json = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
    if !is_json(text) || !is_json(&format!("[[{text}]]")) {
        return;
    }
    let list = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{text},{GOOD}]}}"#);
    let decoded = decode(&list, Format::Json, "a", &mut Names::default());
    assert!(has_good(&decoded), "{:?}", decoded.rejections);
}

fn has_good(decoded: &Decoded) -> bool {
    let last = decoded.objects.last();
    last.is_some_and(
        |located| matches!(&located.object, Object::Node(node) if &*node.name == "unharmed"),
    )
}
