//! Kubernetes manifests to `model`: the text of one file in, its objects and its Rejections out.
//!
//! Pure. A document is taken whole or not at all; inside a document of kind `List` each item stands for
//! itself. An object of a kind or version that no rule reads is left out with a debug line; an object that is
//! wrong becomes a `Rejection` that names it, its document (`web.yaml#3`) and the field.
//!
//! Documents are counted from 1; one of only blanks and comments is not counted, as kubectl skips it.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::de::DeserializeSeed;
use serde_json::value::RawValue;
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};

use crate::model::Rejection;
use crate::text;

mod addresses;
mod aliases;
mod item;
mod kinds;
mod names;
mod object;
mod other;
mod stream;
#[cfg(test)]
mod tests;
mod value;

pub use addresses::{parse_address, parse_cidr};
use aliases::Size;
pub use item::{ItemError, item};
pub use names::Names;
pub use object::{Object, ObjectId};
pub use other::OtherObject;
use stream::{Document, Found, MAX_OBJECTS, MAX_REFUSALS, Top};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Documents separated by `---`.
    Yaml,
    /// One value, or several one after the other.
    Json,
}

/// An object and the document that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The object.
    pub object: Object,
    /// Its document, from 1.
    pub document: usize,
}

/// What the text of one file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// In the order of the text.
    pub objects: Vec<Located>,
    /// What is wrong. One without a `name` is about a document that could not be attributed: any object may
    /// have been in it.
    pub rejections: Vec<Rejection>,
    /// How many documents could not be attributed.
    unattributed: usize,
    /// How many objects, readable or not, are left out because there are too many.
    left_out: usize,
}

/// So many documents of a file that could not be attributed are told one by one: a log that is named as a manifest may
/// have a hundred thousand.
const MAX_UNATTRIBUTED: usize = 100;

/// Decodes the text of one file; `path` is what Rejections call it.
pub fn decode(text: &str, format: Format, path: &str, names: &mut Names) -> Decoded {
    Reading::new(path, names, false).read(text, format)
}

/// Decodes one file as it is on disk: UTF-8, or UTF-16 as editors on Windows write it. Bytes that are neither cost
/// their own document.
pub(crate) fn decode_bytes(bytes: &[u8], format: Format, path: &str, names: &mut Names) -> Decoded {
    match text_of(bytes) {
        Ok((text, is_damaged)) => Reading::new(path, names, is_damaged).read(&text, format),
        Err(reason) => {
            let mut reading = Reading::new(path, names, false);
            reading.refuse(reason.to_owned());
            reading.decoded
        }
    }
}

/// How far a file has been read.
struct Reading<'a> {
    path: &'a str,
    names: &'a mut Names,
    /// It held bytes that are no text, and U+FFFD stands for them.
    is_damaged: bool,
    /// The document that was begun last, from 1.
    number: usize,
    decoded: Decoded,
}

impl<'a> Reading<'a> {
    fn new(path: &'a str, names: &'a mut Names, is_damaged: bool) -> Self {
        Self {
            path,
            names,
            is_damaged,
            number: 0,
            decoded: Decoded::default(),
        }
    }

    fn read(mut self, text: &str, format: Format) -> Decoded {
        let text = without_marks(text);
        for document in stream::documents(&text) {
            match format {
                Format::Yaml => self.yaml(&document),
                Format::Json => self.json(&document),
            }
        }
        self.decoded.tell_the_rest(self.path);
        self.decoded.objects.shrink_to_fit();
        self.decoded.rejections.shrink_to_fit();
        self.decoded
    }

    fn yaml(&mut self, document: &Document<'_>) {
        if self.is_no_text(document.text) {
            return;
        }
        let room = alias_room(document.text);
        let mut found = Found::default();
        let parsed = parse_yaml(document.text, room, self.names, &mut found, None);
        let Err(error) = parsed else {
            self.number += 1;
            self.decoded.take(found, self.path, self.number);
            return;
        };
        if let Some(spared) = aliases::spare(document.text, room) {
            // What others need of the items that are left out counts twice, and merged maps may be replayed more than
            // once.
            let room = Size {
                events: room.events.saturating_mul(4),
                bytes: room.bytes.saturating_mul(4),
            };
            let mut found = Found::default();
            let spared_items = Some(&spared.items);
            if parse_yaml(&spared.text, room, self.names, &mut found, spared_items).is_ok() {
                self.number += 1;
                self.decoded.take(found, self.path, self.number);
                return;
            }
        }
        // JSON objects back to back are no YAML. kubectl reads them.
        match begins_with_json(document.body()) {
            true => self.json(document),
            false => self.refuse(yaml_reason(&error, document.lines_before)),
        }
    }

