use std::io::Write as _;

use proptest::prelude::*;

use super::*;

/// A text as somebody would write it who wants to be seen as somebody else.
fn evil() -> impl Strategy<Value = String> {
    let marks = prop::sample::select(vec![
        '\x1b',
        '\n',
        '\r',
        '\0',
        '\u{9b}',
        '\u{7f}',
        '\u{85}',
        '\u{ad}',
        '\u{61c}',
        '\u{200b}',
        '\u{200e}',
        '\u{202e}',
        '\u{2028}',
        '\u{2066}',
        '\u{3164}',
        '\u{feff}',
        '\u{e0041}',
    ]);
    let character = prop_oneof![marks, any::<char>(), prop::char::range(' ', '~')];
    prop::collection::vec(character, 0..40).prop_map(String::from_iter)
}

fn is_clean(text: &str) -> bool {
    text.chars().all(is_plain)
}

#[test]
fn controls_newlines_direction_marks_and_what_is_invisible_are_not_plain() {
    let hidden = "\x1b\n\r\t\0\u{7f}\u{85}\u{9b}\u{a0}\u{ad}\u{34f}\u{61c}\u{180e}\u{200b}\u{200d}\u{200e}\u{200f}\
                  \u{202a}\u{202e}\u{2028}\u{2029}\u{2060}\u{2066}\u{2069}\u{3000}\u{3164}\u{e000}\u{fe0f}\u{feff}\u{fff9}\
                  \u{e0001}\u{e0041}\u{f0000}";
    for c in hidden.chars() {
        assert!(!is_plain(c), "{}", c.escape_unicode());
    }
    for c in "aZ09 ~\\\"'/-äß漢字☃🙂".chars() {
        assert!(is_plain(c), "{c}");
    }
}

#[test]
fn what_is_hidden_is_shown_as_its_escape() {
    assert_eq!(line("a\x1b[2J\u{202e}b\nc"), r"a\u{1b}[2J\u{202e}b\nc");
    assert_eq!(lines("a\x1b\nb"), "a\\u{1b}\nb");
    assert_eq!(quoted("say \"x\"\n").to_string(), r#""say \"x\"\n""#);
    assert_eq!(
        json(&"a\u{202e}\u{e0041}\n").unwrap(),
        r#""a\u202e\udb40\udc41\n""#
    );
}

#[test]
fn a_megabyte_is_cut_to_what_is_enough_to_recognise_it() {
    let long = "x".repeat(1 << 20);
    assert_eq!(quoted(&long).to_string().len(), QUOTED_CHARS + 5);
    assert_eq!(name(&long).to_string().len(), NAME_CHARS + 3);
    assert_eq!(message(&long).to_string().len(), MESSAGE_CHARS + 3);
}

#[test]
fn the_first_few_are_of_everybody() {
    let many = ["a1", "a2", "a3", "a4", "b1", "c1", "c2"];
    let few = in_turns(&many, 4, |one| &one[..1]);
    assert_eq!(few, [&"a1", &"a2", &"b1", &"c1"]);
    assert_eq!(in_turns(&many, 7, |one| &one[..1]).len(), 7);
}

#[test]
fn what_no_tenant_writes_is_among_the_first_few_however_many_namespaces_come_before() {
    let tenants = (0..40).map(|tenant| format!("evil{tenant}"));
    let all: Vec<String> = tenants.chain(["kube-system".to_owned()]).collect();
    let few = in_turns(&all, 10, |namespace| by_namespace(namespace));
    assert_eq!((few.len(), few.last()), (10, Some(&&all[40])));
}

/// What a log makes of an event whose message somebody else has written.
fn logged(style: LogStyle, text: &str) -> String {
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let buffer = Buffer::default();
    let to = buffer.clone();
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(move || Log::new(to.clone(), style));
    let subscriber: Box<dyn tracing::Subscriber + Send + Sync> = match style {
        LogStyle::Json => Box::new(tracing_subscriber::registry().with(layer.json())),
        _ => Box::new(tracing_subscriber::registry().with(layer)),
    };
    tracing::subscriber::with_default(subscriber, || {
        tracing::warn!(quoted = text, shown = %text, "about {text}");
    });
    let written = buffer.0.lock().unwrap().clone();
    String::from_utf8(written).unwrap()
}

proptest! {
    #[test]
    fn nothing_hidden_reaches_any_output(text in evil()) {
        prop_assert!(is_clean(&line(&text)));
        prop_assert!(is_clean(&name(&text).to_string()));
        prop_assert!(is_clean(&quoted(&text).to_string()));
        prop_assert!(is_clean(&message(&text).to_string()));
        prop_assert!(lines(&text).split('\n').all(is_clean));
        for style in [LogStyle::Text, LogStyle::Json] {
            let event = logged(style, &text);
            let event = event.strip_suffix('\n').unwrap();
            prop_assert!(is_clean(event), "{style:?}: {event:?}");
        }
    }

    #[test]
    fn escaping_twice_is_escaping_once(text in evil()) {
        let once = line(&text).into_owned();
        prop_assert_eq!(&*line(&once), &once);
    }

    #[test]
    fn json_is_clean_and_reads_back_as_it_was(text in evil(), key in evil()) {
        let value = serde_json::json!({ key: [text] });
        let written = json(&value).unwrap();
        prop_assert!(is_clean(&written), "{written:?}");
        prop_assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), value);
    }

    #[test]
    fn a_value_made_plain_is_clean_in_every_text(text in evil(), key in evil()) {
        let value = serde_json::json!({ key: [text] });
        let made = plain(&value).unwrap();
        for (key, texts) in made.as_object().unwrap() {
            prop_assert!(is_clean(key));
            prop_assert!(is_clean(texts[0].as_str().unwrap()));
        }
    }
}

#[test]
fn an_event_is_one_write_whatever_the_log_is_told() {
    let mut written = Vec::new();
    Log::new(&mut written, LogStyle::Text)
        .write_all(b"one\ntwo\xff\n")
        .unwrap();
    assert_eq!(String::from_utf8(written).unwrap(), "one\\ntwo\u{fffd}\n");
}

#[test]
fn a_url_is_shown_without_what_stands_before_the_at_sign() {
    for (url, shown) in [
        ("kube:https://192.0.2.1:6443", "kube:https://192.0.2.1:6443"),
        (
            "kube:https://u:secret@192.0.2.1/a",
            "kube:https://...@192.0.2.1/a",
        ),
        (
            "kube:https://u:se/cr@et@192.0.2.1",
            "kube:https://...@192.0.2.1",
        ),
        ("--source=https://u:secret@h", "--source=https://...@h"),
        ("u:secret@h", "...@h"),
    ] {
        assert_eq!(without_user(url), shown);
    }
}

#[test]
fn yaml_reads_back_unchanged_and_has_no_special_character_in_it() {
    let value = serde_json::json!({
        "services": [
            {"service": "shop/we\u{1b}b: x", "endpoints": ["10.0.0.1:80", "- no"], "ranges": [], "nested": {"a": [[1, null], {}]}},
            {},
        ],
        "not a word": "yes",
        "turned": "a\u{202e}b\nc\"d\\",
        "number": 5,
        "none": null,
    });
    let shown = yaml(&value).unwrap();
    assert!(shown.chars().all(|c| c == '\n' || is_plain(c)), "{shown}");
    let read: Value = serde_saphyr::from_str(&shown).unwrap();
    assert_eq!(read, value, "{shown}");
    assert!(
        shown.contains("services:\n  -\n    endpoints:\n      - \"10.0.0.1:80\"\n"),
        "{shown}"
    );
}
