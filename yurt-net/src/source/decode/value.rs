//! One foreign object, reduced to the fields that some rule reads, and typed access that can say what is wrong where.
//!
//! Why not typed structs: a serde error in the middle of a `List` leaves the parser in the middle of that
//! item, so one bad port would cost every object after it. A tree accepts any item; what is wrong is found
//! afterwards, object by object, with its field path. `Keep` prunes while parsing, so a Node with a hundred
//! images or an object with megabytes of annotations costs no memory.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::model::TOO_LONG;
use crate::text;

/// Which fields of an object are kept. Lists pass it on to their elements.
#[derive(Debug)]
pub(super) enum Keep {
    /// Everything below.
    All,
    /// These fields; the rest is skipped unseen.
    Only(&'static [(&'static str, Keep)]),
    /// Everything below the fields whose names begin with one of these.
    Under(&'static [&'static str]),
}

impl Keep {
    /// How to read field `key`; `None` when no rule reads it.
    pub(super) fn field(&self, key: &str) -> Option<&'static Keep> {
        match self {
            Self::All => Some(&Keep::All),
            Self::Only(fields) => fields
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, keep)| keep),
            Self::Under(prefixes) => {
                let mut prefixes = prefixes.iter();
                let is_kept = prefixes.any(|prefix| key.starts_with(prefix));
                is_kept.then_some(&Keep::All)
            }
        }
    }
}

/// A value of YAML or JSON; strings borrow from the text where they can.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'de> {
    Null,
    Bool(bool),
    Int(i64),
    /// A number that no field can hold, or binary data: only its description matters.
    Other(&'static str),
    Text(Cow<'de, str>),
    List(Vec<Value<'de>>),
    Map(Fields<'de>),
    /// A field that was given twice: which one was meant cannot be known.
    Twice,
}

const NULL: &Value<'static> = &Value::Null;

/// The fields of an object, sorted by name, each name once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields<'de>(Vec<(Cow<'de, str>, Value<'de>)>);

impl<'de> Fields<'de> {
    /// Takes fields as they were written; the second one of a name makes both unusable. Costs no more than to sort
    /// them: there may be a hundred thousand labels.
    pub(super) fn new(mut fields: Vec<(Cow<'de, str>, Value<'de>)>) -> Self {
        fields.sort_by(|(one, _), (other, _)| one.cmp(other));
        fields.dedup_by(|(later, _), (name, earlier)| {
            let is_same = later == name;
            if is_same {
                *earlier = Value::Twice;
            }
            is_same
        });
        Self(fields)
    }

    fn position(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| (**other).cmp(name))
    }

    /// The field of this name; `Null` when there is none.
    fn get(&self, name: &str) -> &Value<'de> {
        let position = self.position(name).ok();
        position.map_or(NULL, |position| &self.0[position].1)
    }

    /// Gives a field that is absent or `Null` a value.
    pub(super) fn fill_in(&mut self, name: &'static str, value: &str) {
        let value = Value::Text(Cow::Owned(value.to_owned()));
        match self.position(name) {
            Ok(position) => {
                let (_, field) = &mut self.0[position];
                if *field == Value::Null {
                    *field = value;
                }
            }
            Err(position) => self.0.insert(position, (Cow::Borrowed(name), value)),
        }
    }
}

/// What is wrong with a field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    path: String,
    expected: &'static str,
    found: String,
}

impl Wrong {
    pub(super) fn new(expected: &'static str, found: &Value<'_>) -> Self {
        Self {
            path: String::new(),
            expected,
            found: found.to_string(),
        }
    }

    fn within(mut self, step: &str) -> Self {
        if !self.path.is_empty() && !self.path.starts_with('[') {
            self.path.insert(0, '.');
        }
        self.path.insert_str(0, step);
        self
    }

    pub(super) fn within_field(self, key: &str) -> Self {
        let shown = text::name(key).to_string();
        if key.contains(['.', '/']) {
            self.within(&format!("[{shown}]"))
        } else {
            self.within(&shown)
        }
    }

    pub(super) fn within_index(self, index: usize) -> Self {
        self.within(&format!("[{index}]"))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            expected,
            found,
        } = self;
        write!(f, "{path}: expected {expected}, found {found}")
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Other(what) => f.write_str(what),
            Self::Text(text) => text::quoted(text).fmt(f),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("an object"),
            Self::Twice => f.write_str("the field twice"),
        }
    }
}

/// Reads field `key` of `value`; an absent field and a field of an absent object are `Null`.
pub(super) fn at<'v, 'de, T>(
    value: &'v Value<'de>,
    key: &str,
    read: impl FnOnce(&'v Value<'de>) -> Result<T, Wrong>,
) -> Result<T, Wrong> {
    let field = match value {
        Value::Null => NULL,
        Value::Map(fields) => fields.get(key),
        other => return Err(Wrong::new("an object", other)),
    };
    read(field).map_err(|wrong| wrong.within_field(key))
}

/// Reads each element; an absent list is empty.
pub(super) fn each<'v, 'de, T>(
    value: &'v Value<'de>,
    mut read: impl FnMut(&'v Value<'de>) -> Result<T, Wrong>,
) -> Result<Vec<T>, Wrong> {
    let elements = match value {
        Value::Null => return Ok(Vec::new()),
        Value::List(elements) => elements,
        other => return Err(Wrong::new("a list", other)),
    };
    let mut all = Vec::with_capacity(elements.len());
    for (index, element) in elements.iter().enumerate() {
        all.push(read(element).map_err(|wrong| wrong.within_index(index))?);
    }
    Ok(all)
}

