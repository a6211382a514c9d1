//! Which backend a new flow gets: the decision of every hook, without the hook.
//!
//! Pure and `no_std`: runs in the kernel over the maps and in tests over anything that implements [`Tables`] and
//! [`Dialer`]. One hash lookup on a hit. The publish word is read once, and everything after it hangs on that one
//! value: a reader sees all of one endpoint set or all of another. What cannot be made sense of is refused: a packet
//! never leaves towards a virtual address.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers are cut out of packed words"
)]

use crate::abi::{
    Affinity, Backend4, Backend6, Conf, Counter, FRONTEND_NODE_ONLY, FRONTEND_ON_NODE,
    FRONTEND_OUTSIDE, FRONTEND_OUTSIDE_APART, FilterPlace, FrontendKey4, FrontendKey6,
    FrontendValue, NetnsRow, PREFIXES_ARE_SERVICE_CIDRS, PublishWord, SCOPE_ADDRESS,
    SCOPE_EXTERNAL, UDP_PEERS, UdpPeer, UdpPeers, words,
};

/// The table as a reader sees it. Every call is one map lookup.
pub trait Tables {
    /// `yurt_filter`.
    fn filter(&self, word: u32) -> Option<u64>;
    /// `yurt_fe4`.
    fn frontend4(&self, key: &FrontendKey4) -> Option<FrontendValue>;
    /// `yurt_fe6`.
    fn frontend6(&self, key: &FrontendKey6) -> Option<FrontendValue>;
    /// The first word of `yurt_svc`, loaded at once.
    fn publish_word(&self, service: u32) -> Option<PublishWord>;
    /// The second word.
    fn affinity(&self, service: u32) -> Affinity;
    /// `yurt_slot`.
    fn backend4(&self, slot: u32) -> Option<Backend4>;
    /// `yurt_be6`.
    fn backend6(&self, slot: u32) -> Option<Backend6>;
    /// `yurt_conf`.
    fn conf(&self) -> Option<&Conf>;
}

/// Who asks: the socket that dials, in the kernel. Every call is one helper or one map lookup.
pub trait Dialer {
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Whether it is in the node's own network namespace.
    fn is_in_node_netns(&self) -> bool;
    /// `yurt_netns`: its addresses, where the agent knows them.
    fn client(&self) -> Option<NetnsRow>;
}

/// What a destination is resolved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// No Service's: it goes on unchanged.
    Pass,
    /// A Service's, which cannot be reached.
    Refuse(Counter),
    /// A Service's: its endpoint set, and its index for [`Tables::affinity`].
    Service(PublishWord, u32),
}

impl FrontendKey4 {
    #[inline(always)]
    fn address_only(&self) -> Self {
        Self {
            addr: self.addr,
            port_be: [0; 2],
            protocol: 0,
            scope: SCOPE_ADDRESS,
        }
    }
}

impl FrontendKey6 {
    #[inline(always)]
    fn address_only(&self) -> Self {
        Self {
            addr: self.addr,
            port_be: [0; 2],
            protocol: 0,
            scope: SCOPE_ADDRESS,
            pad: [0; 4],
        }
    }
}

/// Whether an IPv4 destination is passed by the filter alone, as most are: [`resolve4`] would say so too, and costs
/// more.
#[inline(always)]
pub fn passes4<T: Tables>(tables: &T, addr: [u8; 4]) -> bool {
    !may_have_rows(tables, FilterPlace::of4(kept_under(addr))) && !are_service_cidrs(tables)
}

/// The address whose rows are those of this one: NodePorts answer on all of 127.0.0.0/8, and are kept under 127.0.0.1.
/// (In words: bytes cost instructions.)
#[inline(always)]
fn kept_under(addr: [u8; 4]) -> u32 {
    let addr = u32::from_be_bytes(addr);
    if addr >> 24 == 127 { 0x7f00_0001 } else { addr }
}

