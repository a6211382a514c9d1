//! Answers to a WATCH, cut anywhere. The first byte says how.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yurt_net::source::decode::{Names, item};
use yurt_net::source::kube::body::{BodyError, LineScanner, WatchEvent, watch_event};
use yurt_net_fuzz::{follow, pieces, snapshot};

fuzz_target!(|data: &[u8]| {
    let [seed, body @ ..] = data else {
        return;
    };
    let lines = lines(&[body]);
    assert_eq!(
        lines,
        self::lines(&pieces(body, *seed)),
        "how it is cut says what it holds"
    );
    let cut = usize::from(*seed) * body.len() / 256;
    let before = self::lines(&[&body[..cut]]);
    assert!(lines.starts_with(&before), "a line without its end counts");

    let mut names = Names::default();
    let mut objects = Vec::new();
    for line in &lines {
        for (kind, version) in [("Service", "v1"), ("EndpointSlice", "discovery.k8s.io/v1")] {
            let Ok(event) = watch_event(line, kind, version) else {
                continue;
            };
            is_what_it_says(line, &event);
            if let WatchEvent::Put { object, .. } = event {
                objects.extend(item(object, kind, version, &mut names).ok().flatten());
            }
        }
    }
    follow(&snapshot(&objects));
});

fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut scanner = LineScanner::default();
    let mut lines = Vec::new();
    for piece in pieces {
        let pushed = scanner.push(piece, |line| -> Result<(), BodyError> {
            lines.push(line.to_vec());
            Ok(())
        });
        pushed.expect("no line is too long");
    }
    lines
}

/// A version that is not that of the object would make the next watch miss something.
fn is_what_it_says(line: &[u8], event: &WatchEvent<'_>) {
    let (WatchEvent::Put { object, version } | WatchEvent::Delete { object, version }) = event
    else {
        return;
    };
    // Nobody reads the rest of the line: it may hold what is no text.
    let Ok(whole) = serde_json::from_slice::<serde_json::Value>(line) else {
        return;
    };
    let alone: serde_json::Value = serde_json::from_slice(object).expect("an object is JSON");
    assert_eq!(whole["object"], alone);
    assert_eq!(
        alone["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default(),
        version
    );
}
