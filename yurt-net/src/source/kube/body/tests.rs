//! Bodies cut anywhere say the same as whole ones.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

/// Pretty and tricky: braces and quotes in strings, an `items` of its own, whitespace everywhere.
const LIST: &str = r#" { "kind": "ServiceList", "labels": ["items", {"items": [1]}],
  "metadata": {"resourceVersion": "42", "items": [{"a": 1}], "continue": ""},
  "items" : [ {"a":"}{\"\\", "b": {"items":[{}]}} ,{"c":[{"d":"\\\\\""}]}
  ,{} ], "apiVersion": "v1" } "#;

const ITEMS: [&str; 3] = [
    r#"{"a":"}{\"\\", "b": {"items":[{}]}}"#,
    r#"{"c":[{"d":"\\\\\""}]}"#,
    "{}",
];

fn scan<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(Vec<String>, ListEnd), BodyError> {
    let mut scanner = ListScanner::default();
    let mut items = Vec::new();
    for chunk in chunks {
        scanner.push(chunk, |item| {
            items.push(String::from_utf8_lossy(item).into_owned());
        })?;
    }
    Ok((items, scanner.finish()?))
}

#[test]
fn items_are_found_wherever_the_body_is_cut() {
    for first in 0..LIST.len() {
        for second in first..LIST.len() {
            let chunks = [&LIST[..first], &LIST[first..second], &LIST[second..]];
            let (items, end) = scan(chunks.map(str::as_bytes)).unwrap();
            assert_eq!(items, ITEMS);
            assert_eq!(end.version, "42");
            assert_eq!(end.next_page, None);
        }
    }
}

#[test]
fn a_list_that_ends_early_is_no_list() {
    let end = LIST.trim_end().len();
    for cut in 0..end {
        let result = scan([&LIST.as_bytes()[..cut]]);
        assert!(result.is_err(), "cut at {cut}: {result:?}");
    }
}

#[test]
fn what_is_no_list_is_refused() {
    for body in [
        r#"{"kind":"Status","code":403}"#,
        "<html>captive portal</html>",
        r#"{"metadata":{},"items":[1]}"#,
        r#"{"metadata":{},"items":[null]}"#,
        "",
        "[]",
    ] {
        assert!(scan([body.as_bytes()]).is_err(), "{body}");
    }
}

