//! The ring through which programs tell what they refuse and drop, while somebody listens.

/// Bytes of `yurt_events`: a power of two, and a multiple of every page size.
pub const EVENT_RING_BYTES: u32 = 1 << 16;
/// Entries of `yurt_ev_share`: a power of two, so that a number is masked into it.
pub const EVENT_SHARES: u32 = 64;
/// So many events of one share are told in each of its windows, by each processor.
const EVENTS_IN_A_WINDOW: u32 = 32;
/// A window has two to the power of this in nanoseconds: 134 ms.
const WINDOW_BITS: u32 = 27;

/// [`Event::form`] of this version. Whoever reads another one does not know what it says.
pub const EVENT_FORM: u8 = 1;
/// [`Event::path`]: a program on sockets. The reason is a [`Counter`](super::Counter).
pub const EVENT_OF_SOCKET: u8 = 0;
/// [`Event::path`]: a program on a device. The reason is a [`Handled`](super::Handled).
pub const EVENT_OF_PACKET: u8 = 1;

/// Record of `yurt_events`: somebody was refused, or a packet was dropped. IPv4 addresses are IPv4-mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Event {
    /// When: nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Of sockets, the cookie of the client's network namespace; else 0.
    pub netns: u64,
    /// Of packets, the client's address; zero where the program does not know it, as with a socket that has none yet.
    pub client: [u8; 16],
    /// What was dialled; zero where the program does not know it.
    pub dialled: [u8; 16],
    /// Of sockets, the name of the thread, which ends with a NUL; else zero.
    pub comm: [u8; 16],
    /// Of sockets, the process, as the first PID namespace numbers it; else 0.
    pub pid: u32,
    /// Of packets, the device; else 0.
    pub ifindex: u32,
    /// Port of `client`.
    pub client_port_be: [u8; 2],
    /// Port of `dialled`.
    pub dialled_port_be: [u8; 2],
    /// [`EVENT_FORM`].
    pub form: u8,
    /// `EVENT_OF_*`.
    pub path: u8,
    /// Why, as the counters of the path number it.
    pub reason: u8,
    /// IANA protocol number; 0 where the program does not know it.
    pub protocol: u8,
}

#[cfg(not(target_arch = "bpf"))]
impl Event {
    /// That of a record.
    pub const fn of(bytes: [u8; size_of::<Self>()]) -> Self {
        // SAFETY: integers and byte arrays only, so any bytes are one.
        unsafe { core::mem::transmute(bytes) }
    }

    /// Its record.
    pub const fn bytes(self) -> [u8; size_of::<Self>()] {
        // SAFETY: its fields fill its size.
        unsafe { core::mem::transmute(self) }
    }
}

/// Value of `yurt_ev_share`, by what an event is about: so one client that is refused the same thing over and over
/// takes only a part of the ring, and others are seen beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EventShare {
    /// The window that `count` is of.
    pub window: u32,
    /// How many events there were in it.
    pub count: u32,
    /// How many were not told, since the map was made.
    pub lost: u64,
}

impl EventShare {
    /// Counts one more event; whether it is to be told. One that is not is lost.
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "windows are only compared")]
        let window = (now_ns >> WINDOW_BITS) as u32;
        if self.window != window {
            (self.window, self.count) = (window, 0);
        }
        self.count = self.count.saturating_add(1);
        let is_told = self.count <= EVENTS_IN_A_WINDOW;
        if !is_told {
            self.lose();
        }
        is_told
    }

    /// Counts an event as lost.
    #[inline(always)]
    pub fn lose(&mut self) {
        self.lost = self.lost.wrapping_add(1);
    }

    /// The share of what a client, by its address or the cookie of its namespace, is refused at an address and port.
    #[inline(always)]
    pub const fn place(client: u64, dialled: u64, port_be: [u8; 2]) -> u32 {
        let port = u16::from_ne_bytes(port_be) as u64;
        let mixed = (client ^ dialled.rotate_left(16) ^ port).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 58) as u32 & (EVENT_SHARES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_some_events_are_told_in_each_window_and_the_others_counted() {
        let mut share = EventShare::default();
        for window in [5u64, 6, 900] {
            let told = (0..1000u64).filter(|step| share.take((window << WINDOW_BITS) + step));
            assert_eq!(told.count(), 32, "{window}");
        }
        assert_eq!(share.lost, 3 * (1000 - 32));
    }

    #[test]
    fn clients_and_what_they_dial_are_spread_over_all_shares() {
        let places = (0..4u64).flat_map(|client| {
            (0..250u16).map(move |port| EventShare::place(client, 0x0a60_000a, port.to_be_bytes()))
        });
        let mut seen = [0u32; EVENT_SHARES as usize];
        places.for_each(|place| seen[place as usize] += 1);
        assert!(
            seen.iter().all(|&count| (2..64).contains(&count)),
            "{seen:?}"
        );
    }
}
