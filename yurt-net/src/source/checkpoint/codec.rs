//! The bytes of a checkpoint. Pure: a writer in, or a reader.
//!
//! ```text
//! header   "YURT-NET"  version u32   crc u32                            little endian; the same in every version
//! frame*   length u32  crc u32       length bytes: size u32, LZ4 block
//! ```
//!
//! A frame unpacks to as many records (postcard) as fill it. `Record::Synced` ends a state and its frame. The first
//! state is a whole snapshot. Each later state holds the changes since the one before; together they are the journal.
//! Both are in one file, so that a journal can never be applied to another snapshot.
//!
//! Each checksum covers *all* bytes of the file before it except other checksums (a CRC over its own value says nothing
//! any more). So a frame counts only behind the very bytes that it was written behind, and reading always gives a state
//! that was saved: the last one before the first flaw.
//!
//! postcard does not describe itself: the shape of `model` and of `Record` is part of the version, and a test fails
//! when it changes. Version 1 has no Pods (`v1`), version 2 no editions and no manifests (`v2`), version 3 no Services
//! that had no room (`v3`), version 4 no creation times of Services (`v4`), version 5 no health check ports (`v5`).
//! Files of these versions are read, but not appended to.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

use crc32fast::Hasher;
use serde::Serialize;

use super::contents::{Provenance, Record, RecordOf};
use super::{v1, v2, v3, v4, v5};
use crate::model::Snapshot;
use crate::source::decode::Names;

/// Raise it with every change to the shape of `model` or `Record`.
pub(super) const VERSION: u32 = 6;
/// The oldest version that is read.
pub(super) const OLDEST: u32 = 1;

const MAGIC: &[u8; 8] = b"YURT-NET";
/// A frame is closed when its records have this many bytes. Reading and writing need about twice as much memory.
const FRAME_BYTES: usize = 64 * 1024;
/// LZ4 cannot unpack a byte to more bytes than this.
const MAX_RATIO: usize = 255;

/// Why a file cannot be read, or not read further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Flaw {
    /// Not a checkpoint at all.
    #[error("is not a checkpoint")]
    Foreign,
    /// Of another version.
    #[error("is of version {0}")]
    Version(u32),
    /// It ends in the middle of a state, whose writing was interrupted.
    #[error("ends unfinished after byte {0}")]
    Torn(u64),
    /// Its bytes are not what was written.
    #[error("is damaged after byte {0}")]
    Damaged(u64),
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[from] io::Error),
}

/// The end of the last state of a file: a writer goes on there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// Bytes of the file up to here.
    pub(super) length: u64,
    /// The checksum of all these bytes except checksums.
    crc: u32,
}

impl End {
    /// The end after these bytes and their checksum.
    fn after(self, bytes: [&[u8]; 2]) -> Self {
        let mut hasher = Hasher::new_with_initial(self.crc);
        let mut length = self.length + 4;
        for part in bytes {
            hasher.update(part);
            length = length.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        }
        Self {
            length,
            crc: hasher.finalize(),
        }
    }
}

/// Writes states.
pub(super) struct Encoder<W> {
    out: W,
    end: End,
    records: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// Begins a file.
    pub(super) fn begin(out: W) -> io::Result<Self> {
        Self::begin_as(VERSION, out)
    }

    /// The same, in the format of another version.
    pub(super) fn begin_as(version: u32, mut out: W) -> io::Result<Self> {
        let version = version.to_le_bytes();
        let end = End::default().after([MAGIC, &version]);
        out.write_all(&[MAGIC.as_slice(), &version, &end.crc.to_le_bytes()].concat())?;
        Ok(Self::resume(out, end))
    }

    /// Goes on behind the last state of a file.
    pub(super) fn resume(out: W, end: End) -> Self {
        Self {
            out,
            end,
            records: Vec::new(),
        }
    }

    /// Adds a record to the state that is being written.
    pub(super) fn record(&mut self, record: &impl Serialize) -> io::Result<()> {
        let records = std::mem::take(&mut self.records);
        self.records = postcard::to_extend(record, records).map_err(io::Error::other)?;
        if self.records.len() >= FRAME_BYTES {
            self.frame()?;
        }
        Ok(())
    }

