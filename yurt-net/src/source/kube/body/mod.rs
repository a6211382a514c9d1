//! The bodies of the API's answers, piece by piece as they arrive: gunzip, the items of a list, the lines of a watch.
//!
//! Pure. A list of ten thousand Services is never in memory whole: each item is handed out when its last byte is here,
//! and what is outside the items is kept and parsed at the end.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::io::{self, Write as _};

use flate2::write::MultiGzDecoder;
use memchr::{memchr, memchr2, memchr3};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::source::decode::OtherObject;

/// No object of an apiserver is larger: etcd refuses 1.5 MB.
const MAX_ITEM_BYTES: usize = 16 << 20;
/// A list has little outside its items.
const MAX_ENVELOPE_BYTES: usize = 64 << 10;

/// Why a body is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It says that it is gzip, and is not.
    #[error("the answer cannot be decompressed")]
    Gzip(#[source] io::Error),
    /// Nothing larger is kept.
    #[error("an object in the answer is larger than {MAX_ITEM_BYTES} bytes")]
    TooLarge,
    /// Its connection was lost, or its server stopped.
    #[error("the answer ends before its end")]
    Cut,
    /// It has more blanks than objects.
    #[error("the answer has more blanks than objects")]
    Blanks,
    /// Items are objects.
    #[error("the answer is no list: it has {found:?} between its items")]
    NoItem {
        /// Its first character.
        found: char,
    },
    /// It has no items, or far too much besides.
    #[error("the answer is no list")]
    NoList,
    /// A list of something else says nothing of what was asked for.
    #[error("the answer is a list of another kind, {found:?} where {wanted}List was asked for")]
    OtherKind {
        /// Its kind, or the beginning of it.
        found: String,
        /// The kind of the objects that were asked for.
        wanted: &'static str,
    },
    /// Nor does a list of the right kind with items of another one, or an event of such an object.
    #[error(transparent)]
    OtherObject(#[from] OtherObject),
    /// What is around the items, or an event.
    #[error("the answer is not JSON")]
    Json(#[from] serde_json::Error),
}

/// Undoes `Content-Encoding: gzip`, or nothing.
pub enum Inflate {
    /// Nothing to undo.
    Identity,
    /// Gzip, of one member or several.
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
}

impl Inflate {
    /// At the beginning of a body.
    pub fn new(is_gzip: bool) -> Self {
        match is_gzip {
            true => Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            false => Self::Identity,
        }
    }

    /// Passes on what `bytes` unpack to: up to a thousand times as much, so they should be few.
    pub fn push(
        &mut self,
        bytes: &[u8],
        sink: impl FnOnce(&[u8]) -> Result<(), BodyError>,
    ) -> Result<(), BodyError> {
        match self {
            Self::Identity => sink(bytes),
            Self::Gzip(decoder) => {
                decoder.write_all(bytes).map_err(BodyError::Gzip)?;
                let result = sink(decoder.get_ref());
                decoder.get_mut().clear();
                result
            }
        }
    }

    /// Says whether everything has arrived, and passes on the last of it.
    pub fn finish(
        self,
        sink: impl FnOnce(&[u8]) -> Result<(), BodyError>,
    ) -> Result<(), BodyError> {
        match self {
            Self::Identity => Ok(()),
            Self::Gzip(decoder) => sink(&decoder.finish().map_err(BodyError::Gzip)?),
        }
    }
}

/// The end of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct ListEnd {
    /// The kind that it claims, such as `ServiceList`; "" if it claims none.
    pub kind: String,
    /// Where a watch goes on.
    pub version: String,
    /// There are more objects, which this token asks for.
    pub next_page: Option<String>,
}

impl ListEnd {
    /// Refuses a list of another kind, which would be taken for an empty one. A server that does not name the kind is
    /// believed, and so is `List`, the kind under which YurtHub and kubectl put objects together.
    pub fn of_kind(self, wanted: &'static str) -> Result<Self, BodyError> {
        let is_wanted = self
            .kind
            .strip_suffix("List")
            .is_some_and(|kind| kind == wanted);
        if is_wanted || matches!(&*self.kind, "" | "List") {
            return Ok(self);
        }
        let found = self.kind.chars().take(64).collect();
        Err(BodyError::OtherKind { found, wanted })
    }
}

/// Takes a list apart.
#[derive(Debug, Default)]
pub struct ListScanner {
    /// Everything but the items: also JSON, with an empty list of items.
    envelope: Vec<u8>,
    /// The beginning of an item whose end has not arrived.
    item: Vec<u8>,
    place: Place,
    /// Bytes of items, and of what is between them: a packed body of endless blanks costs its sender nothing.
    items: usize,
    between: usize,
    /// Open braces.
    depth: u32,
    is_in_string: bool,
    /// In a string, after a backslash.
    is_escaped: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    BeforeItems,
    BetweenItems,
    InItem,
    AfterItems,
}

impl ListScanner {
    /// Takes the next bytes, and hands out each item that ends in them.
    pub fn push(&mut self, mut bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<(), BodyError> {
        while !bytes.is_empty() {
            bytes = match self.place {
                Place::BeforeItems => self.before_items(bytes)?,
                Place::BetweenItems => self.between_items(bytes)?,
                Place::InItem => self.in_item(bytes, &mut sink)?,
                Place::AfterItems => {
                    self.keep(bytes)?;
                    &[]
                }
            };
        }
        Ok(())
    }

    /// Says whether the list is whole.
    pub fn finish(self) -> Result<ListEnd, BodyError> {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(default)]
            kind: String,
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            resource_version: Option<String>,
            #[serde(rename = "continue")]
            next_page: Option<String>,
        }
        match self.place {
            Place::AfterItems => {}
            Place::BetweenItems | Place::InItem => return Err(BodyError::Cut),
            Place::BeforeItems => {
                match serde_json::from_slice::<serde_json::Value>(&self.envelope) {
                    // An empty slice of Go, as some servers send it (kubernetes#39822).
                    Ok(all) if all.get("items").is_some_and(serde_json::Value::is_null) => {}
                    Ok(_) => return Err(BodyError::NoList),
                    Err(error) if error.is_eof() => return Err(BodyError::Cut),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let envelope: Envelope = match serde_json::from_slice(&self.envelope) {
            Err(error) if error.is_eof() => return Err(BodyError::Cut),
            result => result?,
        };
        Ok(ListEnd {
            kind: envelope.kind,
            version: envelope.metadata.resource_version.unwrap_or_default(),
            next_page: envelope
                .metadata
                .next_page
                .filter(|token| !token.is_empty()),
        })
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        if self.envelope.len() + bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(BodyError::NoList);
        }
        self.envelope.extend_from_slice(bytes);
        Ok(())
    }

    fn before_items<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], BodyError> {
        for (index, &byte) in bytes.iter().enumerate() {
            if self.is_in_string {
                self.in_string(byte);
                continue;
            }
            match byte {
                b'"' => self.is_in_string = true,
                b'{' => self.depth += 1,
                b'}' => self.depth = self.depth.saturating_sub(1),
                b'[' if self.depth == 1 => {
                    let (before, after) = bytes.split_at(index);
                    self.keep(before)?;
                    let is_items = self.ends_with_items_key();
                    self.keep(b"[")?;
                    if is_items {
                        self.place = Place::BetweenItems;
                    }
                    return Ok(after.get(1..).unwrap_or_default());
                }
                _ => {}
            }
        }
        self.keep(bytes)?;
        Ok(&[])
    }

    fn ends_with_items_key(&self) -> bool {
        let text = self.envelope.trim_ascii_end();
        text.strip_suffix(b":").is_some_and(|text| {
            let text = text.trim_ascii_end();
            text.ends_with(b"\"items\"") && !text.ends_with(b"\\\"items\"")
        })
    }

    fn between_items<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], BodyError> {
        let begin = bytes
            .iter()
            .position(|byte| !byte.is_ascii_whitespace() && *byte != b',');
        self.between += begin.unwrap_or(bytes.len());
        if self.between > MAX_ENVELOPE_BYTES + self.items {
            return Err(BodyError::Blanks);
        }
        let Some(begin) = begin else { return Ok(&[]) };
        let bytes = &bytes[begin..];
        match bytes[0] {
            b'{' => {
                self.place = Place::InItem;
                self.depth = 0;
                Ok(bytes)
            }
            b']' => {
                self.place = Place::AfterItems;
                Ok(bytes)
            }
            other => Err(BodyError::NoItem {
                found: char::from(other),
            }),
        }
    }

    /// An item ends with the brace that closes its first one.
    fn in_item<'a>(
        &mut self,
        bytes: &'a [u8],
        sink: &mut impl FnMut(&[u8]),
    ) -> Result<&'a [u8], BodyError> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if self.is_escaped {
                self.is_escaped = false;
                at += 1;
                continue;
            }
            if self.is_in_string {
                let Some(found) = memchr2(b'"', b'\\', rest) else {
                    break;
                };
                at += found + 1;
                self.in_string(rest[found]);
                continue;
            }
            let Some(found) = memchr3(b'{', b'}', b'"', rest) else {
                break;
            };
            at += found + 1;
            match rest[found] {
                b'"' => self.is_in_string = true,
                b'{' => self.depth += 1,
                _ => self.depth -= 1,
            }
            if self.depth == 0 && !self.is_in_string {
                let (end, after) = bytes.split_at(at);
                self.items += self.item.len() + end.len();
                if self.item.is_empty() {
                    sink(end);
                } else {
                    self.item.extend_from_slice(end);
                    sink(&self.item);
                    self.item.clear();
                }
                self.place = Place::BetweenItems;
                return Ok(after);
            }
        }
        if self.item.len() + bytes.len() > MAX_ITEM_BYTES {
            return Err(BodyError::TooLarge);
        }
        self.item.extend_from_slice(bytes);
        Ok(&[])
    }

    fn in_string(&mut self, byte: u8) {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => self.is_in_string = false,
            _ => {}
        }
    }
}