    /// Reads values one after the other, each as a document. Behind one that cannot be read, the next begins with a
    /// line that begins with a brace.
    fn json(&mut self, document: &Document<'_>) {
        let mut rest = document.body();
        let mut broken = 0;
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == MARK);
            if rest.is_empty() {
                return;
            }
            let before = &document.text[..document.text.len() - rest.len()];
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
            let error = match values.next() {
                Some(Ok(value)) => {
                    rest = &rest[values.byte_offset()..];
                    if self.is_no_text(value.get()) {
                        continue;
                    }
                    let mut found = Found::default();
                    let mut json = serde_json::Deserializer::from_str(value.get());
                    let top = Top::document(&mut *self.names, &mut found);
                    match top.deserialize(&mut json) {
                        Ok(()) => {
                            self.number += 1;
                            self.decoded.take(found, self.path, self.number);
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Some(Err(error)) => {
                    broken += 1;
                    // Each of them is looked through to the end.
                    let next = (broken < MAX_BROKEN).then(|| rest.find("\n{")).flatten();
                    rest = next.map_or("", |next| &rest[next + 1..]);
                    error
                }
                None => return,
            };
            let mut reason = format!("cannot be read: {error}");
            let lines_before = document.lines_before + before.matches('\n').count();
            if lines_before > 0 {
                reason += &format!(" (line {} of the file)", lines_before + error.line());
            }
            self.refuse(reason);
        }
    }

    /// Refuses a text in which U+FFFD stands for something else.
    fn is_no_text(&mut self, text: &str) -> bool {
        let is_no_text = self.is_damaged && text.contains(char::REPLACEMENT_CHARACTER);
        if is_no_text {
            self.refuse(
                "cannot be read: it holds bytes that are not UTF-8: save the file as UTF-8"
                    .to_owned(),
            );
        }
        is_no_text
    }

    fn refuse(&mut self, reason: String) {
        self.number += 1;
        let reason = text::message(&reason).to_string();
        self.decoded.refuse_document(self.path, self.number, reason);
    }
}

/// A byte-order mark, in characters.
const MARK: char = '\u{feff}';
/// Values of one document that cannot be read, of which each is looked behind for the next.
const MAX_BROKEN: usize = 100;

/// The text of a file, and whether some of its bytes are none. Its encoding is told as YAML 1.2 (5.2) has it: by a
/// byte-order mark, or by where the zeros are in its first character, which is an ASCII one.
fn text_of(bytes: &[u8]) -> Result<(Cow<'_, str>, bool), &'static str> {
    const UTF32: &str = "cannot be read: the file is in UTF-32: save it as UTF-8";
    const NULS: &str = "cannot be read: the file begins with NUL bytes, as one does whose content was lost when the power went: \
                        write it again";
    let (number, units): (fn([u8; 2]) -> u16, _) = match bytes {
        [0xff, 0xfe, 0, 0, ..]
        | [0, 0, 0xfe, 0xff, ..]
        | [0, 0, 0, 1..=255, ..]
        | [1..=255, 0, 0, 0, ..] => return Err(UTF32),
        [0, 0, ..] | [0] => return Err(NULS),
        [0xff, 0xfe, rest @ ..] => (u16::from_le_bytes, rest),
        [0xfe, 0xff, rest @ ..] => (u16::from_be_bytes, rest),
        [1..=255, 0, ..] => (u16::from_le_bytes, bytes),
        [0, 1..=255, ..] => (u16::from_be_bytes, bytes),
        _ => {
            let text = String::from_utf8_lossy(bytes);
            let is_damaged = matches!(text, Cow::Owned(_));
            return Ok((text, is_damaged));
        }
    };
    let (units, odd) = units.as_chunks::<2>();
    let mut is_damaged = !odd.is_empty();
    let characters = char::decode_utf16(units.iter().map(|&unit| number(unit)));
    let mut text: String = characters
        .map(|character| {
            character.unwrap_or_else(|_| {
                is_damaged = true;
                char::REPLACEMENT_CHARACTER
            })
        })
        .collect();
    if !odd.is_empty() {
        text.push(char::REPLACEMENT_CHARACTER);
    }
    Ok((text.into(), is_damaged))
}

/// The text without byte-order marks at the beginning of lines: where files are joined, each brings its own.
fn without_marks(text: &str) -> Cow<'_, str> {
    if !text.contains(MARK) {
        return text.into();
    }
    let lines = text.split_inclusive('\n');
    lines
        .map(|line| line.trim_start_matches(MARK))
        .collect::<String>()
        .into()
}

/// Whether the first thing in a document is an object in JSON.
fn begins_with_json(text: &str) -> bool {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    text.trim_start().starts_with('{') && values.next().is_some_and(|value| value.is_ok())
}

/// What aliases may add to the text of a document, in bytes.
const ALIASED_BYTES: usize = 16 << 20;
/// What they may add in parts (scalars, and the beginnings and ends of lists and maps), whatever the size of the
/// document; and for how many bytes of it one more. PyYAML writes an alias for each list that objects share.
const ALIASED_EVENTS: usize = 1 << 18;
const BYTES_AN_EVENT: usize = 8;
/// Parts that the parser keeps for aliases to come, whether they come or not: about 150 bytes each. PyYAML has five for
/// the labels that 20,000 objects have twice.
const ANCHORED_EVENTS: usize = 1 << 17;
/// And bytes of scalars that are not in the text as they are read.
const ANCHORED_BYTES: usize = 4 << 20;
/// Parts of a document of which the parser keeps more than one part at once: people write these, no tool.
const MERGED_EVENTS: usize = 1 << 16;

/// What aliases may add to a document of this length.
fn alias_room(text: &str) -> Size {
    let events = match keeps_parts(text) {
        true => MERGED_EVENTS,
        false => ALIASED_EVENTS + text.len() / BYTES_AN_EVENT,
    };
    Size {
        events,
        bytes: ALIASED_BYTES,
    }
}

/// Whether there are merge keys in a document, or keys that are more than a word. The parser keeps what they stand for
/// until it is read, and where there are merge keys the names of all fields of a map. May be true of a document in
/// which a text looks like that.
fn keeps_parts(text: &str) -> bool {
    has_merge_keys(text)
        || text.match_indices('?').any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + 1..]);
            let is_key = after.is_empty() || after.starts_with(char::is_whitespace);
            let before = before.trim_end_matches([' ', '\t']);
            is_key
                && (before.is_empty()
                    || before.ends_with(['\n', '\r', '-', ',', '{', '[', '?', ':']))
        })
}

