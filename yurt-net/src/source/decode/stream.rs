//! From text to documents, and from a document to its objects, one at a time.
//!
//! A `List` of ten thousand Services is one document. Its items are turned into model objects while the
//! parser walks over them, so memory is that of one item, whatever the size of the list.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

use super::kinds::{self, ROOT, Refusal};
use super::names::Names;
use super::object::Object;
use super::other::{Asked, OtherObject};
use super::value::{Fields, Key, MAX_VALUES, Pick, Value, ValueRoom, at, text};

/// One YAML document of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// The text, with its `---` line if it has one.
    pub(super) text: &'a str,
    /// Lines of the file before it.
    pub(super) lines_before: usize,
}

impl<'a> Document<'a> {
    /// The text behind its `---`.
    pub(super) fn body(&self) -> &'a str {
        marker(self.text, "---").unwrap_or(self.text)
    }
}

/// Splits a file at the lines that start with `---`, as YAML and kubectl do. A document of only blanks,
/// comments and directives is none, and is not counted.
pub(super) fn documents(text: &str) -> impl Iterator<Item = Document<'_>> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines_before = 0;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (document, lines, has_content) = take_document(rest);
            let found = Document {
                text: document,
                lines_before,
            };
            rest = &rest[document.len()..];
            lines_before += lines;
            if has_content {
                return Some(found);
            }
        }
        None
    })
}

/// The first document of `text`, its number of lines, and whether there is anything in it.
fn take_document(text: &str) -> (&str, usize, bool) {
    let (mut end, mut lines, mut has_content) = (0, 0, false);
    for line in text.split_inclusive('\n') {
        let after_marker = marker(line, "---");
        if after_marker.is_some() && lines > 0 {
            break;
        }
        end += line.len();
        lines += 1;
        has_content = has_content || {
            let content = after_marker
                .or(marker(line, "..."))
                .unwrap_or(line)
                .trim_start();
            !(content.is_empty() || content.starts_with('#') || line.starts_with('%'))
        };
    }
    (&text[..end], lines, has_content)
}

/// What follows a document marker on its line; `None` when the line has none.
fn marker<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.strip_prefix(marker)
        .filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Objects of a file that are kept. An apiserver's list has no more either.
pub(super) const MAX_OBJECTS: usize = 100_000;
/// Objects of a file of which it is told that they cannot be read.
pub(super) const MAX_REFUSALS: usize = 10_000;
/// Values that wait for the kind of their list, which may come after them.
const MAX_KINDLESS: usize = MAX_VALUES / 2;

/// What a document held.
#[derive(Default)]
pub(super) struct Found<'de> {
    pub(super) objects: Vec<Object>,
    pub(super) refusals: Vec<Refusal>,
    /// Objects, readable or not, that are left out because there are too many.
    pub(super) left_out: usize,
    /// Items that name no kind, and whether they are too large: a `ServiceList` says it once for all, perhaps after the
    /// items.
    kindless: Vec<(usize, Value<'de>, bool)>,
    /// How many values those have.
    kindless_values: usize,
    /// An object that is not what was asked for.
    pub(super) other: Option<OtherObject>,
}