#[test]
fn an_empty_list_is_a_list() {
    let (items, end) =
        scan([br#"{"metadata":{"resourceVersion":"7","continue":"x"},"items":[]}"#.as_slice()])
            .unwrap();
    assert!(items.is_empty());
    assert_eq!(
        end,
        ListEnd {
            kind: String::new(),
            version: "7".to_owned(),
            next_page: Some("x".to_owned())
        }
    );
}

#[test]
fn blanks_without_end_are_no_list_and_a_list_may_be_written_with_many() {
    let blanks = [b' '; 4096];
    let begin = br#"{"metadata":{"resourceVersion":"7"},"items":["#.as_slice();
    for begin in [begin, &begin[..1], &[begin, b"{},"].concat(), b""] {
        let endless = std::iter::once(begin).chain(std::iter::repeat(blanks.as_slice()));
        let result = scan(endless.take(1000));
        let is_given_up = matches!(result, Err(BodyError::Blanks | BodyError::NoList));
        assert!(is_given_up, "{result:?}");
    }
    // Each field on a line of its own, as deep in as kubectl writes it.
    let pretty = format!("{{}},\n{}", " ".repeat(8)).repeat(5000);
    let (items, _) = scan([begin, pretty.as_bytes(), b"{}]}"]).unwrap();
    assert_eq!(items.len(), 5001);
}

#[test]
fn a_list_whose_items_are_null_is_an_empty_list() {
    let body = br#"{"kind":"NodeBucketList","metadata":{"resourceVersion":"7"},"items":null}"#;
    for cut in 0..body.len() {
        let (head, tail) = body.split_at(cut);
        let (items, end) = scan([head, tail]).unwrap();
        assert_eq!((items.len(), end.version.as_str()), (0, "7"));
        assert!(scan([head]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_list_of_another_kind_is_not_taken_for_an_empty_one() {
    let end = |kind: &str| ListEnd {
        kind: kind.to_owned(),
        version: "7".to_owned(),
        next_page: None,
    };
    for kind in ["ServiceList", "List", ""] {
        assert_eq!(end(kind).of_kind("Service").unwrap(), end(kind));
    }
    for kind in ["EndpointSliceList", "Service", "PoolServiceList", "Status"] {
        let error = end(kind).of_kind("Service").unwrap_err().to_string();
        assert!(
            error.contains(kind) && error.contains("ServiceList"),
            "{error}"
        );
    }
    let error = end(&"\u{202e}".repeat(1000))
        .of_kind("Service")
        .unwrap_err();
    assert!(
        error.to_string().len() < 1000 && error.to_string().is_ascii(),
        "{error}"
    );
}

#[test]
fn a_gzip_body_is_the_same_as_a_plain_one_and_a_cut_one_is_an_error() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(LIST.as_bytes()).unwrap();
    let gzip = encoder.finish().unwrap();
    let inflate = |gzip: &[u8]| -> Result<Vec<u8>, BodyError> {
        let mut inflate = Inflate::new(true);
        let mut text = Vec::new();
        for chunk in gzip.chunks(7) {
            inflate.push(chunk, |bytes| {
                text.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        inflate.finish(|bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(text)
    };
    assert_eq!(inflate(&gzip).unwrap(), LIST.as_bytes());
    for cut in 1..gzip.len() {
        assert!(inflate(&gzip[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn watch_lines_are_told_apart() {
    let lines = concat!(
        r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"1"},"x":1}}"#,
        "\n",
        r#"{"type":"BOOKMARK","object":{"kind":"Service","metadata":{"resourceVersion":"9"}}}"#,
        "\n",
        r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#,
        "\n{\"type\":\"ADD"
    );
    for chunk in 1..20 {
        let mut scanner = LineScanner::default();
        let mut seen = Vec::new();
        for bytes in lines.as_bytes().chunks(chunk) {
            scanner
                .push(bytes, |line| -> Result<(), BodyError> {
                    seen.push(match watch_event(line, "Service", "v1")? {
                        WatchEvent::Put { version, .. } => format!("put {version}"),
                        WatchEvent::Bookmark { version } => format!("bookmark {version}"),
                        WatchEvent::Error { code, .. } => format!("error {code}"),
                        other => format!("{other:?}"),
                    });
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(seen, ["put 1", "bookmark 9", "error 410"]);
    }
}

/// The object is found without a look for its end, and nothing else is taken for it.
#[test]
fn a_line_says_the_same_however_it_is_written() {
    let read = |line: &str| {
        watch_event(line.as_bytes(), "Service", "v1")
            .map(|event| format!("{event:?}"))
            .map_err(|error| matches!(error, BodyError::Json(_)))
    };
    for kind in ["ADDED", "DELETED", "BOOKMARK", "ERROR", "NEW"] {
        for object in [
            r#"{"metadata":{"resourceVersion":"7"},"a":"}"}"#,
            r#"{"metadata":null}"#,
            r#"{"a":1},"more":{"b":2}"#,
            r#"{"a":1"#,
            r#"{"a":1}}"#,
            r#"{} {}"#,
            "",
            "7",
        ] {
            let go = format!("{{\"type\":\"{kind}\",\"object\":{object}}}");
            assert!(as_go_writes_it(go.as_bytes()).is_some(), "{go}");
            let with_blanks = format!("{{ \"type\" : \"{kind}\" , \"object\" : {object} }}");
            assert_eq!(as_go_writes_it(with_blanks.as_bytes()), None);
            assert_eq!(read(&go), read(&with_blanks), "{go}");
        }
    }
}

#[test]
fn an_event_of_an_object_that_says_it_is_something_else_is_refused() {
    let event = |deed: &str, object: &str| {
        let line = format!(r#"{{"type":"{deed}","object":{object}}}"#);
        watch_event(line.as_bytes(), "Service", "v1")
            .map(|event| format!("{event:?}"))
            .map_err(|error| error.to_string())
    };
    for deed in ["ADDED", "MODIFIED", "DELETED"] {
        for object in [
            r#"{"kind":"Service","apiVersion":"v1","metadata":{"name":"web"}}"#,
            r#"{"metadata":{"name":"web","ownerReferences":[{"apiVersion":"apps/v1","kind":"Deployment"}]}}"#,
            // Its decoder refuses it, and names it.
            r#"{"kind":7,"apiVersion":["v1"],"metadata":{"name":"web"}}"#,
        ] {
            let read = event(deed, object);
            assert!(read.is_ok(), "{deed} {object}: {read:?}");
        }
        for (object, named) in [
            (r#"{"kind":"Pod","apiVersion":"v1"}"#, "v1 Pod"),
            (r#"{"metadata":{"name":"web"},"kind":"Secret"}"#, "Secret"),
            (
                r#"{"kind":"Service","apiVersion":"serving.knative.dev/v1"}"#,
                "serving.knative.dev",
            ),
            (
                r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1"}"#,
                "meta.k8s.io",
            ),
        ] {
            let error = event(deed, object).unwrap_err();
            assert!(
                error.contains(named) && error.contains("not of Services"),
                "{error}"
            );
        }
    }
    // These are of the watch itself.
    for deed in ["BOOKMARK", "ERROR"] {
        let read = event(deed, r#"{"kind":"Status","apiVersion":"v1","code":410}"#);
        assert!(read.is_ok(), "{deed}: {read:?}");
    }
}

proptest! {
    #[test]
    fn no_body_makes_the_scanners_panic(chunks in proptest::collection::vec(
        proptest::string::string_regex(r#"[\{\}\[\]":,\\ items0a\n]{0,12}"#).unwrap(), 0..12))
    {
        let mut lists = ListScanner::default();
        let mut lines = LineScanner::default();
        let mut is_over = false;
        for chunk in &chunks {
            is_over |= is_over || lists.push(chunk.as_bytes(), |_| {}).is_err();
            lines.push(chunk.as_bytes(), |line| -> Result<(), BodyError> {
                let _ignored = watch_event(line, "Service", "v1");
                Ok(())
            }).unwrap();
        }
        let _ignored = lists.finish();
    }
}
