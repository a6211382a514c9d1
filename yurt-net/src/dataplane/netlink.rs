//! Netlink messages, byte by byte.
//!
//! Pure. Wire format: `netlink(7)`, Linux `include/uapi/linux/netlink.h`. Numbers are in the byte order of the machine.
#![forbid(unsafe_code)]

use std::io;

/// The result of a request: a negated errno, or 0.
pub const NLMSG_ERROR: u16 = 2;
/// The end of a dump.
pub const NLMSG_DONE: u16 = 3;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// `struct nlmsghdr` and what follows it.
pub fn message((kind, flags, sequence): (u16, u16, u32), body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    message
}

/// Takes one piece of the answer to request `sequence` apart, and hands out the bodies of its messages. True when the answer ends
/// in it; an error is what the kernel says, or what is wrong with the piece.
pub fn read(piece: &[u8], sequence: u32, mut sink: impl FnMut(&[u8])) -> io::Result<bool> {
    for message in Messages(piece) {
        let (kind, of, body) = message?;
        match kind {
            _ if of != sequence => {}
            NLMSG_DONE | NLMSG_ERROR => return errno(body).map(|()| true),
            _ => sink(body),
        }
    }
    Ok(false)
}

/// Two bytes, as they are in memory.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Four bytes, as they are in memory.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The messages of one piece: type, sequence number, body.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<(u16, u32, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let take = || {
            let length = usize::try_from(u32_at(self.0, 0)?).ok()?;
            let body = self.0.get(HEADER..length)?;
            let rest = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some(((u16_at(self.0, 4)?, u32_at(self.0, 8)?, body), rest))
        };
        let Some((message, rest)) = take() else {
            self.0 = &[];
            return Some(Err(io::Error::other("a netlink message is cut off")));
        };
        self.0 = rest;
        Some(Ok(message))
    }
}

/// The result in an error message, and in the end of a dump: a negated errno, or 0.
fn errno(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        None => Err(io::Error::other("a netlink result is cut off")),
        Some(0..) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(errno: i32) -> Vec<u8> {
        message((NLMSG_ERROR, 0, 3), &errno.to_ne_bytes())
    }

    #[test]
    fn a_piece_that_is_cut_off_anywhere_is_an_error_and_no_other_message() {
        let piece = result(-libc::EOPNOTSUPP);
        let error = read(&piece, 3, |_| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        for length in 1..piece.len() {
            let error = read(&piece[..length], 3, |_| {}).unwrap_err();
            assert_eq!(error.raw_os_error(), None, "{length}");
        }
    }

    #[test]
    fn only_the_answer_to_the_request_itself_counts() {
        let piece = [message((20, 0, 3), &[7; 8]), result(0)].concat();
        for (sequence, bodies, is_over) in [(3, 1, true), (4, 0, false)] {
            let mut seen = 0;
            assert_eq!(read(&piece, sequence, |_| seen += 1).unwrap(), is_over);
            assert_eq!(seen, bodies);
        }
    }
}
