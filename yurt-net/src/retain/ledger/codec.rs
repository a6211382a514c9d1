//! The bytes of a ledger. Pure.
//!
//! ```text
//! 5d0c1c5e {"yurt-net":"ledger","version":1,"n":7,"records":2}
//! 8f7bdaa1 {"n":7,"boot":{"id":"5f0c...","up":31,"at":900}}
//! 05b2a6f2 {"n":7,"put":{"namespace":"shop","name":"web-0","interface":"eth0","addresses":["10.1.0.7"],...}}
//! 96b1c4d0 {"n":8,"remove":{"namespace":"shop","name":"web-1","interface":"eth0"}}
//! ```
//!
//! Lines of text, for people and for `grep`: a CRC-32 in hexadecimal, a blank, and JSON. The header is followed by so many records
//! that are the whole state as of change `n`; then come the changes, each with a number one higher than the one before.
//!
//! A line counts by itself. One that is damaged costs its own record and no other; the numbers tell that something is missing. What an append
//! left unfinished is at the end only, and was never confirmed to anybody.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::{Ledger, Record};

/// To be raised when an older version would misread what is written. New fields that it may ignore need none.
pub(super) const VERSION: u32 = 1;

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Not a ledger at all.
    Foreign,
    /// Of another version.
    Version(u32),
    /// Its last append is unfinished: no harm is done.
    Torn,
    /// Records are missing, or are not what was written.
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "yurt-net")]
    what: String,
    version: u32,
    n: u64,
    records: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    n: u64,
    #[serde(flatten)]
    record: Record,
}

/// What a file says.
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
    /// Why there may be more to know.
    pub(super) flaw: Option<Flaw>,
}

/// A file that says just this.
pub(super) fn whole(ledger: &Ledger, sequence: u64) -> serde_json::Result<Vec<u8>> {
    let records = ledger.records();
    let header = Header {
        what: "ledger".to_owned(),
        version: VERSION,
        n: sequence,
        records: records.len().try_into().unwrap_or(u64::MAX),
    };
    let mut out = line(&serde_json::to_string(&header)?);
    for record in records {
        out += &line(&serde_json::to_string(&Line {
            n: sequence,
            record,
        })?);
    }
    Ok(out.into_bytes())
}

/// Changes that come after the one of number `sequence`.
pub(super) fn changes(sequence: u64, records: &[Record]) -> serde_json::Result<Vec<u8>> {
    let mut out = String::new();
    for (n, record) in (sequence + 1..).zip(records) {
        let record = record.clone();
        out += &line(&serde_json::to_string(&Line { n, record })?);
    }
    Ok(out.into_bytes())
}

fn line(json: &str) -> String {
    let mut line = String::with_capacity(json.len() + 10);
    // Writing to a string cannot fail.
    let _ = writeln!(line, "{:08x} {json}", crc32fast::hash(json.as_bytes()));
    line
}

/// The JSON of a line that is what was written.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (crc, rest) = line.split_at_checked(8)?;
    let crc = u32::from_str_radix(str::from_utf8(crc).ok()?, 16).ok()?;
    let json = rest.strip_prefix(b" ")?;
    (crc32fast::hash(json) == crc).then_some(json)
}

/// Reads a file as far as it can be read. An empty one is an unfinished one.
pub(super) fn replay(bytes: &[u8]) -> Replayed {
    let mut replayed = Replayed {
        length: bytes.len().try_into().unwrap_or(u64::MAX),
        ..Replayed::default()
    };
    // Records of the whole state that are still to come.
    let mut due = None;
    let (mut is_gapless, mut is_torn, mut read) = (true, bytes.is_empty(), 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        read += line.len();
        let json = line.strip_suffix(b"\n").and_then(checked);
        let Some(json) = json else {
            // Unless something good follows, it is the end of an append.
            is_torn = true;
            continue;
        };
        if due.is_none()
            && let Ok(header) = serde_json::from_slice::<Header>(json)
        {
            if header.version != VERSION {
                replayed.flaw = Some(Flaw::Version(header.version));
                return replayed;
            }
            is_gapless &= !is_torn;
            is_torn = false;
            replayed.sequence = header.n;
            due = Some(header.records);
            if header.records == 0 {
                replayed.base = read.try_into().unwrap_or(u64::MAX);
            }
            continue;
        }
        is_gapless &= !is_torn;
        is_torn = false;
        let Ok(Line { n, record }) = serde_json::from_slice::<Line>(json) else {
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
            // What an older file of that place has left, as a disk may show after a power cut.
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
            // What is missing may be how it came to be free.
            replayed.ledger.dispossess(key, &entry.addresses);
        }
        replayed.ledger.apply(record);
    }
    replayed.flaw = match due {
        None if replayed.sequence == 0 => {
            // A file that was never written, but has its length.
            let is_blank = bytes.iter().all(|&byte| byte == 0);
            Some(if is_blank { Flaw::Torn } else { Flaw::Foreign })
        }
        Some(0) if is_gapless => is_torn.then_some(Flaw::Torn),
        Some(_) | None => Some(Flaw::Damaged),
    };
    replayed
}