/// Resolves an IPv4 destination.
#[inline(always)]
pub fn resolve4<T: Tables, D: Dialer>(tables: &T, dialer: &D, key: &FrontendKey4) -> Resolved {
    match find4(tables, key) {
        Ok(value) => hit(tables, dialer, value, admit4),
        Err(resolved) => resolved,
    }
}

/// Resolves an IPv4 destination for a client outside, whose address the dialer knows. `key` is of `SCOPE_INTERNAL`: its
/// row says whether it holds outside, too.
#[inline(always)]
pub fn outside4<T: Tables, D: Dialer>(tables: &T, dialer: &D, key: &FrontendKey4) -> Resolved {
    match find4(tables, key) {
        Ok(value) if value.flags() & FRONTEND_OUTSIDE != 0 => hit(tables, dialer, value, admit4),
        Ok(value) if value.flags() & FRONTEND_OUTSIDE_APART != 0 => {
            let scope = SCOPE_EXTERNAL;
            match find4(tables, &FrontendKey4 { scope, ..*key }) {
                Ok(value) => hit(tables, dialer, value, admit4),
                // It is there before the other row says so.
                Err(_) => Resolved::Refuse(Counter::RefuseInconsistent),
            }
        }
        Ok(_) => Resolved::Pass,
        Err(resolved) => resolved,
    }
}

/// The value of a row, or what there is to say without one.
#[inline(always)]
fn find4<T: Tables>(tables: &T, key: &FrontendKey4) -> Result<FrontendValue, Resolved> {
    let addr = kept_under(key.addr);
    let key = FrontendKey4 {
        addr: addr.to_be_bytes(),
        ..*key
    };
    if !may_have_rows(tables, FilterPlace::of4(addr)) {
        return Err(unallocated(tables, |tables| miss4(tables, &key)));
    }
    let fingerprint = key.fingerprint();
    let Some(mut value) = tables.frontend4(&key) else {
        return Err(unknown_port(miss4(tables, &key)));
    };
    if value.fingerprint() != fingerprint {
        // The element was reused while we looked: the key is new, gone or moved. Look once more.
        let Some(again) = tables.frontend4(&key) else {
            return Err(unknown_port(miss4(tables, &key)));
        };
        if again.fingerprint() != fingerprint {
            return Err(Resolved::Refuse(Counter::RefuseInconsistent));
        }
        value = again;
    }
    Ok(value)
}

/// Resolves an IPv6 destination (not an IPv4-mapped one).
#[inline(always)]
pub fn resolve6<T: Tables, D: Dialer>(tables: &T, dialer: &D, key: &FrontendKey6) -> Resolved {
    match find6(tables, key) {
        Ok(value) => hit(tables, dialer, value, admit6),
        Err(resolved) => resolved,
    }
}

/// See [`outside4`].
#[inline(always)]
pub fn outside6<T: Tables, D: Dialer>(tables: &T, dialer: &D, key: &FrontendKey6) -> Resolved {
    match find6(tables, key) {
        Ok(value) if value.flags() & FRONTEND_OUTSIDE != 0 => hit(tables, dialer, value, admit6),
        Ok(value) if value.flags() & FRONTEND_OUTSIDE_APART != 0 => {
            let scope = SCOPE_EXTERNAL;
            match find6(tables, &FrontendKey6 { scope, ..*key }) {
                Ok(value) => hit(tables, dialer, value, admit6),
                // As for IPv4.
                Err(_) => Resolved::Refuse(Counter::RefuseInconsistent),
            }
        }
        Ok(_) => Resolved::Pass,
        Err(resolved) => resolved,
    }
}

