//! Standard output and standard error: the output of verbs, and the log, whatever has happened to its reader.
#![expect(unsafe_code, reason = "poll(2), which the standard library lacks")]

mod limited;

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

pub use self::limited::LimitedLog;
use crate::text::{self, LogStyle};

/// Writes a text completely. A reader that has gone away, as `head -1` does, has what it wanted; any other failure is
/// an error.
///
/// `println!` panics in both cases.
pub fn print(text: impl Display) -> io::Result<()> {
    is_printed(text).map(|_| ())
}

/// The same of a text that others may follow: false if the reader has gone away.
pub fn is_printed(text: impl Display) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("write to standard output: {error}"),
        )),
        Ok(()) => Ok(true),
    }
}

/// Whether the reader of standard output has gone away: a text that is printed later would tell, but there may be none.
pub fn reader_is_gone() -> bool {
    let mut out = libc::pollfd {
        fd: libc::STDOUT_FILENO,
        events: 0,
        revents: 0,
    };
    // SAFETY: one valid entry; it does not wait.
    let told = unsafe { libc::poll(&raw mut out, 1, 0) };
    told > 0 && out.revents & libc::POLLERR != 0
}

/// The last message of a program, without characters by which others could hide or forge lines in it. If it cannot be
/// written, nobody can be told.
pub fn complain(said: impl Display) {
    let line = format!("{}\n", text::lines(&said.to_string()));
    let _none = LossyLog::new(standard_error(), LogStyle::Text).write_all(line.as_bytes());
}

/// How often, and how long each time, a slow reader is waited for.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);

/// Standard error, made so that a write fails where it would block. The log of a container goes into a pipe that stays
/// open while the runtime that reads it is stopped or hangs, and that of a shell to a terminal behind a link that may
/// be down: an agent that waited for either would stop with it.
pub fn standard_error() -> Box<dyn Write + Send> {
    let path = "/proc/self/fd/2";
    let Ok(metadata) = fs::metadata(path) else {
        return Box::new(io::stderr());
    };
    let kind = metadata.file_type();
    // A write to a file never fails just because there is no room at the moment.
    if (kind.is_fifo() || kind.is_char_device())
        && let Ok(own) = open_again(path)
    {
        return Box::new(own);
    }
    if kind.is_socket() {
        // A socket of the journal, which cannot be opened again: this is the least that can be done.
        let socket = io::stderr().as_fd().try_clone_to_owned();
        if let Ok(socket) = socket.map(UnixStream::from)
            && socket
                .set_write_timeout(Some(Duration::from_millis(1)))
                .is_ok()
        {
            return Box::new(socket);
        }
    }
    Box::new(io::stderr())
}