/// May be true of a document in which a text looks like one.
fn has_merge_keys(text: &str) -> bool {
    let is_key = |(at, key): (usize, &str)| {
        let after = text[at + key.len()..].trim_start_matches(['"', '\'', ' ', '\t', '\r', '\n']);
        after.starts_with(':')
    };
    text.match_indices("<<").any(is_key)
}

/// Reads one document. `spared` are items of it that are passed over, and refused.
fn parse_yaml<'de>(
    text: &'de str,
    room: Size,
    names: &mut Names,
    found: &mut Found<'de>,
    spared: Option<&BTreeSet<usize>>,
) -> Result<(), serde_saphyr::Error> {
    let top = Top {
        spared,
        ..Top::document(names, found)
    };
    serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(text, room), |yaml| {
        top.deserialize(yaml)
    })
}

/// The parser's limits are made for configuration files; a `List` of a whole cluster passes them all. What
/// still holds is the nesting depth, which guards the stack, what aliases may add, which guards
/// against documents that grow when they are read, and what the parser keeps besides the text, which guards the memory.
/// How many aliases there are, and of how many anchors, says nothing.
fn yaml_options(text: &str, room: Size) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: if keeps_parts(text) { MERGED_EVENTS } else { usize::MAX },
            max_nodes: usize::MAX,
            max_aliases: usize::MAX,
            max_anchors: usize::MAX,
            max_merge_keys: usize::MAX,
            max_recorded_anchor_events: ANCHORED_EVENTS,
            max_recorded_anchor_bytes: ANCHORED_BYTES,
            enforce_alias_anchor_ratio: false,
            max_total_scalar_bytes: text.len().saturating_add(room.bytes),
            max_total_comment_bytes: usize::MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: room.events,
        },
        emit_comments: false,
        with_snippet: false,
        // A field given twice is found by us, so that it costs its object and not the document.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // Where there may be some, the parser remembers all fields of a map, which takes more than their text.
        merge_keys: if has_merge_keys(text) { MergeKeyPolicy::Merge } else { MergeKeyPolicy::AsOrdinary },
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        // 0120 is 80, as in YAML 1.1, which kubectl reads.
        legacy_octal_numbers: true,
    }
}

