//! Protobuf, as much of it as CRI's messages need: fields by number, each a number, a text or a message.

use anyhow::{Context as _, Result, bail};

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// A message that is being written.
#[derive(Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Adds a text.
    pub(crate) fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// Adds a message.
    pub(crate) fn message(self, field: u64, message: Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// Adds a number.
    pub(crate) fn number(mut self, field: u64, number: u64) -> Self {
        self.varint(field << 3 | VARINT);
        self.varint(number);
        self
    }

    /// What goes over the wire.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | BYTES);
        self.varint(u64::try_from(bytes.len()).expect("a length fits into 64 bits"));
        self.0.extend_from_slice(bytes);
        self
    }

    fn varint(&mut self, mut number: u64) {
        loop {
            let low = u8::try_from(number & 0x7f).expect("seven bits fit into a byte");
            number >>= 7;
            if number == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }
}

/// A message that has come.
#[derive(Debug)]
pub(crate) struct Fields(Vec<(u64, Field)>);

#[derive(Debug)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Fields {
    /// Takes a message apart. Numbers of a fixed size, of which CRI has none that matter here, are left out.
    pub(crate) fn read(mut from: &[u8]) -> Result<Self> {
        let mut fields = Vec::new();
        while !from.is_empty() {
            let key = varint(&mut from)?;
            match key & 7 {
                VARINT => fields.push((key >> 3, Field::Number(varint(&mut from)?))),
                BYTES => {
                    let length = usize::try_from(varint(&mut from)?)?;
                    fields.push((key >> 3, Field::Bytes(take(&mut from, length)?.to_vec())));
                }
                FIXED64 => drop(take(&mut from, 8)?),
                FIXED32 => drop(take(&mut from, 4)?),
                other => bail!("a field of the unknown wire type {other}"),
            }
        }
        Ok(Self(fields))
    }

    /// A number; 0, which is not sent, where there is none.
    pub(crate) fn number(&self, field: u64) -> u64 {
        let mut numbers = self.0.iter().filter_map(|(number, value)| match value {
            Field::Number(value) if *number == field => Some(*value),
            _ => None,
        });
        numbers.next().unwrap_or_default()
    }

    /// A text; empty where there is none.
    pub(crate) fn text(&self, field: u64) -> Result<String> {
        let bytes = self.all(field).next().unwrap_or_default();
        String::from_utf8(bytes.to_vec()).context("a text is no UTF-8")
    }

    /// The messages in a field that may be repeated.
    pub(crate) fn messages(&self, field: u64) -> Result<Vec<Self>> {
        self.all(field).map(Self::read).collect()
    }

    /// The message in a field, which must be there.
    pub(crate) fn message(&self, field: u64) -> Result<Self> {
        let bytes = self.all(field).next();
        Self::read(bytes.with_context(|| format!("no field {field} in {self:?}"))?)
    }

    fn all(&self, field: u64) -> impl Iterator<Item = &[u8]> {
        self.0
            .iter()
            .filter_map(move |(number, value)| match value {
                Field::Bytes(bytes) if *number == field => Some(bytes.as_slice()),
                _ => None,
            })
    }
}

fn varint(from: &mut &[u8]) -> Result<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = take(from, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    bail!("a number of more than 64 bits")
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length).context("it ends too early")?;
    *from = rest;
    Ok(taken)
}
