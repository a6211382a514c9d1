//! The socket path: cgroup hooks that choose a backend once for each connection, and never touch a packet.
//!
//! `connect` and `sendmsg` write the backend over the destination. `recvmsg` and `getpeername` write the address that
//! the client dialled over the backend. The kernel holds the socket's lock in all of them. An IPv6 socket that dials
//! an IPv4-mapped address comes through the IPv6 hooks and is served from the IPv4 table.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the context keeps small fields in whole words"
)]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use yurt_ebpf::abi::{
    Backend4, Backend6, Counter, FrontendKey4, FrontendKey6, NETNS_OPT_OUT, NetnsRow,
    OWN_SOCKET_PRIORITY, SCOPE_INTERNAL, SOCKET_LB_ALL, SOCKET_LB_HOST, TcpPeer, UdpPeer, mapped,
};
use yurt_ebpf::frame::ip::{TCP, UDP};
use yurt_ebpf::select::{
    Dialer, Resolved, Tables as _, contains4, contains6, passes4, resolve4, resolve6, stamp,
};

use super::say;
use crate::maps::service::{CONF, COUNT, Maps, NETNS, PEER, REVSK, has_set_retval, peer_mask};

/// What a hook of these types returns for "go on".
const ALLOW: i32 = 1;
/// What it returns for "the call fails", with the value set by `bpf_set_retval`, else with `EPERM`.
const DENY: i32 = 0;

// As the context has them.
const IPPROTO_TCP: u32 = TCP as u32;
const IPPROTO_UDP: u32 = UDP as u32;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

#[cgroup_sock_addr(connect4)]
fn yurt_connect4(ctx: SockAddrContext) -> i32 {
    dial4(&ctx, Call::Connect)
}

#[cgroup_sock_addr(connect6)]
fn yurt_connect6(ctx: SockAddrContext) -> i32 {
    dial6(&ctx, Call::Connect)
}

#[cgroup_sock_addr(sendmsg4)]
fn yurt_sendmsg4(ctx: SockAddrContext) -> i32 {
    dial4(&ctx, Call::Sendmsg)
}

#[cgroup_sock_addr(sendmsg6)]
fn yurt_sendmsg6(ctx: SockAddrContext) -> i32 {
    dial6(&ctx, Call::Sendmsg)
}

