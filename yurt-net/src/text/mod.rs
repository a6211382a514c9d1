//! Text from outside, made safe for a terminal, a log, a metric or JSON.
//!
//! Pure. Names and values of objects, files and other machines may hold escape sequences, newlines and marks that turn
//! the direction of writing: shown raw, they hide or forge lines, and a value may be a megabyte long. This module
//! escapes them, and cuts them where a few words are enough to recognise them. Escaping twice is the same as escaping
//! once.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// Characters of a value in the middle of a sentence.
const QUOTED_CHARS: usize = 64;
/// Characters of a name with its namespace; Kubernetes allows 253 for a name.
const NAME_CHARS: usize = 320;
/// Characters of a whole message.
const MESSAGE_CHARS: usize = 1024;

/// Whether a character is visible, stands for itself, and does not move others.
pub fn is_plain(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // Letters and symbols by their class, and blank all the same: fillers of Hangul, and Braille without a dot.
        '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' => false,
        // Controls, formats, separators, marks that join what is before them, private use, and what Unicode has not
        // assigned.
        c => c.escape_debug().len() == 1,
    }
}

/// A text with its special characters escaped, and cut to a length that suits the place where it is shown.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    text: &'a str,
    most: usize,
    is_quoted: bool,
}

/// A name, or two with a slash.
pub fn name(text: &str) -> Shown<'_> {
    Shown {
        text,
        most: NAME_CHARS,
        is_quoted: false,
    }
}

/// A value in quotes, in the middle of a sentence.
pub fn quoted(text: &str) -> Shown<'_> {
    Shown {
        text,
        most: QUOTED_CHARS,
        is_quoted: true,
    }
}

/// A message, on one line.
pub fn message(text: &str) -> Shown<'_> {
    Shown {
        text,
        most: MESSAGE_CHARS,
        is_quoted: false,
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.text.char_indices().nth(self.most);
        let kept = end.map_or(self.text, |(end, _)| &self.text[..end]);
        if self.is_quoted {
            f.write_char('"')?;
        }
        for c in kept.chars() {
            match c {
                '"' | '\\' if self.is_quoted => write!(f, "\\{c}")?,
                c if is_plain(c) => f.write_char(c)?,
                c => write_escape(f, c)?,
            }
        }
        if self.is_quoted {
            f.write_char('"')?;
        }
        f.write_str(if end.is_some() { "..." } else { "" })
    }
}

fn write_escape(out: &mut impl fmt::Write, c: char) -> fmt::Result {
    match c {
        '\n' | '\r' | '\t' | '\0' => write!(out, "{}", c.escape_debug()),
        c => write!(out, "{}", c.escape_unicode()),
    }
}

/// A text on one line, whole.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// A text whose lines stay lines.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_good = |c| is_plain(c) || is_kept(c);
    if text.chars().all(is_good) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_good(c) {
            true => shown.push(c),
            // A String takes every write.
            false => _ = write_escape(&mut shown, c),
        }
    }
    Cow::Owned(shown)
}

/// A URL, valid or not, without its user and password.
pub fn without_user(url: &str) -> Cow<'_, str> {
    let Some((user, rest)) = url.rsplit_once('@') else {
        return Cow::Borrowed(url);
    };
    let scheme = user.find("://").map_or(0, |at| at + "://".len());
    let scheme = user.get(..scheme).unwrap_or_default();
    Cow::Owned(format!("{scheme}...@{rest}"))
}

/// The same value with each of its texts and keys as a [`message`], for output that consists of lines.
pub fn plain<T: Serialize + DeserializeOwned>(value: &T) -> serde_json::Result<T> {
    let mut json = serde_json::to_value(value)?;
    make_plain(&mut json);
    serde_json::from_value(json)
}

fn make_plain(value: &mut Value) {
    let is_plain_text = |text: &str| text.len() <= MESSAGE_CHARS && text.chars().all(is_plain);
    match value {
        Value::String(text) if !is_plain_text(text) => *text = message(text).to_string(),
        Value::Array(elements) => elements.iter_mut().for_each(make_plain),
        Value::Object(fields) => {
            fields.values_mut().for_each(make_plain);
            if !fields.keys().all(|key| is_plain_text(key)) {
                let old = std::mem::take(fields).into_iter();
                fields.extend(old.map(|(key, value)| (message(&key).to_string(), value)));
            }
        }
        _ => {}
    }
}