/// See [`find4`].
#[inline(always)]
fn find6<T: Tables>(tables: &T, key: &FrontendKey6) -> Result<FrontendValue, Resolved> {
    if !may_have_rows(tables, FilterPlace::of6(&key.addr)) {
        return Err(unallocated(tables, |tables| miss6(tables, key)));
    }
    let fingerprint = key.fingerprint();
    let Some(mut value) = tables.frontend6(key) else {
        return Err(unknown_port(miss6(tables, key)));
    };
    if value.fingerprint() != fingerprint {
        let Some(again) = tables.frontend6(key) else {
            return Err(unknown_port(miss6(tables, key)));
        };
        if again.fingerprint() != fingerprint {
            return Err(Resolved::Refuse(Counter::RefuseInconsistent));
        }
        value = again;
    }
    Ok(value)
}

/// Whether the address may have rows in the hash: most connects are to no Service, and a miss in a large hash is
/// expensive.
#[inline(always)]
fn may_have_rows<T: Tables>(tables: &T, place: FilterPlace) -> bool {
    tables
        .filter(place.word)
        .is_none_or(|word| place.is_in(word))
}

#[inline(always)]
fn hit<T: Tables, D: Dialer>(
    tables: &T,
    dialer: &D,
    value: FrontendValue,
    admit: impl Fn(&T, &D, PublishWord) -> Admission,
) -> Resolved {
    if value.flags() & FRONTEND_NODE_ONLY != 0 && !dialer.is_in_node_netns() {
        return Resolved::Pass;
    }
    let service = value.service();
    let Some(word) = tables.publish_word(service) else {
        return Resolved::Refuse(Counter::RefuseInconsistent);
    };
    if word.ranges() > 0 {
        match admit(tables, dialer, word) {
            Admission::Admitted => {}
            Admission::Outside => return Resolved::Refuse(Counter::DropSourceRange),
            Admission::Unknown => return Resolved::Refuse(Counter::RefuseUnknownClient),
        }
    }
    if word.count() > 0 {
        Resolved::Service(word, service)
    } else if word.is_drop() {
        Resolved::Refuse(Counter::DropNoLocalEndpoint)
    } else {
        Resolved::Refuse(Counter::RefuseNoEndpoint)
    }
}

/// Whether the client is in the source ranges of a set.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Admission {
    Admitted,
    Outside,
    /// The agent has not said which addresses the client has.
    Unknown,
}

// Ranges are sorted, and none is inside another: the last one that does not begin behind the client is the only one
// that can have it inside.

#[inline(never)]
fn admit4<T: Tables, D: Dialer>(tables: &T, dialer: &D, word: PublishWord) -> Admission {
    let Some(client) = dialer.client().map(|row| row.addr4) else {
        return Admission::Unknown;
    };
    if u32::from_ne_bytes(client) == 0 {
        return Admission::Unknown;
    }
    // In the upper half, see `count_less`.
    let order = |addr: [u8; 4]| u64::from(u32::from_be_bytes(addr)) << 32;
    let first = word.base() + u32::from(word.count());
    let behind = count_less(RANGES, first, u64::from(word.ranges()), |slot| {
        Some(borrow(order(tables.backend4(slot)?.addr), order(client), 1))
    });
    let range = behind.and_then(|n| tables.backend4(first + (n as u32).checked_sub(1)?));
    match range {
        Some(range) if range.admits(client) => Admission::Admitted,
        _ => Admission::Outside,
    }
}

/// See [`admit4`].
#[inline(never)]
fn admit6<T: Tables, D: Dialer>(tables: &T, dialer: &D, word: PublishWord) -> Admission {
    let Some(client) = dialer.client().map(|row| row.addr6) else {
        return Admission::Unknown;
    };
    let (high, low) = words(&client);
    if high | low == 0 {
        return Admission::Unknown;
    }
    let (high, low) = (u64::from_be(high), u64::from_be(low));
    let first = word.base() + u32::from(word.count());
    let behind = count_less(RANGES, first, u64::from(word.ranges()), |slot| {
        let (h, l) = words(&tables.backend6(slot)?.addr);
        Some(borrow(
            u64::from_be(h),
            high,
            borrow(u64::from_be(l), low, 1),
        ))
    });
    let range = behind.and_then(|n| tables.backend6(first + (n as u32).checked_sub(1)?));
    match range {
        Some(range) if range.admits(&client) => Admission::Admitted,
        _ => Admission::Outside,
    }
}