#[cgroup_sock_addr(recvmsg4)]
fn yurt_recvmsg4(ctx: SockAddrContext) -> i32 {
    let sock = Sock(&ctx);
    if let Some((vip, port_be)) = sock.udp_shown(&mapped(sock.addr4())) {
        let [.., a, b, c, d] = vip;
        sock.set4([a, b, c, d], port_be);
    }
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
fn yurt_recvmsg6(ctx: SockAddrContext) -> i32 {
    let sock = Sock(&ctx);
    if let Some((vip, port_be)) = sock.udp_shown(&sock.addr6()) {
        sock.set6(&vip, port_be);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
fn yurt_getpeer4(ctx: SockAddrContext) -> i32 {
    let sock = Sock(&ctx);
    if let Some((vip, port_be)) = sock.peer_shown(&mapped(sock.addr4())) {
        let [.., a, b, c, d] = vip;
        sock.set4([a, b, c, d], port_be);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
fn yurt_getpeer6(ctx: SockAddrContext) -> i32 {
    let sock = Sock(&ctx);
    if let Some((vip, port_be)) = sock.peer_shown(&sock.addr6()) {
        sock.set6(&vip, port_be);
    }
    ALLOW
}

/// The two ways to dial: `sendmsg` may be one of many on its socket, so it keeps its backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Connect,
    Sendmsg,
}

#[inline(always)]
fn dial4(ctx: &SockAddrContext, call: Call) -> i32 {
    let sock = Sock(ctx);
    let protocol = sock.protocol();
    if !sock.is_served(protocol) {
        return ALLOW;
    }
    let (addr, mut backend) = (sock.addr4(), Backend4::default());
    // Before the subprogram: its call is a third of what those would pay who dial no Service. (For IPv6 there is no
    // room on the stack.)
    let choice = match passes4(&Maps, addr) {
        true => Choice::Pass,
        false => sock.choose4(u32::from_ne_bytes(addr), protocol, call, &mut backend),
    };
    match choice {
        Choice::Backend => {
            say::forward4(addr, || sock.port_be(), &backend);
            sock.set4(backend.addr, backend.port_be);
            ALLOW
        }
        Choice::Refuse(reason) => {
            say::refused4(addr, || sock.port_be(), reason);
            sock.tell_refused::<false>(reason);
            refuse(reason)
        }
        Choice::Pass => {
            // Not for what a connected socket sends to where it is connected.
            if call == Call::Connect || !sock.is_mapped_peer(addr) {
                sock.dialled_directly(protocol, &mapped(addr));
            }
            ALLOW
        }
    }
}

#[inline(always)]
fn dial6(ctx: &SockAddrContext, call: Call) -> i32 {
    let sock = Sock(ctx);
    let protocol = sock.protocol();
    if !sock.is_served(protocol) {
        return ALLOW;
    }
    let addr = sock.addr6();
    let [head @ .., a, b, c, d] = addr;
    let mut backend = Backend6::default();
    let choice = if head == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
        let (addr, mut backend4) = (u32::from_ne_bytes([a, b, c, d]), Backend4::default());
        let choice = sock.choose4(addr, protocol, call, &mut backend4);
        backend.addr = mapped(backend4.addr);
        backend.port_be = backend4.port_be;
        choice
    } else {
        sock.choose6(&addr, protocol, call, &mut backend)
    };
    match choice {
        Choice::Backend => {
            say::forward6(&addr, || sock.port_be(), &backend);
            sock.set6(&backend.addr, backend.port_be);
            ALLOW
        }
        Choice::Refuse(reason) => {
            say::refused6(&addr, || sock.port_be(), reason);
            sock.tell_refused::<true>(reason);
            refuse(reason)
        }
        Choice::Pass => {
            sock.dialled_directly(protocol, &addr);
            ALLOW
        }
    }
}

/// What is done with a destination. One word, so that a subprogram can return it.
#[derive(Clone, Copy)]
enum Choice {
    Pass,
    Refuse(Counter),
    Backend,
}

const _: () = assert!(size_of::<Choice>() == 4);

/// A backend whose address is in the form of the state maps.
#[inline(always)]
fn backend4(addr: [u8; 16], port_be: [u8; 2]) -> Backend4 {
    let [.., a, b, c, d] = addr;
    Backend4 {
        addr: [a, b, c, d],
        port_be,
        pad: [0; 2],
    }
}

/// The backend that a UDP socket used last.
enum Last {
    None,
    /// The set is still the one that it was chosen from.
    InForce([u8; 16], [u8; 2]),
    /// The set has changed since: it may be in the new one or not.
    OfAnotherSet([u8; 16], [u8; 2]),
}

#[inline(always)]
fn refuse(reason: Counter) -> i32 {
    count(reason);
    if has_set_retval() {
        let errno = if reason.is_drop() {
            EHOSTUNREACH
        } else {
            ECONNREFUSED
        };
        // SAFETY: a helper without pointers. Its own failure leaves EPERM, which refuses too.
        unsafe { bpf_set_retval(-errno) };
    }
    DENY
}

#[inline(always)]
pub(super) fn count(counter: Counter) {
    if let Some(value) = COUNT.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's value of a per-CPU array.
        unsafe { *value += 1 };
    }
}

/// The socket that a hook runs for. The kernel allows only whole-word access to the context.
pub(super) struct Sock<'a>(&'a SockAddrContext);

impl Sock<'_> {
    #[inline(always)]
    pub(super) fn protocol(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { core::ptr::read_volatile(&raw const (*self.0.sock_addr).protocol) }
    }

    /// `SO_PRIORITY`.
    #[inline(always)]
    fn priority(&self) -> u32 {
        // SAFETY: the kernel sets the pointer to the socket of the call, which outlives the program.
        unsafe {
            let sk = (*self.0.sock_addr).__bindgen_anon_1.sk;
            if sk.is_null() {
                return 0;
            }
            core::ptr::read_volatile(&raw const (*sk).priority)
        }
    }

    #[inline(always)]
    pub(super) fn addr4(&self) -> [u8; 4] {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const (*self.0.sock_addr).user_ip4) }.to_ne_bytes()
    }

    #[inline(always)]
    pub(super) fn addr6(&self) -> [u8; 16] {
        let word = |index: usize| {
            // SAFETY: as above; `index` is below 4.
            unsafe { core::ptr::read_volatile(&raw const (*self.0.sock_addr).user_ip6[index]) }
        };
        let [a, b, c, d] = [word(0), word(1), word(2), word(3)].map(u32::to_ne_bytes);
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    #[inline(always)]
    pub(super) fn port_be(&self) -> [u8; 2] {
        // SAFETY: as above. The port is the low half of the word, in network order.
        let word = unsafe { core::ptr::read_volatile(&raw const (*self.0.sock_addr).user_port) };
        (word as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn set_port(&self, port_be: [u8; 2]) {
        let word = u32::from(u16::from_ne_bytes(port_be));
        // SAFETY: as above; the field is writable in these hooks.
        unsafe { core::ptr::write_volatile(&raw mut (*self.0.sock_addr).user_port, word) };
    }

    #[inline(always)]
    fn set4(&self, addr: [u8; 4], port_be: [u8; 2]) {
        let word = u32::from_ne_bytes(addr);
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*self.0.sock_addr).user_ip4, word) };
        self.set_port(port_be);
    }

    #[inline(always)]
    fn set6(&self, addr: &[u8; 16], port_be: [u8; 2]) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
        for (index, bytes) in [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]]
            .into_iter()
            .enumerate()
        {
            let word = u32::from_ne_bytes(bytes);
            // SAFETY: as above; `index` is below 4.
            unsafe {
                core::ptr::write_volatile(&raw mut (*self.0.sock_addr).user_ip6[index], word)
            };
        }
        self.set_port(port_be);
    }

    #[inline(always)]
    pub(super) fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    /// Whether Services are for this socket at all.
    #[inline(always)]
    fn is_served(&self, protocol: u32) -> bool {
        if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
            return false;
        }
        // Before all else, whatever is in the maps. Elsewhere the priority says nothing: a Pod may set any in its own
        // namespace.
        if self.priority() == OWN_SOCKET_PRIORITY && self.is_in_node_netns() {
            return false;
        }
        let Some(conf) = CONF.get(0) else {
            return false;
        };
        if conf.netns_rows != 0 {
            // SAFETY: the row is copied at once.
            if let Some(class) = unsafe { NETNS.get(self.netns_cookie()) }.map(|row| row.class)
                && class == NETNS_OPT_OUT
            {
                return false;
            }
        }
        match conf.socket_lb {
            SOCKET_LB_ALL => true,
            SOCKET_LB_HOST => self.is_in_node_netns(),
            _ => false,
        }
    }

    // `choose4` and `choose6` are subprograms: both on one stack would be too much for it.

    /// Chooses a backend for what is dialled at `addr`, in network order.
    #[inline(never)]
    fn choose4(&self, addr: u32, protocol: u32, call: Call, backend: &mut Backend4) -> Choice {
        let (addr, port_be) = (addr.to_ne_bytes(), self.port_be());
        let key = FrontendKey4 {
            addr,
            port_be,
            protocol: protocol as u8,
            scope: SCOPE_INTERNAL,
        };
        let (word, service) = match resolve4(&Maps, self, &key) {
            Resolved::Pass => return Choice::Pass,
            Resolved::Refuse(reason) => return Choice::Refuse(reason),
            Resolved::Service(word, service) => (word, service),
        };
        let (vip, stamp) = (mapped(addr), stamp(word, service));
        let mut is_kept = false;
        match self.last_backend(call, &vip, port_be, stamp) {
            Last::InForce(addr, port_be) => {
                *backend = backend4(addr, port_be);
                return Choice::Backend;
            }
            Last::OfAnotherSet(addr, port_be) => {
                *backend = backend4(addr, port_be);
                is_kept = contains4(&Maps, word, backend);
            }
            Last::None => {}
        }
        if is_kept {
            count(Counter::UdpKept);
        } else if !self.new_backend4(word, Maps.affinity(service), backend) {
            return Choice::Refuse(Counter::RefuseInconsistent);
        }
        let (addr, backend_port_be) = (mapped(backend.addr), backend.port_be);
        self.remember(protocol, vip, port_be, addr, backend_port_be, stamp);
        Choice::Backend
    }

    /// See `choose4`.
    #[inline(never)]
    fn choose6(
        &self,
        addr: &[u8; 16],
        protocol: u32,
        call: Call,
        backend: &mut Backend6,
    ) -> Choice {
        let port_be = self.port_be();
        let key = FrontendKey6 {
            addr: *addr,
            port_be,
            protocol: protocol as u8,
            scope: SCOPE_INTERNAL,
            pad: [0; 4],
        };
        let (word, service) = match resolve6(&Maps, self, &key) {
            Resolved::Pass => return Choice::Pass,
            Resolved::Refuse(reason) => return Choice::Refuse(reason),
            Resolved::Service(word, service) => (word, service),
        };
        let stamp = stamp(word, service);
        let mut is_kept = false;
        match self.last_backend(call, addr, port_be, stamp) {
            Last::InForce(addr, port_be) => {
                (backend.addr, backend.port_be) = (addr, port_be);
                return Choice::Backend;
            }
            Last::OfAnotherSet(addr, port_be) => {
                (backend.addr, backend.port_be) = (addr, port_be);
                is_kept = contains6(&Maps, word, backend);
            }
            Last::None => {}
        }
        if is_kept {
            count(Counter::UdpKept);
        } else if !self.new_backend6(word, Maps.affinity(service), backend) {
            return Choice::Refuse(Counter::RefuseInconsistent);
        }
        let (backend_addr, backend_port_be) = (backend.addr, backend.port_be);
        self.remember(
            protocol,
            *addr,
            port_be,
            backend_addr,
            backend_port_be,
            stamp,
        );
        Choice::Backend
    }

    /// Where earlier datagrams of this socket to `vip` went; a connection always chooses anew.
    #[inline(always)]
    fn last_backend(&self, call: Call, vip: &[u8; 16], vip_port_be: [u8; 2], stamp: u64) -> Last {
        if call == Call::Connect {
            return Last::None;
        }
        // SAFETY: the storage lives as long as the socket, whose lock we hold.
        let Some(peers) = (unsafe { REVSK.get_ptr_mut(self.0).as_mut() }) else {
            return Last::None;
        };
        let now = peers.tick();
        let Some(peer) = peers.find(vip, vip_port_be) else {
            return Last::None;
        };
        if peer.word != stamp {
            // Noted again once it is known to be in the set. (To hold on to the entry until then would have the
            // verifier search the set once for each entry.)
            return Last::OfAnotherSet(peer.backend, peer.backend_port_be);
        }
        peer.used = now;
        count(Counter::UdpKept);
        Last::InForce(peer.backend, peer.backend_port_be)
    }

    /// Notes what the client dialled, for `recvmsg` and `getpeername`.
    #[inline(always)]
    fn remember(
        &self,
        protocol: u32,
        vip: [u8; 16],
        vip_port_be: [u8; 2],
        backend: [u8; 16],
        backend_port_be: [u8; 2],
        stamp: u64,
    ) {
        if protocol == IPPROTO_UDP {
            // SAFETY: as in `last_backend`.
            if let Some(peers) = unsafe { REVSK.get_or_insert_ptr_mut(self.0, None).as_mut() } {
                peers.remember(&UdpPeer {
                    vip,
                    backend,
                    word: stamp,
                    vip_port_be,
                    backend_port_be,
                    used: 0,
                });
            }
        } else {
            let cookie = self.cookie();
            if let Some(entry) = PEER.get_ptr_mut(cookie as u32 & peer_mask()) {
                // SAFETY: a value of an array map. Two CPUs may write it at once: the tag tells a torn entry.
                unsafe { *entry = TcpPeer::new(cookie, vip, vip_port_be, backend) };
            }
        }
    }

    /// Whether this is an IPv6 socket that is connected to an IPv4-mapped `addr`. Its plain sends come through
    /// `sendmsg4` with the address of its peer, as if the program had named it.
    #[inline(always)]
    fn is_mapped_peer(&self, addr: [u8; 4]) -> bool {
        const AF_INET6: u32 = 10;
        const TCP_ESTABLISHED: u32 = 1;
        // SAFETY: the kernel sets the pointer to the socket of the call, which outlives the program.
        let (family, state, peer) = unsafe {
            let sk = (*self.0.sock_addr).__bindgen_anon_1.sk;
            if sk.is_null() {
                return false;
            }
            (
                core::ptr::read_volatile(&raw const (*sk).family),
                core::ptr::read_volatile(&raw const (*sk).state),
                core::ptr::read_volatile(&raw const (*sk).dst_ip4),
            )
        };
        family == AF_INET6 && state == TCP_ESTABLISHED && peer == u32::from_ne_bytes(addr)
    }

    /// A UDP socket dialled something that is no Service: perhaps the backend of one.
    #[inline(always)]
    fn dialled_directly(&self, protocol: u32, to: &[u8; 16]) {
        if protocol != IPPROTO_UDP {
            return;
        }
        // SAFETY: as in `last_backend`.
        if let Some(peers) = unsafe { REVSK.get_ptr_mut(self.0).as_mut() } {
            peers.dialled_directly(to, self.port_be());
        }
    }

    #[inline(always)]
    fn udp_shown(&self, from: &[u8; 16]) -> Option<([u8; 16], [u8; 2])> {
        // SAFETY: as in `last_backend`.
        unsafe { REVSK.get_ptr_mut(self.0).as_ref() }?.shown(from, self.port_be())
    }

    #[inline(always)]
    fn peer_shown(&self, peer: &[u8; 16]) -> Option<([u8; 16], [u8; 2])> {
        if self.protocol() == IPPROTO_UDP {
            return self.udp_shown(peer);
        }
        let cookie = self.cookie();
        let entry = *PEER.get(cookie as u32 & peer_mask())?;
        entry
            .is_of(cookie, peer)
            .then_some((entry.vip, entry.vip_port_be))
    }
}

impl Dialer for Sock<'_> {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn is_in_node_netns(&self) -> bool {
        CONF.get(0)
            .is_some_and(|conf| conf.node_netns == self.netns_cookie())
    }

    #[inline(always)]
    fn client(&self) -> Option<NetnsRow> {
        // SAFETY: copied at once. The agent removes a row when its namespace is gone, so no client has a foreign one.
        unsafe { NETNS.get(self.netns_cookie()) }.copied()
    }
}
