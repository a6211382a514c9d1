//! Standard output: what the verbs print, whatever has become of whoever reads it.

use std::fmt::Display;
use std::io::{self, Write as _};

use crate::text;

/// Writes a text whole. A reader that has gone away, as `head -1` does, has what it wanted; any other failure is one.
///
/// `println!` panics in both cases.
pub fn print(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("write to standard output: {error}"),
        )),
        Ok(()) => Ok(()),
    }
}

/// The last word of a program, without what others may have put into it to hide or forge lines. Nobody can be told where it cannot be
/// written.
pub fn complain(said: impl Display) {
    let _none = writeln!(io::stderr().lock(), "{}", text::lines(&said.to_string()));
}