/// Takes a watch apart into its lines.
#[derive(Debug, Default)]
pub struct LineScanner {
    line: Vec<u8>,
}

impl LineScanner {
    /// Takes the next bytes, and hands out each line that ends in them.
    pub fn push<E: From<BodyError>>(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            if self.line.is_empty() {
                sink(head)?;
            } else {
                self.line.extend_from_slice(head);
                sink(&std::mem::take(&mut self.line))?;
            }
            bytes = &rest[1..];
        }
        if self.line.len() + bytes.len() > MAX_ITEM_BYTES {
            return Err(BodyError::TooLarge.into());
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }
}

/// One line of a watch.
#[derive(Debug)]
pub enum WatchEvent<'a> {
    /// ADDED or MODIFIED.
    Put {
        /// Its state, in JSON.
        object: &'a [u8],
        /// `metadata.resourceVersion`; "" = none.
        version: String,
    },
    /// DELETED, with the last state of the object.
    Delete {
        /// Its last state, in JSON.
        object: &'a [u8],
        /// Version at its end.
        version: String,
    },
    /// BOOKMARK: nothing happened until here.
    Bookmark {
        /// Where a watch goes on.
        version: String,
    },
    /// ERROR, with the Status.
    Error {
        /// As in HTTP.
        code: u16,
        /// For people.
        message: String,
    },
    /// A type that is not known.
    Unknown {
        /// That type.
        kind: String,
    },
}