impl<'de> Found<'de> {
    fn add(&mut self, decoded: Result<Option<Object>, Refusal>, names: &Names) {
        match decoded {
            Ok(Some(_)) if self.objects.len() >= MAX_OBJECTS => self.left_out += 1,
            Ok(Some(object)) => self.objects.push(names.same(object)),
            Ok(None) => {}
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        match self.refusals.len() < MAX_REFUSALS {
            true => self.refusals.push(refusal),
            false => self.left_out += 1,
        }
    }

    fn keep_kindless(&mut self, index: usize, item: Value<'de>, room: &ValueRoom) {
        let values = self.kindless_values + room.used() + 1;
        if values <= MAX_KINDLESS {
            self.kindless_values = values;
            self.kindless.push((index, item, room.is_spent()));
            return;
        }
        let reason = format!(
            "items[{index}]: it names no kind, and its list says it only after too many items: write `kind` into the item, or before `items`"
        );
        self.refuse(Refusal::nameless(reason));
    }

    /// Decodes the items that did not name their kind, as objects of `kind` ("": not known).
    pub(super) fn settle(&mut self, kind: &str, api_version: Option<&str>, names: &mut Names) {
        self.kindless_values = 0;
        for (index, mut item, is_too_large) in std::mem::take(&mut self.kindless) {
            if let (Value::Map(fields), false) = (&mut item, kind.is_empty()) {
                fields.fill_in("kind", kind);
                // An item that names its version keeps it.
                if let Some(version) = api_version {
                    fields.fill_in("apiVersion", version);
                }
            }
            let decoded = kinds::object(&item, is_too_large, names);
            self.add(
                decoded.map_err(|refusal| refusal.within_item(Some(index))),
                names,
            );
        }
    }
}

/// The methods of a visitor for what is neither an object nor a list.
macro_rules! scalars {
    ($refuse:ident -> $value:ty) => {
        fn visit_bool<E: Error>(self, value: bool) -> Result<$value, E> {
            self.$refuse(Unexpected::Bool(value))
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<$value, E> {
            self.$refuse(Unexpected::Signed(value))
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<$value, E> {
            self.$refuse(Unexpected::Unsigned(value))
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<$value, E> {
            self.$refuse(Unexpected::Float(value))
        }

        fn visit_str<E: Error>(self, value: &str) -> Result<$value, E> {
            self.$refuse(Unexpected::Str(value))
        }
    };
}

/// Reads one object, or the objects of a list, into `found`.
pub(super) struct Top<'a, 'de> {
    pub(super) names: &'a mut Names,
    pub(super) found: &'a mut Found<'de>,
    /// Position in the list that this is an item of.
    pub(super) index: Option<usize>,
    /// What it has to be; `None`: it may be anything.
    pub(super) asked: Option<Asked<'a>>,
    /// Items of this list that are passed over: the limit of aliases has no room for what theirs add.
    pub(super) spared: Option<&'a BTreeSet<usize>>,
}

impl<'de> DeserializeSeed<'de> for Top<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    /// `null`: kubectl skips it too.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    scalars!(no_object -> ());

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.no_object(Unexpected::Seq)?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut fields: Vec<(Cow<'de, str>, Value<'de>)> = Vec::new();
        let mut room = ValueRoom::default();
        let mut items = None;
        while let Some(key) = map.next_key_seed(Key)? {
            if key == "items" {
                let names = &mut *self.names;
                let spared = self.spared;
                let of = ItemsOf::said_in(&fields);
                items = Some(map.next_value_seed(Items { names, spared, of })?);
            } else if let Some(keep) = ROOT.field(&key) {
                let value = map.next_value_seed(Pick(keep, &mut room))?;
                room.keep(&mut fields, (key, value));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        let object = Value::Map(Fields::new(fields));
        let kind = at(&object, "kind", text).ok().flatten();
        if let Some(Asked {
            kind: asked_kind,
            api_version: asked_version,
        }) = self.asked
        {
            let version = at(&object, "apiVersion", text).ok().flatten();
            let (kind, version) = (kind.unwrap_or_default(), version.unwrap_or_default());
            self.found.other = OtherObject::said(kind, version, asked_kind, asked_version);
            if self.found.other.is_some() {
                return Ok(());
            }
        }
        match (kind.and_then(|kind| kind.strip_suffix("List")), items) {
            (Some(item_kind), Some(items)) => self.list(item_kind, &object, items),
            _ if kind.is_none() && self.index.is_some() => {
                let index = self.index.unwrap_or_default();
                self.found.keep_kindless(index, object, &room);
            }
            _ => {
                let decoded = kinds::object(&object, room.is_spent(), self.names);
                let decoded = decoded.map_err(|refusal| refusal.within_item(self.index));
                self.found.add(decoded, self.names);
            }
        }
        Ok(())
    }
}

impl<'de> Top<'_, 'de> {
    /// An item that is no object costs only itself; a document that is none cannot be read.
    fn no_object<E: Error>(self, found: Unexpected<'_>) -> Result<(), E> {
        let Some(index) = self.index else {
            return Err(E::invalid_type(found, &self));
        };
        let reason = format!("items[{index}]: expected an object, found {found}");
        self.found.refuse(Refusal::nameless(reason));
        Ok(())
    }

    /// Takes over the items of a list of `kind` ("" for a mixed `List`).
    fn list(self, kind: &str, list: &Value<'de>, mut items: Found<'de>) {
        items.settle(
            kind,
            at(list, "apiVersion", text).ok().flatten(),
            self.names,
        );
        let room = MAX_OBJECTS.saturating_sub(self.found.objects.len());
        self.found.left_out += items.left_out + items.objects.len().saturating_sub(room);
        self.found
            .objects
            .extend(items.objects.into_iter().take(room));
        items
            .refusals
            .into_iter()
            .for_each(|refusal| self.found.refuse(refusal));
    }
}

/// What a list is of.
struct ItemsOf {
    /// "" of a mixed `List`.
    kind: String,
    api_version: String,
}

impl ItemsOf {
    /// Where its fields say so before its items come. The items of a mixed list have versions of their own.
    fn said_in(fields: &[(Cow<'_, str>, Value<'_>)]) -> Option<Self> {
        let said = |name: &str| {
            let (_, value) = fields.iter().find(|(key, _)| key == name)?;
            text(value).ok().flatten()
        };
        let kind = said("kind")?.strip_suffix("List")?.to_owned();
        let api_version = said("apiVersion").map(str::to_owned);
        (kind.is_empty() || api_version.is_some()).then(|| Self {
            kind,
            api_version: api_version.unwrap_or_default(),
        })
    }
}

/// The `items` of a list.
struct Items<'a> {
    names: &'a mut Names,
    spared: Option<&'a BTreeSet<usize>>,
    /// What they are, where it is known already.
    of: Option<ItemsOf>,
}

impl<'de> Items<'_> {
    /// This list may be an item of another one, and costs only itself.
    fn no_list<E: Error>(self, found: Unexpected<'_>) -> Result<Found<'de>, E> {
        let reason = format!("items: expected a list, found {found}");
        Ok(Found {
            refusals: vec![Refusal::nameless(reason)],
            ..Found::default()
        })
    }
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_unit<E>(self) -> Result<Found<'de>, E> {
        Ok(Found::default())
    }

    scalars!(no_list -> Found<'de>);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.no_list(Unexpected::Map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Found<'de>, A::Error> {
        let mut found = Found::default();
        for index in 0.. {
            if self.spared.is_some_and(|spared| spared.contains(&index)) {
                if seq.next_element::<IgnoredAny>()?.is_none() {
                    break;
                }
                let reason = format!(
                    "items[{index}]: what its aliases add is too much, or they refer to nothing: write it out"
                );
                found.refuse(Refusal::nameless(reason));
                continue;
            }
            let item = Top {
                names: &mut *self.names,
                found: &mut found,
                index: Some(index),
                asked: None,
                spared: None,
            };
            if seq.next_element_seed(item)?.is_none() {
                break;
            }
            if let Some(of) = &self.of {
                found.settle(&of.kind, Some(&of.api_version), self.names);
            }
        }
        Ok(found)
    }
}
