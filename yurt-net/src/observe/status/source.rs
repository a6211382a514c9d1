//! Where the table comes from: the lines of people's `status`.

use std::fmt::{self, Write as _};

use crate::source::checkpoint::Stats;
use crate::source::preferred::{Origin, SourceStatus};

/// Writes where the table comes from, and what of it is on disk.
pub(super) fn write(source: &SourceStatus, checkpoint: &Stats, out: &mut String) -> fmt::Result {
    let SourceStatus {
        source,
        provenance,
        is_fresh,
        age_seconds,
        source_error,
        held_lists,
        received,
        sources: _,
    } = source;
    let what = match provenance {
        Origin::None => "nothing yet".to_owned(),
        Origin::File => "manifests".to_owned(),
        Origin::Live | Origin::Hub => format!("heard from {age_seconds} s ago"),
        Origin::Checkpoint => {
            format!("CHECKPOINT of {age_seconds} s ago; no source is in charge since the start")
        }
    };
    writeln!(out, "source        {source} ({what})")?;
    if !is_fresh {
        writeln!(
            out,
            "              ! stale: it may be older than what this node knows itself"
        )?;
    }
    if let Some(error) = source_error {
        writeln!(
            out,
            "              ! {error}; the last good state is in force"
        )?;
    }
    for held in held_lists {
        writeln!(out, "              ! held back: {held}")?;
    }
    if !received.is_empty() {
        let bytes: u64 = received.values().map(|received| received.bytes).sum();
        let objects: u64 = received.values().map(|received| received.objects).sum();
        writeln!(out, "received      {objects} objects, {bytes} bytes")?;
    }
    let Stats {
        bytes_written,
        writes,
        last_error,
        ..
    } = checkpoint;
    if *writes > 0 {
        writeln!(out, "checkpoint    {writes} writes, {bytes_written} bytes")?;
    }
    if let Some(error) = last_error {
        writeln!(out, "checkpoint    NOT SAVED: {error}")?;
    }
    Ok(())
}
