//! JSON as Go programs read it. Pure.
//!
//! CNI configurations are written by Go programs for Go programs, and encoding/json forgives much: keys in any letter case (of several
//! the last one, and libcni has sorted them), null for whatever is not there, "" for an address that is not there. What other plugins
//! take, ours take, too. Where Go would refuse (another type, another subnet), so does this.

use std::collections::{BTreeMap, btree_map};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::de::value::SeqDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Map, Value};

/// Reads a value; an error names the field that it is about.
pub(super) fn read<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, Error> {
    T::deserialize(Go(value))
}

/// The key that Go takes for the field of this name: null changes nothing.
pub(super) fn key<'v>(fields: &'v Map<String, Value>, name: &str) -> Option<&'v str> {
    let mut named = fields
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name));
    let says = named.clone().rfind(|(_, value)| !value.is_null());
    says.or_else(|| named.next_back())
        .map(|(key, _)| key.as_str())
}

/// The field of this name; `Null` where there is none.
pub(super) fn field<'v>(object: &'v Value, name: &str) -> &'v Value {
    let found = object
        .as_object()
        .and_then(|fields| fields.get(key(fields, name)?));
    found.unwrap_or(&Value::Null)
}

/// The same, to be changed; `None` where there is none.
pub(super) fn field_mut<'v>(object: &'v mut Value, name: &str) -> Option<&'v mut Value> {
    let fields = object.as_object_mut()?;
    let key = key(fields, name)?.to_owned();
    fields.get_mut(&key)
}

/// The text of a field; "" where there is none.
pub(super) fn text<'v>(object: &'v Value, name: &str) -> &'v str {
    field(object, name).as_str().unwrap_or_default()
}

/// An address (`net.IP`): "" is none, and an IPv4-mapped one is an IPv4 address.
pub(super) fn address<'de, D: Deserializer<'de>>(value: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(value)?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |error| D::Error::custom(format!("{text:?}: {error}"));
    let address: IpAddr = text.parse().map_err(wrong)?;
    Ok(Some(address.to_canonical()))
}

/// A subnet (`types.IPNet`): "" is none.
pub(super) fn network<'de, D: Deserializer<'de>>(value: D) -> Result<Option<IpNetwork>, D::Error> {
    let text = String::deserialize(value)?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |error| D::Error::custom(format!("{text:?}: {error}"));
    text.parse().map(Some).map_err(wrong)
}

#[derive(Clone, Copy)]
struct Go<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, Error> for Go<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
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

    zero! {
        deserialize_bool => visit_bool(false)
        deserialize_u64 => visit_u64(0)
        deserialize_i64 => visit_i64(0)
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
                    let name = names.iter().find(|name| name.eq_ignore_ascii_case(key))?;
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