/// What a document has too much of, where that is why it cannot be read.
fn too_much(error: &serde_saphyr::Error) -> Option<String> {
    let serde_saphyr::Error::Budget { breach, .. } = error.without_snippet() else {
        return None;
    };
    match breach {
        BudgetBreach::Events { .. } => Some(format!(
            "a document with merge keys (<<) or keys of more than a word (?) may have {MERGED_EVENTS} parts: split it, or write them out"
        )),
        BudgetBreach::RecordedAnchorEvents { .. } | BudgetBreach::RecordedAnchorBytes { .. } => {
            Some(format!(
                "what its anchors (&) name is more than {ANCHORED_EVENTS} parts or {ANCHORED_BYTES} bytes: leave out those that no alias (*) needs, or split it"
            ))
        }
        _ => None,
    }
}

/// One line: the parser's own words, which count lines from the start of the document.
fn yaml_reason(error: &serde_saphyr::Error, lines_before: usize) -> String {
    if matches!(
        error.without_snippet(),
        serde_saphyr::Error::MultipleDocuments { .. }
    ) {
        return "cannot be read: something follows the end of the document: begin the next one with ---".to_owned();
    }
    let message = too_much(error).unwrap_or_else(|| error.without_snippet().to_string());
    let mut reason = format!(
        "cannot be read: {}",
        message.lines().next().unwrap_or_default()
    );
    if let (Some(location), true) = (error.location(), lines_before > 0) {
        let line = usize::try_from(location.line()).unwrap_or_default();
        reason.push_str(&format!(" (line {} of the file)", lines_before + line));
    }
    reason
}

impl<'a, 'de> Top<'a, 'de> {
    fn document(names: &'a mut Names, found: &'a mut Found<'de>) -> Self {
        Self {
            names,
            found,
            index: None,
            asked: None,
            spared: None,
        }
    }
}

impl Decoded {
    fn take(&mut self, found: Found<'_>, path: &str, document: usize) {
        let objects = MAX_OBJECTS.saturating_sub(self.objects.len());
        let refusals = MAX_REFUSALS.saturating_sub(self.rejections.len());
        self.left_out += found.left_out
            + found.objects.len().saturating_sub(objects)
            + found.refusals.len().saturating_sub(refusals);
        let found_objects = found.objects.into_iter().take(objects);
        self.objects
            .extend(found_objects.map(|object| Located { object, document }));
        let refusals = found.refusals.into_iter().take(refusals);
        self.rejections.extend(refusals.map(|refusal| Rejection {
            kind: refusal.kind,
            namespace: refusal.namespace,
            name: refusal.name,
            source: format!("{path}#{document}"),
            reason: refusal.reason,
        }));
    }

    fn refuse_document(&mut self, path: &str, document: usize, reason: String) {
        self.unattributed += 1;
        if self.unattributed <= MAX_UNATTRIBUTED {
            self.refuse(format!("{path}#{document}"), reason);
        }
    }

    fn tell_the_rest(&mut self, path: &str) {
        if let Some(more @ 1..) = self.unattributed.checked_sub(MAX_UNATTRIBUTED) {
            let reason = format!("{more} more documents could not be read: is it a manifest?");
            self.refuse(path.to_owned(), reason);
        }
        if self.left_out > 0 {
            let reason = format!(
                "a file may have {MAX_OBJECTS} objects and {MAX_REFUSALS} that cannot be read: {} more are left out: split it",
                self.left_out
            );
            self.refuse(path.to_owned(), reason);
        }
    }

    fn refuse(&mut self, source: String, reason: String) {
        self.rejections.push(Rejection {
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            source,
            reason,
        });
    }
}
