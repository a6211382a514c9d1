//! Names of the error numbers that sockets return.

use std::io;

macro_rules! names {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name)),)*] };
}

const NAMES: &[(i32, &str)] = names!(
    EPERM EINTR EIO EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EINVAL EMFILE EPIPE
    ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE EPROTONOSUPPORT EOPNOTSUPP EAFNOSUPPORT
    EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS
    EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS
);

/// The name of an error: that of its number; `TIMEOUT` if our own time limit ended the call; otherwise a word for its
/// kind.
pub fn name(error: &io::Error) -> String {
    match error.raw_os_error() {
        // The time limit SO_RCVTIMEO ended a read.
        Some(libc::EAGAIN) => "TIMEOUT".to_owned(),
        Some(number) => NAMES
            .iter()
            .find(|(n, _)| *n == number)
            .map_or_else(|| format!("E{number}"), |(_, name)| (*name).to_owned()),
        None if error.kind() == io::ErrorKind::TimedOut => "TIMEOUT".to_owned(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => format!("{:?}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_called_by_their_number_and_time_outs_by_ours() {
        let named = |n| name(&io::Error::from_raw_os_error(n));
        assert_eq!(named(libc::ECONNREFUSED), "ECONNREFUSED");
        assert_eq!(named(libc::EPERM), "EPERM");
        assert_eq!(named(libc::EHOSTUNREACH), "EHOSTUNREACH");
        assert_eq!(named(libc::EAGAIN), "TIMEOUT");
        assert_eq!(named(libc::ETIMEDOUT), "ETIMEDOUT");
        assert_eq!(named(4000), "E4000");
        assert_eq!(name(&io::ErrorKind::UnexpectedEof.into()), "EOF");
    }
}