    /// Ends the state, and hands everything to the writer below.
    pub(super) fn finish(mut self, provenance: &Provenance) -> io::Result<(W, End)> {
        self.record(&Record::Synced(provenance.clone()))?;
        self.end()
    }

    /// Hands everything to the writer below.
    pub(super) fn end(mut self) -> io::Result<(W, End)> {
        if !self.records.is_empty() {
            self.frame()?;
        }
        self.out.flush()?;
        Ok((self.out, self.end))
    }

    fn frame(&mut self) -> io::Result<()> {
        let packed = lz4_flex::block::compress_prepend_size(&self.records);
        self.records.clear();
        let length = u32::try_from(packed.len())
            .map_err(io::Error::other)?
            .to_le_bytes();
        self.end = self.end.after([&length, &packed]);
        self.out.write_all(&length)?;
        self.out.write_all(&self.end.crc.to_le_bytes())?;
        self.out.write_all(&packed)
    }
}

/// The contents of a file.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// The last state before the flaw.
    pub(super) state: Option<(Snapshot, Provenance)>,
    /// Where the first state ends.
    pub(super) base: u64,
    /// The end of the last state.
    pub(super) end: End,
    /// The version of the file.
    pub(super) version: u32,
    /// Why reading ended, if that was before the end of the file.
    pub(super) flaw: Option<Flaw>,
}

/// Reads a file up to its end or its first flaw.
pub(super) fn replay(input: impl Read) -> Replayed {
    let mut decoder = Decoder {
        input,
        names: Names::default(),
        end: End::default(),
        buffer: Vec::new(),
        records: Vec::new(),
        snapshot: Snapshot::default(),
        provenance: Provenance::default(),
        pending: Vec::new(),
        replayed: Replayed::default(),
    };
    let flaw = decoder.run().err();
    let mut replayed = decoder.replayed;
    if replayed.base > 0 {
        replayed.state = Some((decoder.snapshot, decoder.provenance));
    }
    replayed.flaw = flaw;
    replayed
}

struct Decoder<R> {
    input: R,
    names: Names,
    /// The end of the last frame.
    end: End,
    /// The frame, packed and unpacked.
    buffer: Vec<u8>,
    records: Vec<u8>,
    snapshot: Snapshot,
    provenance: Provenance,
    /// Records of a state that has not ended yet; unused for the first state, which counts for nothing before its end.
    pending: Vec<Record>,
    replayed: Replayed,
}

impl<R: Read> Decoder<R> {
    fn run(&mut self) -> Result<(), Flaw> {
        self.header()?;
        while self.frame()? {
            self.records()?;
        }
        // The file ends between two states: nothing is torn.
        if self.end == self.replayed.end && self.replayed.base > 0 {
            return Ok(());
        }
        Err(Flaw::Torn(self.replayed.end.length))
    }