/// Opens the same thing again, without blocking writes. Setting the flag on the present descriptor would change it for
/// every process that shares it. A terminal does not become the agent's own, whose Ctrl-C would end it.
fn open_again(path: &str) -> io::Result<File> {
    File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// Lines on their way to a destination that may be full. A line that finds no room within a moment is dropped; the
/// number of dropped lines is written as soon as there is room again.
pub struct LossyLog<W> {
    to: W,
    style: LogStyle,
    /// The rest of a line whose beginning was written.
    rest: Vec<u8>,
    lost: u64,
}

impl<W: Write> LossyLog<W> {
    /// A log that writes to this destination, in this style.
    pub fn new(to: W, style: LogStyle) -> Self {
        Self {
            to,
            style,
            rest: Vec::new(),
            lost: 0,
        }
    }

    /// Writes the rest of the line before.
    fn write_rest(&mut self) -> io::Result<()> {
        // A reader that did not read a moment ago is not waited for again.
        let mut tries = if self.lost == 0 { TRIES } else { 0 };
        while !self.rest.is_empty() {
            match self.to.write(&self.rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.rest.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries > 0 => {
                    tries -= 1;
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        self.write_rest()?;
        self.rest.extend_from_slice(line);
        let result = self.write_rest();
        // The rest of a line that was begun follows later; a line that was not begun is lost.
        if self.rest.len() == line.len() {
            self.rest.clear();
            return result;
        }
        Ok(())
    }

    fn say_lost(&mut self) -> io::Result<()> {
        let lost = self.lost;
        let said = "lines of the log were dropped, because they were not read";
        let line = match self.style {
            LogStyle::Text => format!(" WARN {said} lines={lost}\n"),
            LogStyle::Json => {
                format!("{{\"level\":\"WARN\",\"message\":\"{said}\",\"lines\":{lost}}}\n")
            }
        };
        self.write_line(line.as_bytes())
    }
}

impl<W: Write> Write for LossyLog<W> {
    /// Takes a line; fails if it is lost.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let said = match self.lost {
            0 => Ok(()),
            _ => self.say_lost(),
        };
        if said.is_ok() {
            self.lost = 0;
        }
        match said.and_then(|()| self.write_line(line)) {
            Ok(()) => Ok(line.len()),
            Err(error) => {
                self.lost += 1;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
#[expect(
    unsafe_code,
    reason = "a terminal of its own, which the standard library lacks"
)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::{AsRawFd as _, FromRawFd as _};

    use super::*;

    /// A pipe whose writer does not block, as [`standard_error`] opens it.
    fn pipe() -> (io::PipeReader, File) {
        let (reader, writer) = io::pipe().unwrap();
        let own = open_again(&format!("/proc/self/fd/{}", writer.as_raw_fd()));
        (reader, own.unwrap())
    }

    #[test]
    fn a_log_that_nobody_reads_drops_lines_and_counts_them_and_keeps_no_half_ones() {
        for style in [LogStyle::Text, LogStyle::Json] {
            let (mut reader, writer) = pipe();
            let mut log = LossyLog::new(writer, style);
            // Longer than a pipe takes at once, so that some lines are written in parts.
            let line = |n: usize| format!("{n} {}\n", "x".repeat(9_999));
            let kept = (0..1000).filter(|&n| log.write_all(line(n).as_bytes()).is_ok());
            let kept = kept.count();
            assert!((1..100).contains(&kept), "{kept}");
            let mut first = vec![0; 1 << 20];
            let read = reader.read(&mut first).unwrap();
            first.truncate(read);
            log.write_all(b"after\n").unwrap();
            drop(log);
            let mut second = Vec::new();
            reader.read_to_end(&mut second).unwrap();
            let all = String::from_utf8([first, second].concat()).unwrap();
            let all: Vec<&str> = all.split_terminator('\n').collect();
            assert_eq!(all.len(), kept + 2);
            for (n, kept) in all[..kept].iter().enumerate() {
                assert_eq!(format!("{kept}\n"), line(n));
            }
            let told = all[kept];
            assert!(told.contains(&(1000 - kept).to_string()), "{told}");
            let is_json = serde_json::from_str::<serde_json::Value>(told).is_ok();
            assert_eq!(is_json, style == LogStyle::Json, "{told}");
            assert_eq!(all[kept + 1], "after");
        }
    }

    #[test]
    fn a_log_to_a_terminal_that_nobody_reads_drops_lines_and_counts_them() {
        // SAFETY: no pointer; the descriptor is owned right after.
        let terminal = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) };
        assert!(terminal >= 0);
        // SAFETY: it is open, and nobody else's.
        let mut terminal = unsafe { File::from_raw_fd(terminal) };
        // SAFETY: it is open, and of a terminal.
        assert_eq!(unsafe { libc::unlockpt(terminal.as_raw_fd()) }, 0);
        let mut number = 0u32;
        // SAFETY: the kernel writes a number there.
        let numbered = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGPTN, &mut number) };
        assert_eq!(numbered, 0);
        let shown = File::options()
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(format!("/dev/pts/{number}"))
            .unwrap();
        let own = open_again(&format!("/proc/self/fd/{}", shown.as_raw_fd())).unwrap();
        let mut log = LossyLog::new(own, LogStyle::Text);
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let lost = (0..1000).filter(|_| log.write_all(&line).is_err()).count();
        assert!(lost > 0);
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            let mut piece = [0; 4096];
            // The other end is closed, which the reader of a terminal gets as an error.
            while let Ok(read @ 1..) = terminal.read(&mut piece) {
                all.extend_from_slice(&piece[..read]);
            }
            all
        });
        while log.write_all(b"after\n").is_err() {}
        drop((log, shown));
        let all = String::from_utf8(reading.join().unwrap()).unwrap();
        assert!(all.contains("lines of the log were dropped"), "{all}");
        assert!(all.ends_with("after\r\n"));
    }

    #[test]
    fn a_log_whose_reader_is_only_slow_loses_nothing() {
        let (mut reader, writer) = pipe();
        let mut log = LossyLog::new(writer, LogStyle::Text);
        // The pipe is full, and is read while a line waits.
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..64 {
            log.write_all(&line).unwrap();
        }
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all.len())
        });
        // On a machine that delays the reader for longer than a moment, a line may be lost.
        while log.write_all(&line).is_err() {}
        drop(log);
        assert!(reading.join().unwrap().unwrap() >= 65 << 10);
    }
}