/// Reads each element, and keeps one more than `most` of the elements that are there: of a longer list it is enough to
/// know that it is too long, and it may be a megabyte.
pub(super) fn each_up_to<'v, 'de, T>(
    most: usize,
    value: &'v Value<'de>,
    mut read: impl FnMut(&'v Value<'de>) -> Result<Option<T>, Wrong>,
) -> Result<Box<[T]>, Wrong> {
    let mut kept = Vec::new();
    each(value, |element| {
        // All of them are read, because errors behind the limit are reported, too.
        if let Some(one) = read(element)?
            && kept.len() <= most
        {
            kept.push(one);
        }
        Ok(())
    })?;
    Ok(kept.into())
}

/// Reads each entry of an object; an absent one is empty.
pub(super) fn entries<'v, 'de>(
    value: &'v Value<'de>,
) -> Result<impl Iterator<Item = (&'v str, &'v Value<'de>)>, Wrong> {
    let fields: &[(Cow<'de, str>, Value<'de>)] = match value {
        Value::Null => &[],
        Value::Map(fields) => &fields.0,
        other => return Err(Wrong::new("an object", other)),
    };
    Ok(fields.iter().map(|(key, value)| (key.as_ref(), value)))
}

/// A string, or nothing.
pub(super) fn text<'v>(value: &'v Value<'_>) -> Result<Option<&'v str>, Wrong> {
    match value {
        Value::Null => Ok(None),
        Value::Text(text) => Ok(Some(text)),
        Value::Bool(_) | Value::Int(_) | Value::Other(_) => {
            Err(Wrong::new("a string (in quotes)", value))
        }
        other => Err(Wrong::new("a string", other)),
    }
}

/// Bytes of a name that is read: of an object, a port, a node, a label's value. The API does not admit longer ones; a
/// file may have them.
pub(super) const MAX_NAME: usize = 253;

/// A string that is no longer than a name, or nothing. It is kept as long as its object, and there may be thousands.
pub(super) fn name_of<'v>(value: &'v Value<'_>) -> Result<Option<&'v str>, Wrong> {
    match text(value)? {
        Some(name) if name.len() > MAX_NAME => Err(Wrong::new("at most 253 bytes", value)),
        name => Ok(name),
    }
}

/// Bytes of an annotation that are kept: a tenant may write 256 KB into each of its objects.
const MAX_ANNOTATION: usize = 4096;

/// The text of an annotation as it is kept.
pub(super) fn annotation(text: &str) -> &str {
    match text.len() <= MAX_ANNOTATION {
        true => text,
        false => TOO_LONG,
    }
}

/// A boolean, or nothing.
pub(super) fn boolean(value: &Value<'_>) -> Result<Option<bool>, Wrong> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(*value)),
        other => Err(Wrong::new("true or false", other)),
    }
}

/// Values and fields of one object that are kept while it is read: twice what 1,000 endpoints of 100 addresses have,
/// which is the most that an apiserver takes. They take 16 MB.
pub(super) const MAX_VALUES: usize = 1 << 18;

/// What one object may still have of [`MAX_VALUES`].
#[derive(Debug)]
pub(super) struct ValueRoom {
    left: usize,
    is_spent: bool,
}

impl Default for ValueRoom {
    fn default() -> Self {
        Self {
            left: MAX_VALUES,
            is_spent: false,
        }
    }
}

impl ValueRoom {
    /// Keeps one more value in a list or an object; where there is no room, lets all of it go, so that the object's
    /// name has some. False once nothing more of it is to be kept.
    pub(super) fn keep<T>(&mut self, kept: &mut Vec<T>, value: T) -> bool {
        let has_room = self.left > 0;
        if has_room {
            self.left -= 1;
            kept.push(value);
        } else {
            self.is_spent = true;
            self.left += kept.len();
            *kept = Vec::new();
        }
        has_room
    }

    /// So much of the object was kept that lists and maps that stay small must not have room to grow.
    fn is_scarce(&self) -> bool {
        self.left < MAX_VALUES / 2
    }

    /// What was kept of the object.
    pub(super) fn used(&self) -> usize {
        MAX_VALUES - self.left
    }

    /// The object has more than it may: what was kept of it is not what it says.
    pub(super) fn is_spent(&self) -> bool {
        self.is_spent
    }
}

/// Builds a `Value` of what `Keep` keeps.
pub(super) struct Pick<'a>(pub(super) &'static Keep, pub(super) &'a mut ValueRoom);

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(i64::try_from(value).map_or(Value::Other("a huge number"), Value::Int))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value<'de>, E> {
        Ok(i64::try_from(value).map_or(Value::Other("a huge number"), Value::Int))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value<'de>, E> {
        Ok(i64::try_from(value).map_or(Value::Other("a huge number"), Value::Int))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Other("a fractional number"))
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Value<'de>, E> {
        Ok(Value::Other("binary data"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        let Self(keep, room) = self;
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element_seed(Pick(keep, room))? {
            if !room.keep(&mut elements, element) {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                break;
            }
        }
        if room.is_scarce() {
            elements.shrink_to_fit();
        }
        Ok(Value::List(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        let Self(keep, room) = self;
        let mut fields = Vec::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let Some(keep) = keep.field(&key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value_seed(Pick(keep, room))?;
            if !room.keep(&mut fields, (key, value)) {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                break;
            }
        }
        if room.is_scarce() {
            fields.shrink_to_fit();
        }
        Ok(Value::Map(Fields::new(fields)))
    }
}

/// The key of a field, as written.
pub(super) struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, value: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(value))
    }
}
