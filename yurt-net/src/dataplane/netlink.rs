//! Netlink messages: requests, and answers in pieces. Pure.
//!
//! Numbers are in the byte order of the machine.
#![forbid(unsafe_code)]

use std::io;

use netlink_packet_core::{Emitable as _, NetlinkBuffer, NetlinkHeader};
pub use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR};

/// A header and what follows it.
pub fn message((kind, flags, sequence): (u16, u16, u32), body: &[u8]) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    let start = header.buffer_len();
    header.length = u32::try_from(start + body.len()).unwrap_or(u32::MAX);
    header.message_type = kind;
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = vec![0; start];
    header.emit(&mut message);
    message.extend(body);
    message
}

/// Takes one piece of the answer to request `sequence` apart, and hands out the bodies of its messages. True when the
/// answer ends in it; an error is what the kernel says, or what is wrong with the piece.
pub fn read(piece: &[u8], sequence: u32, mut sink: impl FnMut(&[u8])) -> io::Result<bool> {
    let mut rest = piece;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(|_short| cut_off("message"))?;
        let length = message.length() as usize;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        match message.message_type() {
            _ if message.sequence_number() != sequence => {}
            NLMSG_DONE | NLMSG_ERROR => return errno(message.payload()).map(|()| true),
            _ => sink(message.payload()),
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

/// The result in an error message, and in the end of a dump: a negated errno, or 0.
fn errno(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        None => Err(cut_off("result")),
        Some(0..) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
    }
}

fn cut_off(what: &str) -> io::Error {
    io::Error::other(format!("a netlink {what} is cut off"))
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
