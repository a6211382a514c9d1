//! Answers of the kernel's socket diagnosis, and what programs stored with sockets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yurt_ebpf::abi::{TcpPeer, UdpPeer, UdpPeers, mapped};
use yurt_net::dataplane::netlink::{NLMSG_DONE, message, read};
use yurt_net::dataplane::service::sockets::message::{AF_INET, Socket, parse};

const SEQUENCE: u32 = 7;
const FOUND: u16 = 20;

fuzz_target!(|data: &[u8]| {
    let (whole, _) = take(data);
    let cut = data
        .first()
        .map_or(0, |at| usize::from(*at) * data.len() / 256);
    let (before, is_over) = take(&data[..cut]);
    assert!(
        whole.starts_with(&before),
        "a piece that is cut holds another socket"
    );
    assert!(!is_over || before == whole);
    if let Some(body) = data.first_chunk::<72>() {
        is_found(body);
        is_its_own(body);
    }
});

/// The sockets of a piece, and whether the answer ends in it.
fn take(piece: &[u8]) -> (Vec<Socket>, bool) {
    let mut sockets = Vec::new();
    let is_over = read(piece, SEQUENCE, |body| sockets.extend(parse(body))).unwrap_or_default();
    (sockets, is_over)
}

/// A socket between others' is found with its numbers.
fn is_found(body: &[u8; 72]) {
    let found = message((FOUND, 2, SEQUENCE), body);
    let others = message((FOUND, 2, SEQUENCE + 1), body);
    let done = message((NLMSG_DONE, 2, SEQUENCE), &[0; 4]);
    let (sockets, is_over) = take(&[&others[..], &found, &done].concat());
    assert!(is_over);
    if !matches!(body[0], 2 | 10) {
        assert_eq!(sockets, []);
        return;
    }
    let peer: [u8; 16] = match body[0] == AF_INET {
        true => mapped([body[24], body[25], body[26], body[27]]),
        false => body[24..40].try_into().expect("16 bytes"),
    };
    let [socket] = &sockets[..] else {
        panic!("{sockets:?}");
    };
    assert_eq!(
        (socket.remote, socket.remote_port_be),
        (peer, [body[6], body[7]])
    );
    assert_eq!(socket.cookie.to_ne_bytes(), body[44..52]);
    assert_eq!(socket.inode.to_ne_bytes(), body[68..72]);
}

/// An entry shows a Service only to the socket that it was written for.
fn is_its_own(body: &[u8; 72]) {
    let word = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().expect("8 bytes"));
    let address = |at: usize| -> [u8; 16] { body[at..at + 16].try_into().expect("16 bytes") };
    let (cookie, vip, peer) = (word(0), address(8), address(24));
    let port_be = [body[40], body[41]];
    let entry = TcpPeer::new(cookie, vip, port_be, peer);
    assert!(entry.is_of(cookie, &peer));
    assert!(!entry.is_of(cookie ^ 1, &peer));
    assert!(
        !TcpPeer::default().is_of(cookie, &peer),
        "an empty entry is nobody's"
    );

    let stored = UdpPeer {
        vip,
        backend: peer,
        vip_port_be: port_be,
        backend_port_be: [body[42], body[43]],
        used: u32::from(body[44]),
        word: word(48),
    };
    let mut peers = UdpPeers {
        clock: stored.used + u32::from(body[45]),
        ..UdpPeers::default()
    };
    peers.peers[usize::from(body[46]) % peers.peers.len()] = stored;
    let is_shown = peers.shown(&peer, stored.backend_port_be);
    assert_eq!(is_shown, (stored.used != 0).then_some((vip, port_be)));
}
