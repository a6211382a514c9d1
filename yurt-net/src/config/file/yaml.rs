//! YAML, JSON too, as a tree that knows its lines. Pure.

use granit_parser::{Event, Parser};

use super::said::Remark;

/// Maps and lists in each other.
const DEEPEST: usize = 32;

/// A value, and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// From 1.
    pub(super) line: usize,
    pub(super) value: Value,
}

/// Scalars are text: whoever reads one knows its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Name, Node)>),
}

/// The name of a field, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) text: String,
    pub(super) line: usize,
}

/// What has begun and not ended.
enum Open {
    List(usize, Vec<Node>),
    Map(usize, Vec<(Name, Node)>, Option<Name>),
}

/// The documents of a text. Aliases are refused: none of them is worth what they can grow to.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, Remark> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| wrong(error.marker().line(), format!("YAML: {error}")))?;
        let line = span.start.line();
        let whole = match event {
            Event::Scalar(text, style, _, _) => {
                let is_plain = style == granit_parser::ScalarStyle::Plain;
                let value = match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if is_plain => Value::Null,
                    _ => Value::Text(text.into_owned()),
                };
                Node { line, value }
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(line, Vec::new()));
                deep_enough(&open, line)?;
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(line, Vec::new(), None));
                deep_enough(&open, line)?;
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(line, items)) => Node {
                    line,
                    value: Value::List(items),
                },
                Some(Open::Map(line, fields, _)) => Node {
                    line,
                    value: Value::Map(fields),
                },
                None => continue,
            },
            Event::Alias(_) => {
                return Err(wrong(
                    line,
                    "aliases are not read: write the value again".to_owned(),
                ));
            }
            _ => continue,
        };
        match open.last_mut() {
            None => documents.push(whole),
            Some(Open::List(_, items)) => items.push(whole),
            Some(Open::Map(_, fields, name)) => match name.take() {
                Some(name) => fields.push((name, whole)),
                None => {
                    let Value::Text(text) = whole.value else {
                        return Err(wrong(line, "the name of a field is no text".to_owned()));
                    };
                    *name = Some(Name { text, line });
                }
            },
        }
    }
    Ok(documents)
}

fn deep_enough(open: &[Open], line: usize) -> Result<(), Remark> {
    match open.len() {
        0..=DEEPEST => Ok(()),
        _ => Err(wrong(
            line,
            format!("more than {DEEPEST} maps and lists in each other"),
        )),
    }
}

fn wrong(line: usize, what: String) -> Remark {
    Remark {
        line,
        field: String::new(),
        what,
    }
}
