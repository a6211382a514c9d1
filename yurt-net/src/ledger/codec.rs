//! The bytes of a ledger. Pure.
//!
//! ```text
//! 5d0c1c5e 7 {"yurt-net":"ledger","version":1,"records":2}
//! 8f7bdaa1 7 {"boot":{"id":"5f0c...","up":31000,"at":900000}}
//! 05b2a6f2 7 {"put":{"key":{"namespace":"shop","name":"web-0","interface":"eth0"},"entry":{"addresses":["10.1.0.7"],...}}}
//! 96b1c4d0 8 {"remove":{"namespace":"shop","name":"web-1","interface":"eth0"}}
//! ```
//!
//! Lines of text, for people and for `grep`: a CRC-32 in hexadecimal of all that follows the space, the number of the
//! change, and JSON. The header says how many records follow it that make up the whole state as of its number. Then
//! come the changes, each numbered one higher than the one before.
//!
//! A line counts by itself. A damaged line loses only its own record; the numbers show that something is missing. An
//! unfinished append can only be at the end, and was never confirmed.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::{Ledger, Record};

/// Raised when an older version would misread what is written; not for new fields that it may ignore.
pub(super) const VERSION: u32 = 1;

/// A fault of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Not a ledger at all.
    Foreign,
    /// Of another version.
    Version(u32),
    /// Its last append is unfinished, which does no harm.
    Torn,
    /// It is longer than what was read.
    TooLong,
    /// Records are missing, or are not what was written.
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "yurt-net")]
    what: String,
    version: u32,
    records: u64,
}

/// The contents of a file.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// The state.
    pub(super) ledger: Ledger,
    /// Number of the last change.
    pub(super) sequence: u64,
    /// Bytes of the whole state at the beginning.
    pub(super) base: u64,
    /// Bytes.
    pub(super) length: u64,
    /// The reason why the file may have had more to say.
    pub(super) flaw: Option<Flaw>,
}

/// A file that holds just this state.
pub(super) fn whole(ledger: &Ledger, sequence: u64) -> serde_json::Result<Vec<u8>> {
    let records = ledger.records();
    let header = Header {
        what: "ledger".to_owned(),
        version: VERSION,
        records: records.len().try_into().unwrap_or(u64::MAX),
    };
    let mut out = String::new();
    line(&mut out, sequence, &header)?;
    records
        .iter()
        .try_for_each(|record| line(&mut out, sequence, record))?;
    Ok(out.into_bytes())
}

/// The lines of changes that follow change `sequence`.
pub(super) fn changes(sequence: u64, records: &[Record]) -> serde_json::Result<Vec<u8>> {
    let mut out = String::new();
    for (n, record) in (sequence + 1..).zip(records) {
        line(&mut out, n, record)?;
    }
    Ok(out.into_bytes())
}

fn line(out: &mut String, n: u64, what: &impl Serialize) -> serde_json::Result<()> {
    let text = format!("{n} {}", serde_json::to_string(what)?);
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{:08x} {text}", crc32fast::hash(text.as_bytes()));
    Ok(())
}

/// The number and the JSON of a line whose checksum is right.
fn checked(line: &[u8]) -> Option<(u64, &str)> {
    let (crc, text) = str::from_utf8(line)
        .ok()?
        .strip_suffix('\n')?
        .split_once(' ')?;
    if u32::from_str_radix(crc, 16) != Ok(crc32fast::hash(text.as_bytes())) {
        return None;
    }
    let (n, json) = text.split_once(' ')?;
    Some((n.parse().ok()?, json))
}

/// Reads a file as far as possible. An empty file is one whose first write is unfinished.
pub(super) fn replay(bytes: &[u8]) -> Replayed {
    let mut replayed = Replayed {
        length: bytes.len().try_into().unwrap_or(u64::MAX),
        ..Replayed::default()
    };
    // The number of records of the whole state that are still missing.
    let mut due = None;
    let (mut is_gapless, mut is_torn, mut read) = (true, bytes.is_empty(), 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        read += line.len();
        let Some((n, json)) = checked(line) else {
            // It is the end of an append, unless a good line follows.
            is_torn = true;
            continue;
        };
        if due.is_none()
            && let Ok(header) = serde_json::from_str::<Header>(json)
        {
            if header.version != VERSION {
                replayed.flaw = Some(Flaw::Version(header.version));
                return replayed;
            }
            is_gapless &= !is_torn;
            is_torn = false;
            replayed.sequence = n;
            due = Some(header.records);
            if header.records == 0 {
                replayed.base = read.try_into().unwrap_or(u64::MAX);
            }
            continue;
        }
        is_gapless &= !is_torn;
        is_torn = false;
        let Ok(record) = serde_json::from_str(json) else {
            is_gapless = false;
            continue;
        };
        match due.as_mut() {
            Some(due) if *due > 0 && n == replayed.sequence => {
                *due -= 1;
                if *due == 0 {
                    replayed.base = read.try_into().unwrap_or(u64::MAX);
                }
            }
            // An older file at this place on the disk left these; a power cut can show them.
            _ if n < replayed.sequence => {
                is_gapless = false;
                continue;
            }
            due => {
                is_gapless &= due.is_some_and(|due| *due == 0) && n == replayed.sequence + 1;
                replayed.sequence = n;
            }
        }
        if let (false, Record::Put { key, entry }) = (is_gapless, &record) {
            // A missing record may be the one that freed these addresses.
            let owned: Vec<_> = entry.owned().collect();
            replayed.ledger.dispossess(key, &owned);
        }
        replayed.ledger.apply(record);
    }
    replayed.flaw = match due {
        None if replayed.sequence == 0 => {
            // The file has its length, but was never written.
            let is_blank = bytes.iter().all(|&byte| byte == 0);
            Some(if is_blank { Flaw::Torn } else { Flaw::Foreign })
        }
        Some(0) if is_gapless => is_torn.then_some(Flaw::Torn),
        Some(_) | None => Some(Flaw::Damaged),
    };
    replayed
}
