//! JSON as Go programs read it. Pure.
//!
//! CNI configurations are written by Go programs for Go programs, and encoding/json forgives much: keys in any letter
//! case (of several the last one, and libcni has sorted them), null for whatever is not there, "" for an address that
//! is not there. What other plugins take, ours take, too. Where Go would refuse (another type, a subnet without a
//! length), so does this.
//!
//! A runtime reads a list of plugins into maps and writes each plugin's part anew, so a number arrives as a float is
//! written: `1400.0` and `1.4e3` of a file as `1400`. Files are read here as well, so a float that is an integer is
//! one.

use std::collections::{BTreeMap, btree_map};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::de::value::SeqDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Map, Value};

/// Reads a value; an error names the field that it is about.
pub(crate) fn read<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, Error> {
    T::deserialize(Go(value))
}

/// The key that Go takes for the field of this name: null changes nothing.
pub(crate) fn key<'v>(fields: &'v Map<String, Value>, name: &str) -> Option<&'v str> {
    let mut named = fields.iter().filter(|(key, _)| is_key(key, name));
    let says = named.clone().rfind(|(_, value)| !value.is_null());
    says.or_else(|| named.next_back())
        .map(|(key, _)| key.as_str())
}

/// Whether Go takes a key for the field of this name, which is of ASCII: in any letter case, and Unicode folds two more
/// letters into it (encoding/json `foldName`).
fn is_key(key: &str, name: &str) -> bool {
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

/// The field with this name; `Null` if there is none.
pub(crate) fn field<'v>(object: &'v Value, name: &str) -> &'v Value {
    let found = object
        .as_object()
        .and_then(|fields| fields.get(key(fields, name)?));
    found.unwrap_or(&Value::Null)
}

/// The same, for a change; `None` if there is none.
pub(crate) fn field_mut<'v>(object: &'v mut Value, name: &str) -> Option<&'v mut Value> {
    let fields = object.as_object_mut()?;
    let key = key(fields, name)?.to_owned();
    fields.get_mut(&key)
}

/// The text of a field; empty if there is none.
pub(crate) fn text<'v>(object: &'v Value, name: &str) -> &'v str {
    field(object, name).as_str().unwrap_or_default()
}

/// An address (`net.IP`): "" is none, and an IPv4-mapped one is an IPv4 address.
pub(crate) fn address<'de, D: Deserializer<'de>>(value: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(value)?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |error| D::Error::custom(format!("{text:?}: {error}"));
    let address: IpAddr = text.parse().map_err(wrong)?;
    Ok(Some(address.to_canonical()))
}

/// A subnet (`types.IPNet`), with a length behind a slash, as Go's `ParseCIDR` reads it. "" is none, which Go would
/// refuse.
pub(crate) fn network<'de, D: Deserializer<'de>>(value: D) -> Result<Option<IpNetwork>, D::Error> {
    let text = String::deserialize(value)?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || D::Error::custom(format!("{text:?} is not a subnet such as 10.1.0.0/24"));
    parse_network(&text).map(Some).ok_or_else(wrong)
}

/// The same, of a field that must be there.
pub(crate) fn some_network<'de, D: Deserializer<'de>>(value: D) -> Result<IpNetwork, D::Error> {
    network(value)?.ok_or_else(|| D::Error::custom("a subnet is missing"))
}

fn parse_network(text: &str) -> Option<IpNetwork> {
    let (address, length) = text.split_once('/')?;
    let is_number = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|_| is_number)?;
    IpNetwork::new(address.parse().ok()?, length).ok()
}

#[derive(Clone, Copy)]
struct Go<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, Error> for Go<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// A float that is an integer, as Go writes it; what is written as an integer is none.
fn integer(value: &Value) -> Option<i64> {
    /// Up to it, a float is exactly what was written.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let float = value.as_f64().filter(|_| value.is_f64())?;
    let is_integer = float.fract() == 0.0 && float.abs() <= EXACT;
    #[expect(clippy::cast_possible_truncation, reason = "it was looked at")]
    is_integer.then_some(float as i64)
}

/// Types whose zero value null stands for, where no field is left out instead: in lists.
macro_rules! zero {
    ($($method:ident => $visit:ident($zero:expr))*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0 {
                Value::Null => visitor.$visit($zero),
                value => value.$method(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Go<'de> {
    type Error = Error;

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (self.0, integer(self.0)) {
            (Value::Null, _) => visitor.visit_u64(0),
            (_, Some(integer)) => visitor.visit_i64(integer),
            (value, None) => value.deserialize_u64(visitor),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (self.0, integer(self.0)) {
            (Value::Null, _) => visitor.visit_i64(0),
            (_, Some(integer)) => visitor.visit_i64(integer),
            (value, None) => value.deserialize_i64(visitor),
        }
    }

    zero! {
        deserialize_bool => visit_bool(false)
        deserialize_str => visit_borrowed_str("")
        deserialize_string => visit_borrowed_str("")
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<Self>())),
            Value::Array(values) => {
                visitor.visit_seq(SeqDeserializer::new(values.iter().map(Self)))
            }
            other => other.deserialize_seq(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let found = match self.0 {
            Value::Null => BTreeMap::new(),
            Value::Object(fields) => fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .filter_map(|(key, value)| {
                    let name = names.iter().find(|name| is_key(key, name))?;
                    Some((*name, value))
                })
                .collect(),
            other => return other.deserialize_map(visitor),
        };
        visitor.visit_map(Fields {
            rest: found.into_iter(),
            next: None,
        })
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

struct Fields<'de> {
    rest: btree_map::IntoIter<&'static str, &'de Value>,
    next: Option<(&'static str, &'de Value)>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next = self.rest.next();
        let name = self.next.map(|(name, _)| name);
        name.map(|name| seed.deserialize(name.into_deserializer()))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, value) = self.next.take().unwrap_or(("", &Value::Null));
        seed.deserialize(Go(value))
            .map_err(|error| Error::custom(format!("{name}: {error}")))
    }
}
