//! Answers to a LIST, plain and compressed, cut anywhere. The first byte says how they are cut and where they end, the
//! second (as a letter) whether they are compressed: bit 0 compresses, bit 1 says that the rest is gzip as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde_json::value::RawValue;
use yurt_net::source::decode::{ItemError, Names, item};
use yurt_net::source::kube::Resource;
use yurt_net::source::kube::body::{BodyError, Inflate, ListEnd, ListScanner};
use yurt_net_fuzz::{follow, pieces, snapshot};

type Read = Result<ListEnd, BodyError>;

fuzz_target!(|data: &[u8]| {
    let [seed, flags, body @ ..] = data else {
        return;
    };
    if flags & 2 != 0 {
        let _ignored = read(body, true, *seed);
        return;
    }
    let (items, end) = read(body, false, 0);
    let (cut_items, cut_end) = read(body, false, *seed);
    assert_eq!(items, cut_items, "how it is cut says what it holds");
    assert_eq!(end.is_ok(), cut_end.is_ok(), "{end:?} {cut_end:?}");
    if flags & 1 != 0 {
        same_when_compressed(body, *seed, &items, &end);
    }
    if let Ok(end) = &end {
        is_whole(body, *seed, &items, end);
    }
    is_what_it_says(body, &items, end);
    go_on(&items);
});

/// Reads a body in pieces.
fn read(body: &[u8], is_gzip: bool, seed: u8) -> (Vec<Vec<u8>>, Read) {
    let mut inflate = Inflate::new(is_gzip);
    let mut scanner = ListScanner::default();
    let mut items = Vec::new();
    let mut all = || -> Result<(), BodyError> {
        for piece in pieces(body, seed) {
            // As many at a time as the agent takes.
            for piece in piece.chunks(4096) {
                inflate.push(piece, |bytes| {
                    scanner.push(bytes, |item| items.push(item.to_vec()))
                })?;
            }
        }
        Ok(())
    };
    let result = all()
        .and_then(|()| {
            inflate.finish(|bytes| scanner.push(bytes, |item| items.push(item.to_vec())))
        })
        .and_then(|()| scanner.finish());
    (items, result)
}

fn same_when_compressed(body: &[u8], seed: u8, items: &[Vec<u8>], end: &Read) {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).expect("memory takes it");
    let packed = encoder.finish().expect("memory takes it");
    let (unpacked_items, unpacked_end) = read(&packed, true, seed);
    assert_eq!(items, unpacked_items);
    assert_eq!(
        end.is_ok(),
        unpacked_end.is_ok(),
        "{end:?} {unpacked_end:?}"
    );
    let cut = usize::from(seed) % packed.len();
    let (_, cut_end) = read(&packed[..cut], true, 0);
    assert!(cut_end.is_err(), "gzip without its end counts");
}

/// A list counts only with its last byte.
fn is_whole(body: &[u8], seed: u8, items: &[Vec<u8>], end: &ListEnd) {
    let cut = usize::from(seed) * body.len() / 256;
    let (head, tail) = body.split_at(cut);
    if let (cut_items, Ok(cut_end)) = read(head, false, 0) {
        assert!(
            tail.trim_ascii().is_empty(),
            "a list without its end counts"
        );
        assert_eq!((items, end), (&*cut_items, &cut_end));
    }
}

/// What a JSON parser finds is what is found here.
fn is_what_it_says(body: &[u8], items: &[Vec<u8>], end: Read) {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        items: &'a RawValue,
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        resource_version: Option<String>,
        r#continue: Option<String>,
    }
    // Names written with escapes are not looked for: no server writes them so. And JSON is text.
    let is_plain = !body.contains(&b'\\') && body.trim_ascii_start().starts_with(b"{");
    let text = std::str::from_utf8(body).ok().filter(|_| is_plain);
    let list = text.and_then(|text| serde_json::from_str::<List<'_>>(text).ok());
    let Some(list) = list else {
        return;
    };
    // Items that are neither a list nor null are none.
    let Ok(expected) = serde_json::from_str::<Option<Vec<&RawValue>>>(list.items.get()) else {
        return;
    };
    let expected = expected.unwrap_or_default();
    if expected.iter().any(|item| !item.get().starts_with('{')) {
        assert!(end.is_err(), "its items are no objects");
        return;
    }
    let end = end.expect("it is a list");
    let expected: Vec<&[u8]> = expected.iter().map(|item| item.get().as_bytes()).collect();
    assert_eq!(expected, items);
    assert_eq!(
        end.version,
        list.metadata.resource_version.unwrap_or_default()
    );
    assert_eq!(
        end.next_page.unwrap_or_default(),
        list.metadata.r#continue.unwrap_or_default()
    );
}

/// The items, as the agent takes them.
fn go_on(items: &[Vec<u8>]) {
    let mut names = Names::default();
    let mut objects = Vec::new();
    for (kind, version) in KINDS {
        for json in items {
            match item(json, kind, version, &mut names) {
                Ok(object) => objects.extend(object),
                Err(ItemError::Rejected(rejection)) => assert!(!rejection.reason.is_empty()),
                Err(ItemError::Other(other)) => assert!(!other.to_string().is_empty()),
            }
        }
    }
    follow(&snapshot(&objects));
    assert_eq!(KINDS.len(), Resource::ALL.len());
}

const KINDS: [(&str, &str); 8] = [
    ("Service", "v1"),
    ("EndpointSlice", "discovery.k8s.io/v1"),
    ("Node", "v1"),
    ("ServiceCIDR", "networking.k8s.io/v1"),
    ("Pod", "v1"),
    ("NodePool", "apps.openyurt.io/v1beta2"),
    ("NodeBucket", "apps.openyurt.io/v1alpha1"),
    ("PoolService", "network.openyurt.io/v1alpha1"),
];