/// Reads one line of a watch of `wanted`, a kind, in an API version. Its objects all say what they are, and one that is
/// something else is refused as in a list.
pub fn watch_event<'a>(
    line: &'a [u8],
    wanted: &str,
    api_version: &str,
) -> Result<WatchEvent<'a>, BodyError> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    if let Some((kind, object)) = as_go_writes_it(line)
        && let Ok(head) = serde_json::from_slice(object)
    {
        return event(kind, object, head, wanted, api_version);
    }
    let Line { kind, object } = serde_json::from_slice(line)?;
    let head = serde_json::from_str(object.get())?;
    event(&kind, object.get().as_bytes(), head, wanted, api_version)
}

/// The type and the object of a line that is written as apiservers write it. An object may have megabytes, and would be
/// read once more if its end was looked for. If it is JSON, the line is, too.
fn as_go_writes_it(line: &[u8]) -> Option<(&str, &[u8])> {
    let line = line.trim_ascii().strip_prefix(br#"{"type":""#)?;
    let (kind, rest) = line.split_at(memchr(b'"', line)?);
    let object = rest.strip_prefix(br#"","object":"#)?.strip_suffix(b"}")?;
    let is_word = kind.iter().all(u8::is_ascii_uppercase);
    is_word.then_some((str::from_utf8(kind).ok()?, object))
}

/// What is read of an object before it is decoded.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Head<'a> {
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    api_version: Option<&'a RawValue>,
    metadata: Option<HeadMetadata>,
    code: Option<u16>,
    message: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HeadMetadata {
    resource_version: Option<String>,
}

fn event<'a>(
    kind: &str,
    object: &'a [u8],
    head: Head<'_>,
    wanted: &str,
    api_version: &str,
) -> Result<WatchEvent<'a>, BodyError> {
    if matches!(kind, "ADDED" | "MODIFIED" | "DELETED") {
        // What is no text is told of the object alone, by its decoder.
        fn said(value: Option<&RawValue>) -> Cow<'_, str> {
            let text = value.map(|value| serde_json::from_str(value.get()));
            text.and_then(Result::ok).unwrap_or_default()
        }
        let (kind, version) = (said(head.kind), said(head.api_version));
        if let Some(other) = OtherObject::said(&kind, &version, wanted, api_version) {
            return Err(other.into());
        }
    }
    let version = head.metadata.and_then(|meta| meta.resource_version);
    let version = version.unwrap_or_default();
    Ok(match kind {
        "ADDED" | "MODIFIED" => WatchEvent::Put { object, version },
        "DELETED" => WatchEvent::Delete { object, version },
        "BOOKMARK" => WatchEvent::Bookmark { version },
        "ERROR" => WatchEvent::Error {
            code: head.code.unwrap_or_default(),
            message: head.message.unwrap_or_default(),
        },
        _ => WatchEvent::Unknown {
            kind: kind.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests;
