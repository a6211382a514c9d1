//! The types of fields: how a value is read, and written as a flag takes it. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use super::yaml::{Node, Value};
use crate::source::decode::{parse_address, parse_cidr};

/// The type of a field of KubeProxyConfiguration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `true` or `false`.
    Bool,
    /// An integer between two bounds.
    Integer(i64, i64),
    /// A number.
    Number,
    /// A time, as Go writes one: `1h30m0s`. An integer is nanoseconds.
    Time,
    /// Any text.
    Text,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// An IP address.
    Address,
    /// An IP address, with or without a port, which is this one where it is absent.
    Bind(u16),
    /// Prefixes.
    Cidrs,
    /// `primary`, or prefixes.
    NodePorts,
    /// Names, each with `true` or `false`.
    Switches,
    /// Nothing in it matters.
    Anything,
}

impl Shape {
    /// Reads a field of a file. No values: null, which is the same as leaving the field out.
    pub(super) fn read(self, node: &Node) -> Result<Vec<String>, String> {
        match (&node.value, self) {
            (Value::Null, _) => Ok(Vec::new()),
            (_, Self::Anything) => Ok(vec![String::new()]),
            (Value::Text(text), Self::Cidrs) => self.read_list(text),
            (Value::List(items), Self::Cidrs | Self::NodePorts) => {
                let texts: Option<Vec<&str>> = items.iter().map(Node::text).collect();
                let texts = texts.ok_or("expected a list of texts")?;
                self.read_all(texts.into_iter())
            }
            (_, Self::NodePorts) => Err("expected a list: primary, or prefixes".to_owned()),
            (Value::Map(switches), Self::Switches) => {
                let said = switches.iter().map(|(name, is_on)| {
                    let is_on = is_on.text().and_then(boolean);
                    let is_on =
                        is_on.ok_or_else(|| format!("{}: expected true or false", name.text))?;
                    Ok(format!("{}={is_on}", name.text))
                });
                said.collect()
            }
            (_, Self::Switches) => Err("expected a map of names to true or false".to_owned()),
            (Value::Text(text), _) => self.read_one(text).map(|text| vec![text]),
            (Value::List(_) | Value::Map(_), _) => Err(format!("expected {}", self.expected())),
        }
    }

    /// Reads what a flag was given, which may be given again: the last time counts, and lists are joined.
    pub(super) fn read_flag(self, values: &[String]) -> Result<Vec<String>, String> {
        let last = values.last().map_or("", |last| last);
        match self {
            Self::Cidrs | Self::NodePorts => self.read_list(&values.join(",")),
            Self::Switches => {
                let pairs = values.iter().flat_map(|pairs| pairs.split(','));
                let pairs = pairs.map(str::trim).filter(|pair| !pair.is_empty());
                let read = pairs.map(|pair| match pair.split_once('=') {
                    Some((name, is_on)) if boolean(is_on).is_some() => Ok(name.to_owned()),
                    _ => Err(format!("{pair:?}: expected NAME=true or NAME=false")),
                });
                read.collect()
            }
            Self::Anything => Ok(vec![last.to_owned()]),
            _ => self.read_one(last).map(|text| vec![text]),
        }
    }

    /// A list between commas.
    fn read_list(self, text: &str) -> Result<Vec<String>, String> {
        let parts = text.split(',').map(str::trim);
        self.read_all(parts.filter(|part| !part.is_empty()))
    }

