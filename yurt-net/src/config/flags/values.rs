//! Words of the command line that several verbs have.

use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;

use crate::model::Protocol;

/// Form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: the contract.
    Json,
}

/// A Service, `namespace/name`, or one of its ports, `namespace/name:port`.
pub(super) fn service_name(text: &str) -> Result<String, &'static str> {
    match text.split('/').filter(|part| !part.is_empty()).count() {
        2 => Ok(text.to_owned()),
        _ => Err("expected a Service as NAMESPACE/NAME"),
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One object a line.
    Json,
}

/// Address, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Address and port.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

impl std::str::FromStr for Destination {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "expected ADDR:PORT/PROTO, as 10.96.0.10:80/TCP or [fd00::10]:53/UDP";
        let (address, protocol) = text.rsplit_once('/').ok_or(EXPECTED)?;
        let address = address.parse().ok().ok_or(EXPECTED)?;
        let protocol = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return Err(EXPECTED),
        };
        Ok(Self { address, protocol })
    }
}

/// A number alone is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: expected a time such as 30s, 1m, 1m30s or 500ms"))
}