/// Whether an address whose port is no frontend is a Service's.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Miss {
    Foreign,
    Inside,
}

/// The filter lets the address through, so it is a Service's, and the port is not. (Nearly always: for one address in
/// forty, while there are 20,000, the filter is wrong. It only counts, and to be sure would take a row for each
/// address.)
#[inline(always)]
fn unknown_port(miss: Miss) -> Resolved {
    match miss {
        Miss::Foreign => Resolved::Pass,
        Miss::Inside => Resolved::Refuse(Counter::RefuseUnknownPort),
    }
}

/// The filter turns the address away, so it is no Service's: not even scanned where unallocated addresses are left
/// alone.
#[inline(always)]
fn unallocated<T: Tables>(tables: &T, miss: impl FnOnce(&T) -> Miss) -> Resolved {
    if are_service_cidrs(tables) && miss(tables) == Miss::Inside {
        Resolved::Refuse(Counter::RefuseUnallocated)
    } else {
        Resolved::Pass
    }
}

#[inline(always)]
fn are_service_cidrs<T: Tables>(tables: &T) -> bool {
    tables.conf().is_some_and(|conf| {
        let set = &conf.prefixes[(conf.active_prefixes & 1) as usize];
        set.flags & PREFIXES_ARE_SERVICE_CIDRS != 0
    })
}

#[inline(never)]
fn miss4<T: Tables>(tables: &T, key: &FrontendKey4) -> Miss {
    let Some(conf) = tables.conf() else {
        return Miss::Foreign;
    };
    let set = &conf.prefixes[(conf.active_prefixes & 1) as usize];
    let addr = u32::from_ne_bytes(key.addr);
    let is_inside =
        set.v4.iter().take(set.v4_len as usize).any(|prefix| {
            addr & u32::from_ne_bytes(prefix.mask) == u32::from_ne_bytes(prefix.addr)
        });
    if !is_inside {
        return Miss::Foreign;
    }
    let key = key.address_only();
    inside(tables.frontend4(&key), key.fingerprint(), set.flags)
}

#[inline(never)]
fn miss6<T: Tables>(tables: &T, key: &FrontendKey6) -> Miss {
    let Some(conf) = tables.conf() else {
        return Miss::Foreign;
    };
    let set = &conf.prefixes[(conf.active_prefixes & 1) as usize];
    let addr = words(&key.addr);
    let is_inside = set.v6.iter().take(set.v6_len as usize).any(|prefix| {
        let mask = words(&prefix.mask);
        (addr.0 & mask.0, addr.1 & mask.1) == words(&prefix.addr)
    });
    if !is_inside {
        return Miss::Foreign;
    }
    let key = key.address_only();
    inside(tables.frontend6(&key), key.fingerprint(), set.flags)
}

#[inline(always)]
fn inside(known: Option<FrontendValue>, fingerprint: u32, flags: u32) -> Miss {
    match known {
        // The flag may be another key's, whose element this was a moment ago: it counts only with the fingerprint.
        Some(value)
            if value.flags() & FRONTEND_ON_NODE != 0 && value.fingerprint() == fingerprint =>
        {
            Miss::Foreign
        }
        Some(_) => Miss::Inside,
        None if flags & PREFIXES_ARE_SERVICE_CIDRS != 0 => Miss::Inside,
        None => Miss::Foreign,
    }
}