/// JSON on one line. Special characters are written as JSON's own escapes, so that they read back unchanged.
pub fn json<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    struct Plain;
    impl Formatter for Plain {
        fn write_string_fragment<W: io::Write + ?Sized>(
            &mut self,
            writer: &mut W,
            fragment: &str,
        ) -> io::Result<()> {
            writer.write_all(json_fragment(fragment).as_bytes())
        }
    }
    let mut text = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut text, Plain))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// YAML in lines. Texts are in quotes, with escapes that YAML has from JSON, so that they read back unchanged.
pub fn yaml<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    let mut lines = String::new();
    write_yaml(&mut lines, &serde_json::to_value(value)?, 0)?;
    Ok(lines)
}

/// The lines of a value, which begins a line.
fn write_yaml(lines: &mut String, value: &Value, indent: usize) -> serde_json::Result<()> {
    let blanks = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let is_word = key.chars().all(|c| c.is_ascii_alphabetic());
                let key = if is_word { key.clone() } else { json(key)? };
                *lines += &format!("{blanks}{key}:");
                write_yaml_inside(lines, value, indent)?;
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            for element in elements {
                *lines += &format!("{blanks}-");
                write_yaml_inside(lines, element, indent)?;
            }
        }
        scalar => *lines += &format!("{blanks}{}\n", json(scalar)?),
    }
    Ok(())
}

/// What follows a key or a dash.
fn write_yaml_inside(lines: &mut String, value: &Value, indent: usize) -> serde_json::Result<()> {
    let is_nested = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        _ => false,
    };
    if is_nested {
        lines.push('\n');
        return write_yaml(lines, value, indent + 2);
    }
    *lines += &format!(" {}\n", json(value)?);
    Ok(())
}

/// The inside of a JSON string, with JSON's escapes for special characters.
fn json_fragment(fragment: &str) -> Cow<'_, str> {
    if fragment.chars().all(is_plain) {
        return Cow::Borrowed(fragment);
    }
    let mut shown = String::with_capacity(fragment.len() + 16);
    for c in fragment.chars() {
        if is_plain(c) {
            shown.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // A String takes every write.
            let _infallible = write!(shown, "\\u{unit:04x}");
        }
    }
    Cow::Owned(shown)
}

/// How the lines of a log are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStyle {
    /// Words. Without colours: the library that writes them cannot tell its own from those of others.
    Text,
    /// JSON.
    Json,
}

/// The destination of a log. Each write is one event; only the newline at its end is let through.
#[derive(Debug)]
pub struct Log<W> {
    to: W,
    style: LogStyle,
}

impl<W: io::Write> Log<W> {
    /// A log that writes to `to`.
    pub fn new(to: W, style: LogStyle) -> Self {
        Self { to, style }
    }
}

impl<W: io::Write> io::Write for Log<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (text, end) = match text.strip_suffix('\n') {
            Some(text) => (text, "\n"),
            None => (&*text, ""),
        };
        let shown = match self.style {
            LogStyle::Text => line(text),
            LogStyle::Json => json_fragment(text),
        };
        self.to.write_all(format!("{shown}{end}").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Whether objects of this namespace are written by tenants; "" has those of the cluster.
pub fn is_of_tenants(namespace: &str) -> bool {
    !["", "default", "kube-system"].contains(&namespace)
}

/// The group of an object for [`in_turns`]: what no tenant writes comes first, or names would decide.
pub fn by_namespace(namespace: &str) -> (bool, &str) {
    (is_of_tenants(namespace), namespace)
}

/// At most `most` items, in their order: the first of each group, by the order of groups, then the second of each, so
/// that a group of thousands hides no other group.
pub fn in_turns<'a, T, K: Ord + Clone>(
    all: &'a [T],
    most: usize,
    group: impl Fn(&'a T) -> K,
) -> Vec<&'a T> {
    if all.len() <= most {
        return all.iter().collect();
    }
    let mut turns: BTreeMap<K, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, K, usize)> = Vec::with_capacity(all.len());
    for (index, one) in all.iter().enumerate() {
        let group = group(one);
        let turn = turns.entry(group.clone()).or_default();
        ranked.push((*turn, group, index));
        *turn += 1;
    }
    ranked.sort_unstable();
    ranked.truncate(most);
    let mut kept: Vec<usize> = ranked.into_iter().map(|(_, _, index)| index).collect();
    kept.sort_unstable();
    kept.into_iter().map(|index| &all[index]).collect()
}

#[cfg(test)]
mod tests;