    fn read_all<'a>(self, texts: impl Iterator<Item = &'a str>) -> Result<Vec<String>, String> {
        let texts: Vec<&str> = texts.collect();
        if self == Self::NodePorts && texts == ["primary"] {
            return Ok(vec!["primary".to_owned()]);
        }
        let read = texts.iter().map(|text| match parse_cidr(text) {
            Some(cidr) => Ok(cidr.to_string()),
            None => Err(format!("{text:?}: expected {}", self.expected())),
        });
        read.collect()
    }

    /// A scalar, as a flag takes it.
    pub(super) fn read_one(self, text: &str) -> Result<String, String> {
        let read = match self {
            Self::Bool => boolean(text).map(|is_on| is_on.to_string()),
            Self::Integer(least, most) => {
                let number = text.parse::<i64>().ok();
                let number = number.filter(|number| (least..=most).contains(number));
                number.map(|number| number.to_string())
            }
            Self::Number => text
                .parse::<f64>()
                .ok()
                .filter(|number| number.is_finite())
                .map(|number| number.to_string()),
            Self::Time => time(text).map(|time| humantime::format_duration(time).to_string()),
            Self::OneOf(words) => words.contains(&text).then(|| text.to_owned()),
            Self::Address if text.is_empty() => Some(String::new()),
            Self::Address => parse_address(text).map(|address| address.to_string()),
            Self::Bind(_) if text.is_empty() => Some(String::new()),
            Self::Bind(port) => bind(text, port).map(|address| address.to_string()),
            Self::Text | Self::Cidrs | Self::NodePorts | Self::Switches | Self::Anything => {
                Some(text.to_owned())
            }
        };
        read.ok_or_else(|| format!("{text:?}: expected {}", self.expected()))
    }

    fn expected(self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Integer(least, most) => format!("an integer from {least} to {most}"),
            Self::Number => "a number".to_owned(),
            Self::Time => "a time such as 30s, 1m30s or 500ms, not below 0".to_owned(),
            Self::OneOf(words) => {
                let words: Vec<_> = words.iter().filter(|word| !word.is_empty()).collect();
                let words: Vec<&str> = words.into_iter().copied().collect();
                format!("one of {}", words.join(", "))
            }
            Self::Address => "an IP address".to_owned(),
            Self::Bind(_) => "ADDR:PORT, as 127.0.0.1:10249 or [::1]:10249".to_owned(),
            Self::Cidrs => "a prefix, as 10.244.0.0/16".to_owned(),
            Self::NodePorts => {
                "a prefix, as 192.0.2.0/24, or the word primary and nothing else".to_owned()
            }
            Self::Text | Self::Switches | Self::Anything => "text".to_owned(),
        }
    }
}

impl Node {
    /// A scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// As YAML 1.1 has them, which Kubernetes reads.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

/// An address and a port, which is this one where the text has none.
pub(crate) fn bind(text: &str, port: u16) -> Option<SocketAddr> {
    let alone = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    if let Some(address) = parse_address(alone.unwrap_or(text)) {
        return Some(SocketAddr::new(address, port));
    }
    let (host, port) = text.rsplit_once(':')?;
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let address = match inner {
        Some(inner) => inner.parse().ok()?,
        None if host.contains(':') => return None,
        None => parse_address(host)?,
    };
    Some(SocketAddr::new(address, port.parse().ok()?))
}

/// A time as Go reads one, not below 0; an integer alone is nanoseconds.
fn time(text: &str) -> Option<Duration> {
    if let Ok(nanos) = text.parse::<u64>() {
        return Some(Duration::from_nanos(nanos));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = rest.split_at(end.unwrap_or(rest.len()));
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = after;
    }
    // Whole microseconds: sums of fractions are not exact.
    let micros = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Duration::from_micros(
        u64::try_from((micros + Duration::from_nanos(500)).as_micros()).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, millis) in [
            ("15m0s", 900_000),
            ("24h0m0s", 86_400_000),
            ("1h0m0.5s", 3_600_500),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("0s", 0),
            ("0", 0),
            ("30000000000", 30_000),
        ] {
            assert_eq!(time(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "1d",
            "-1s",
            "1s2",
            "soon",
            ".s",
            "99999999999999999999h",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn a_bind_address_may_leave_out_its_port() {
        for (text, expected) in [
            ("0.0.0.0", "0.0.0.0:10249"),
            ("::", "[::]:10249"),
            ("[::1]", "[::1]:10249"),
            ("[::1]:9", "[::1]:9"),
            ("127.0.0.1:9", "127.0.0.1:9"),
            ("127.000.0.01:9", "127.0.0.1:9"),
        ] {
            let address = bind(text, 10249).map(|address| address.to_string());
            assert_eq!(address.as_deref(), Some(expected), "{text}");
        }
        for text in [
            "10249",
            ":10249",
            "localhost:10249",
            "127.0.0.1:",
            "127.0.0.1:x",
            "::1:1:x",
        ] {
            assert_eq!(bind(text, 10249), None, "{text}");
        }
    }
}