/// A number that tells one endpoint set from every other, also of other Services: a word counts the publishes of its
/// own index, and slots may come to another index with the same count. (Multiplied: small numbers stay apart in all
/// bits.)
#[inline(always)]
pub const fn stamp(word: PublishWord, service: u32) -> u64 {
    word.0 ^ (service as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A slot of the set, each equally likely to within 2^-16.
#[inline(always)]
pub fn random_slot<D: Dialer>(dialer: &D, word: PublishWord) -> u32 {
    let offset = (u64::from(dialer.random()) * u64::from(word.count())) >> 32;
    word.base() + offset as u32
}

/// The slot of the set after another one; the first one after the last.
#[inline(always)]
pub const fn next_slot(slot: u32, word: PublishWord) -> u32 {
    let next = slot.wrapping_add(1);
    match next.wrapping_sub(word.base()) < word.count() as u32 {
        true => next,
        false => word.base(),
    }
}

// Whether a backend is in a set: binary search, for the agent writes every range sorted by address and port.
//
// BPF has no instruction that turns a comparison into a number, so each comparison is a branch, which the verifier
// follows both ways, sixteen times over. Subtraction has a borrow instead, and no branch.

/// 1 if `a` is less than `b + borrow`, else 0.
#[inline(always)]
const fn borrow(a: u64, b: u64, borrow: u64) -> u64 {
    let difference = a.wrapping_sub(b).wrapping_sub(borrow);
    ((!a & b) | ((!a | b) & difference)) >> 63
}

/// Whether `backend` is in the set.
#[inline(never)]
pub fn contains4<T: Tables>(tables: &T, word: PublishWord, backend: &Backend4) -> bool {
    let order = |b: &Backend4| {
        u64::from(u32::from_be_bytes(b.addr)) << 16 | u64::from(u16::from_be_bytes(b.port_be))
    };
    let wanted = order(backend);
    let slot = lower_bound(word, |slot| {
        Some(borrow(order(&tables.backend4(slot)?), wanted, 0))
    });
    slot.and_then(|slot| tables.backend4(slot))
        .is_some_and(|b| order(&b) == wanted)
}

/// See [`contains4`].
#[inline(never)]
pub fn contains6<T: Tables>(tables: &T, word: PublishWord, backend: &Backend6) -> bool {
    let order = |b: &Backend6| {
        let (high, low) = words(&b.addr);
        (
            u64::from_be(high),
            u64::from_be(low),
            u64::from(u16::from_be_bytes(b.port_be)),
        )
    };
    let (high, low, port) = order(backend);
    let slot = lower_bound(word, |slot| {
        let (h, l, p) = order(&tables.backend6(slot)?);
        Some(borrow(h, high, borrow(l, low, borrow(p, port, 0))))
    });
    slot.and_then(|slot| tables.backend6(slot))
        .is_some_and(|b| order(&b) == (high, low, port))
}

/// The first slot of the set that is not less; `None` when all are, or when one cannot be read.
#[inline(always)]
fn lower_bound(word: PublishWord, is_less: impl Fn(u32) -> Option<u64>) -> Option<u32> {
    let count = u64::from(word.count());
    let less = count_less(BACKENDS, word.base(), count, is_less)?;
    (less < count).then_some(word.base() + less as u32)
}

/// The number of backends of a set has sixteen bits.
const BACKENDS: u64 = 1 << 15;
/// The number of its ranges has seven.
const RANGES: u64 = 1 << 6;

/// How many of `count` slots are less: all that are come first. `step` is half of the smallest power of two above every
/// possible `count`. `None` when a slot cannot be read.
#[inline(always)]
fn count_less(
    mut step: u64,
    base: u32,
    count: u64,
    is_less: impl Fn(u32) -> Option<u64>,
) -> Option<u64> {
    // How many are known to be less. What is compared is moved to the upper half of the word: of small numbers, LLVM
    // would make comparisons, and so branches.
    let mut less = 0u64;
    while step > 0 {
        let probe = less + step;
        let is_beyond = borrow(count << 32, probe << 32, 0);
        // Beyond the end, look at the first slot instead, and ignore it.
        let offset = (probe - 1) & is_beyond.wrapping_sub(1);
        let is_right = is_less(base + offset as u32)? & (is_beyond ^ 1);
        less += step & 0u64.wrapping_sub(is_right);
        step >>= 1;
    }
    Some(less)
}

// === impl UdpPeers ===
//
// Searches are subprograms of their own that return an index: inlined eight times over they would fill the programs,
// and a returned reference is something that the verifier cannot follow.

/// "Not there", as an index into `UdpPeers::peers`.
const NOWHERE: u32 = UDP_PEERS as u32;

#[inline(always)]
fn same(a: &[u8; 16], a_port: [u8; 2], b: &[u8; 16], b_port: [u8; 2]) -> bool {
    u16::from_ne_bytes(a_port) == u16::from_ne_bytes(b_port) && words(a) == words(b)
}

impl UdpPeers {
    /// The entry of a destination, for the sticky choice of an unconnected socket.
    #[inline(always)]
    pub fn find(&mut self, vip: &[u8; 16], vip_port_be: [u8; 2]) -> Option<&mut UdpPeer> {
        let index = self.position_of_vip(vip, vip_port_be);
        (index != NOWHERE).then(|| &mut self.peers[index as usize & (UDP_PEERS - 1)])
    }

    #[inline(never)]
    fn position_of_vip(&self, vip: &[u8; 16], vip_port_be: [u8; 2]) -> u32 {
        for index in 0..NOWHERE {
            let peer = &self.peers[index as usize];
            if same(&peer.vip, peer.vip_port_be, vip, vip_port_be) {
                return index;
            }
        }
        NOWHERE
    }

    /// Advances the clock, and returns it; never 0.
    #[inline(always)]
    pub fn tick(&mut self) -> u32 {
        self.clock = match self.clock.wrapping_add(1) {
            0 => 1,
            clock => clock,
        };
        self.clock
    }

    /// Remembers a destination. It replaces an entry of the same destination, else the oldest one.
    #[inline(always)]
    pub fn remember(&mut self, new: &UdpPeer) {
        let now = self.tick();
        let known = self.position_of_vip(&new.vip, new.vip_port_be);
        let index = if known == NOWHERE {
            self.next = self.next.wrapping_add(1);
            self.next
        } else {
            known
        };
        let peer = &mut self.peers[index as usize & (UDP_PEERS - 1)];
        *peer = *new;
        peer.used = now;
    }

    /// The address to show for a datagram from `from`: the one last sent to through that backend.
    #[inline(always)]
    pub fn shown(&self, from: &[u8; 16], from_port_be: [u8; 2]) -> Option<([u8; 16], [u8; 2])> {
        let index = self.position_of_backend(from, from_port_be);
        if index == NOWHERE {
            return None;
        }
        let peer = &self.peers[index as usize & (UDP_PEERS - 1)];
        Some((peer.vip, peer.vip_port_be))
    }

    #[inline(never)]
    fn position_of_backend(&self, from: &[u8; 16], from_port_be: [u8; 2]) -> u32 {
        let (mut best, mut best_idle) = (NOWHERE, u32::MAX);
        for index in 0..NOWHERE {
            let peer = &self.peers[index as usize];
            if peer.used != 0 && same(&peer.backend, peer.backend_port_be, from, from_port_be) {
                let idle = self.clock.wrapping_sub(peer.used);
                if idle < best_idle {
                    (best, best_idle) = (index, idle);
                }
            }
        }
        best
    }

    /// Notes that the socket dialled `to` itself: answers from there show `to` until a Service is dialled again.
    #[inline(never)]
    pub fn dialled_directly(&mut self, to: &[u8; 16], to_port_be: [u8; 2]) {
        for peer in &mut self.peers {
            if same(&peer.backend, peer.backend_port_be, to, to_port_be) {
                peer.used = 0;
            }
        }
    }
}

#[cfg(all(test, not(target_arch = "bpf")))]
mod proptests;
#[cfg(all(test, not(target_arch = "bpf")))]
mod tests;
