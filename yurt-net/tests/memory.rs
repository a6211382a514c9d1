//! What reading a manifest takes besides its text is bounded, whatever is in it: counted by the allocator of this
//! process, so that neither the machine nor another test moves it.
#![expect(
    unsafe_code,
    reason = "an allocator that counts is one, and an allocator is unsafe"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use yurt_net::source::decode::{Decoded, Format, Names, decode};

/// The system's allocator, counting what is in use.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of this function.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What reading a text took at most besides it, in bytes.
fn cost(text: &str, format: Format) -> (usize, Decoded) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let decoded = decode(text, format, "big.yaml", &mut Names::default());
    (PEAK.load(Ordering::Relaxed) - before, decoded)
}

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata:\n  name: big\n  namespace: default\n";

/// A Service, and below it so many lines.
fn service(below: &str, count: usize, line: impl Fn(usize) -> String) -> String {
    let mut text = format!("{SERVICE}{below}");
    (0..count).for_each(|n| text += &line(n));
    text
}

/// Many times as many as fit into the bound, so that what grows with the text passes it.
const MANY: usize = 400_000;
/// Items of many parts each, of which fewer pass it.
const MANY_ITEMS: usize = 60_000;
/// What a document may take besides its text: a node has 96 MiB for the agent.
const MOST: usize = 28 << 20;

const LARGE: &str = "it has more than 262144 values in the fields that are read";
const ANCHORS: &str = "what its anchors (&) name is more than 131072 parts or 4194304 bytes";
const MERGED: &str =
    "a document with merge keys (<<) or keys of more than a word (?) may have 65536 parts";
const MANY_WRONG: &str = "a file may have 100000 objects and 10000 that cannot be read: ";

#[test]
fn what_a_document_takes_besides_its_text_is_bounded_whatever_is_in_it() {
    let field = |n: usize| format!("    key-{n:07}: value-{n:06}\n");
    let flow = |n: usize| format!("key-{n:07}: value-{n:06}, ");
    let mut json = String::from(
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"big","namespace":"default","labels":{"a":"b""#,
    );
    for n in 0..MANY {
        write!(json, r#","key-{n:07}":"value-{n:06}""#).unwrap();
    }
    json += "}}}";
    let wrong = |n: usize| format!("- {{apiVersion: v2, kind: Node, metadata: {{name: n{n}}}}}\n");
    for (what, told, text) in [
        (
            "fields that are read",
            LARGE,
            service("  labels:\n", MANY, field),
        ),
        (
            "fields that nobody reads",
            "",
            service("spec: {clusterIP: None}\nstatus:\n  x:\n", MANY, field),
        ),
        (
            "values that are read",
            LARGE,
            service("spec:\n  externalIPs:\n", MANY, |n| format!("  - {n}\n")),
        ),
        (
            "objects that are read",
            LARGE,
            service("spec:\n  ports:\n", MANY / 2, |_| {
                "  - port: 1\n".to_owned()
            }),
        ),
        (
            "anchors",
            ANCHORS,
            service("status:\n  x:\n", MANY, |n| {
                format!("    key-{n:07}: &a{n} value-{n:06}\n")
            }),
        ),
        (
            "one anchor of much",
            ANCHORS,
            service("status: &a\n  x:\n", MANY, field),
        ),
        (
            "a merge of much",
            MERGED,
            service("status:\n  <<: {", MANY, flow) + "}\n",
        ),
        (
            "a merge of little beside much",
            MERGED,
            service("x: {<<: {a: b}}\nstatus:\n  x:\n", MANY, field),
        ),
        (
            "a key of much",
            MERGED,
            service("status:\n  ? {", MANY, flow) + "}\n  : x\n",
        ),
        ("fields that are read, in JSON", LARGE, json),
        (
            "items that are nothing",
            MANY_WRONG,
            "kind: List\nitems:\n".to_owned() + &"- {}\n".repeat(MANY),
        ),
        (
            "items whose kind comes last",
            "it names no kind",
            "items:\n".to_owned()
                + &"- {metadata: {labels: {a: b, c: d, e: f}}}\n".repeat(MANY_ITEMS)
                + "kind: NodeList\n",
        ),
        (
            "objects that are wrong",
            MANY_WRONG,
            (0..MANY_ITEMS).fold("kind: List\nitems:\n".to_owned(), |text, n| {
                text + &wrong(n)
            }),
        ),
    ] {
        let format = match text.starts_with('{') {
            true => Format::Json,
            false => Format::Yaml,
        };
        let good = match format {
            Format::Json => r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "good"}}"#,
            Format::Yaml => "---\napiVersion: v1\nkind: Node\nmetadata: {name: good}\n",
        };
        let (cost, decoded) = cost(&format!("{text}\n{good}"), format);
        assert!(
            cost <= MOST,
            "{what}: {cost} bytes besides a text of {} bytes",
            text.len()
        );
        let last = decoded.objects.last().map(|located| located.object.name());
        assert_eq!(&*last.unwrap().name, "good", "{what}");
        let mut reasons = decoded.rejections.iter().map(|rejection| &rejection.reason);
        match told {
            "" => assert_eq!(decoded.rejections, [], "{what}"),
            _ => assert!(
                reasons.any(|reason| reason.contains(told)),
                "{what}: {reasons:?}"
            ),
        }
    }
}
