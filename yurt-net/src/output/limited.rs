//! Limits how many lines one place of the program may log: a log is on flash, and a device that flaps, a Pod that
//! restarts or a disk that fails would fill it.
//!
//! This is the last limit, for every line. Where somebody outside can cause lines, the code that logs them distributes
//! them first (`agent/lines.rs`), so that one tenant does not take the lines of another.

#![expect(
    clippy::disallowed_types,
    reason = "places have no order; they are only looked up"
)]

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::text::LogStyle;

const MINUTE: Duration = Duration::from_secs(60);
/// Lines of one place in a minute: more than any distribution allows.
const MOST: u64 = 100;
/// The messages of the programs in the kernel are not limited: they are logged only while somebody asks for them.
const UNLIMITED: &str = "ebpf";

/// A log in which no place of the program writes more than this many lines in a minute. Lines that are left out are
/// counted. That is logged at once when it begins, and with the next line of the same place.
pub struct LimitedLog<W> {
    log: Mutex<Limited<W>>,
    style: LogStyle,
}

struct Limited<W> {
    to: W,
    places: HashMap<Identifier, Place>,
}

/// One place of the program that logs lines.
#[derive(Debug, Default)]
struct Place {
    began: Option<Instant>,
    lines: u64,
    left_out: u64,
}

impl Place {
    /// Whether this line is written, and how many were left out, if that has to be logged.
    fn admit(&mut self, now: Instant) -> (bool, Option<u64>) {
        let is_over = |began: Instant| now.saturating_duration_since(began) >= MINUTE;
        let is_new = self.began.is_none_or(is_over);
        if is_new {
            (self.began, self.lines) = (Some(now), 0);
        }
        self.lines += 1;
        let is_admitted = self.lines <= MOST;
        self.left_out += u64::from(!is_admitted);
        let is_to_tell = is_new || self.lines == MOST + 1;
        let told = (is_to_tell && self.left_out > 0).then(|| std::mem::take(&mut self.left_out));
        (is_admitted, told)
    }
}

impl<W: Write> LimitedLog<W> {
    /// Writes to this destination, in this style.
    pub fn new(to: W, style: LogStyle) -> Self {
        let places = HashMap::new();
        Self {
            log: Mutex::new(Limited { to, places }),
            style,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Limited<W>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, left_out: u64, metadata: &Metadata<'_>) -> String {
        let said = "lines of the log were left out: one place writes too many in a minute";
        let file = metadata.file().unwrap_or_else(|| metadata.target());
        let at = format!("{file}:{}", metadata.line().unwrap_or_default());
        match self.style {
            LogStyle::Text => format!(" WARN {said} lines={left_out} at={at}\n"),
            LogStyle::Json => format!(
                "{{\"level\":\"WARN\",\"message\":\"{said}\",\"lines\":{left_out},\"at\":\"{at}\"}}\n"
            ),
        }
    }
}

/// The destination of one line.
pub struct Line<'a, W>(Option<MutexGuard<'a, Limited<W>>>);

impl<W: Write> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Some(log) => log.to.write(line),
            None => Ok(line.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |log| log.to.flush())
    }
}

impl<'a, W: Write + 'a> MakeWriter<'a> for LimitedLog<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(Some(self.lock()))
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        let mut log = self.lock();
        // Finer levels are logged only on request.
        if *metadata.level() > Level::INFO || metadata.target() == UNLIMITED {
            return Line(Some(log));
        }
        let place = log.places.entry(metadata.callsite()).or_default();
        let (is_admitted, left_out) = place.admit(Instant::now());
        if let Some(left_out) = left_out {
            // It is lost if the log is.
            let _ = log.to.write_all(self.note(left_out, metadata).as_bytes());
        }
        Line(is_admitted.then_some(log))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The output for everything that is logged meanwhile.
    fn logged(style: LogStyle, log: impl FnOnce()) -> Vec<String> {
        let buffer = Buffer::default();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(LimitedLog::new(buffer.clone(), style));
        let subscriber: Box<dyn tracing::Subscriber + Send + Sync> = match style {
            LogStyle::Json => Box::new(tracing_subscriber::registry().with(layer.json())),
            LogStyle::Text => Box::new(tracing_subscriber::registry().with(layer)),
        };
        tracing::subscriber::with_default(subscriber, log);
        let bytes = buffer.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn no_place_writes_more_than_its_lines_and_all_others_write_theirs() {
        for style in [LogStyle::Text, LogStyle::Json] {
            let lines = logged(style, || {
                for n in 0..5000 {
                    tracing::warn!(n, "the device flaps");
                }
                tracing::info!("something else");
            });
            let of = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
            let flaps = u64::try_from(of("the device flaps")).unwrap();
            assert_eq!((flaps, of("something else")), (MOST, 1), "{style:?}");
            let [note] = lines
                .iter()
                .filter(|line| line.contains("left out"))
                .collect::<Vec<_>>()[..]
            else {
                panic!("{lines:?}");
            };
            assert!(note.contains("limited.rs:"), "{note}");
            let is_json = serde_json::from_str::<serde_json::Value>(note).is_ok();
            assert_eq!(is_json, style == LogStyle::Json, "{note}");
        }
    }

    #[test]
    fn what_somebody_has_asked_for_is_written_whole() {
        let lines = logged(LogStyle::Text, || {
            for n in 0..1000 {
                tracing::info!(target: UNLIMITED, n, "connect");
            }
        });
        assert_eq!(lines.len(), 1000);
    }

    #[test]
    fn what_is_left_out_of_an_hour_of_lines_is_told_once_a_minute_and_none_is_lost_count_of() {
        let (mut place, start) = (Place::default(), Instant::now());
        let (mut written, mut notes, mut told) = (0, 0, 0);
        for n in 0..36_000 {
            let (is_admitted, left_out) = place.admit(start + Duration::from_millis(100) * n);
            written += u64::from(is_admitted);
            notes += u64::from(left_out.is_some());
            told += left_out.unwrap_or_default();
        }
        let rest = place.admit(start + 2 * Duration::from_secs(3600)).1;
        assert_eq!(written, 60 * MOST);
        assert!((60..=120).contains(&notes), "{notes}");
        assert_eq!(written + told + rest.unwrap(), 36_000);
    }
}