    fn header(&mut self) -> Result<(), Flaw> {
        let torn = Flaw::Torn(0);
        if !self.read(MAGIC.len())? {
            let is_ours = MAGIC.starts_with(&self.buffer);
            return Err(if is_ours { torn } else { Flaw::Foreign });
        }
        if self.buffer != MAGIC {
            // A file whose length was written, but not its bytes.
            let is_blank = self.buffer.iter().all(|&byte| byte == 0);
            return Err(if is_blank { torn } else { Flaw::Foreign });
        }
        let Some(version) = self.number()? else {
            return Err(torn);
        };
        let end = End::default().after([MAGIC, &version.to_le_bytes()]);
        let Some(crc) = self.number()? else {
            return Err(torn);
        };
        if crc != end.crc {
            return Err(Flaw::Damaged(0));
        }
        self.replayed.version = version;
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(Flaw::Version(version));
        }
        self.end = end;
        Ok(())
    }

    /// Reads and unpacks a frame; false at the end of the file.
    fn frame(&mut self) -> Result<bool, Flaw> {
        let torn = Flaw::Torn(self.replayed.end.length);
        let damaged = Flaw::Damaged(self.replayed.end.length);
        let Some(length) = self.number()? else {
            return if self.buffer.is_empty() {
                Ok(false)
            } else {
                Err(torn)
            };
        };
        if length == 0 {
            // No frame is empty: the length of the file was written, but not its bytes.
            return Err(torn);
        }
        let Some(crc) = self.number()? else {
            return Err(torn);
        };
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if !self.read(size)? {
            return Err(torn);
        }
        let end = self.end.after([&length.to_le_bytes(), &self.buffer]);
        if end.crc != crc {
            return Err(damaged);
        }
        let Ok((unpacked, packed)) = lz4_flex::block::uncompressed_size(&self.buffer) else {
            return Err(damaged);
        };
        if unpacked > packed.len().saturating_mul(MAX_RATIO) {
            return Err(damaged);
        }
        self.records.resize(unpacked, 0);
        match lz4_flex::block::decompress_into(packed, &mut self.records) {
            Ok(size) if size == unpacked => {}
            Ok(_) | Err(_) => return Err(damaged),
        }
        self.end = end;
        Ok(true)
    }

    fn records(&mut self) -> Result<(), Flaw> {
        let kept = self.replayed.end.length;
        let damaged = || Flaw::Damaged(kept);
        let mut rest = self.records.as_slice();
        while !rest.is_empty() {
            let taken = match self.replayed.version {
                OLDEST => postcard::take_from_bytes::<v1::Record>(rest)
                    .map(|(record, after)| (Record::from(record), after)),
                2 => postcard::take_from_bytes::<RecordOf<v2::Provenance, v4::Service>>(rest)
                    .map(|(record, after)| (record.converted(), after)),
                3 => postcard::take_from_bytes::<RecordOf<v3::Provenance, v4::Service>>(rest)
                    .map(|(record, after)| (record.converted(), after)),
                4 => postcard::take_from_bytes::<RecordOf<Provenance, v4::Service>>(rest)
                    .map(|(record, after)| (record.converted(), after)),
                5 => postcard::take_from_bytes::<RecordOf<Provenance, v5::Service>>(rest)
                    .map(|(record, after)| (record.converted(), after)),
                _ => postcard::take_from_bytes::<Record>(rest),
            };
            let Ok((mut record, after)) = taken else {
                return Err(damaged());
            };
            rest = after;
            record.share(&mut self.names);
            let is_end = matches!(record, Record::Synced(_));
            if is_end && !rest.is_empty() {
                return Err(damaged());
            }
            if self.replayed.base > 0 {
                self.pending.push(record);
            } else {
                record.apply(&mut self.snapshot, &mut self.provenance);
            }
            if is_end {
                for record in self.pending.drain(..) {
                    record.apply(&mut self.snapshot, &mut self.provenance);
                }
                self.replayed.end = self.end;
                if self.replayed.base == 0 {
                    self.replayed.base = self.end.length;
                }
            }
        }
        Ok(())
    }

    /// Four bytes; `None` when there are fewer.
    fn number(&mut self) -> io::Result<Option<u32>> {
        self.read(4)?;
        let bytes: Option<[u8; 4]> = self.buffer.as_slice().try_into().ok();
        Ok(bytes.map(u32::from_le_bytes))
    }

    /// Fills the buffer with `length` bytes; false if there are fewer. A false length costs no memory, because the
    /// buffer grows only with bytes that are there.
    fn read(&mut self, length: usize) -> io::Result<bool> {
        self.buffer.clear();
        let limit = u64::try_from(length).unwrap_or(u64::MAX);
        let read = self
            .input
            .by_ref()
            .take(limit)
            .read_to_end(&mut self.buffer)?;
        Ok(read == length)
    }
}

#[cfg(test)]
impl<W: Write> Encoder<W> {
    /// A frame with any bytes as its records.
    pub(super) fn raw_frame(mut self, records: &[u8]) -> io::Result<W> {
        self.records = records.to_vec();
        self.frame()?;
        Ok(self.out)
    }
}
