//! The maps through which programs tell what they refuse and drop.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};

use yurt_ebpf::abi::{EVENT_RING_BYTES, EVENT_SHARES, EventShare};

/// Of `Event`s. Nobody is woken: whoever listens looks from time to time.
#[map(name = "yurt_events")]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_RING_BYTES, 0);
/// Until when somebody listens: nanoseconds of `CLOCK_MONOTONIC`. Whoever listens puts it off again and again, so that
/// it passes by itself when he is gone.
#[map(name = "yurt_watch")]
pub(crate) static WATCH: Array<u64> = Array::with_max_entries(1, 0);
/// How much of the ring events of one kind have taken of late, and how many were not told.
#[map(name = "yurt_ev_share")]
pub(crate) static SHARES: PerCpuArray<EventShare> = PerCpuArray::with_max_entries(EVENT_SHARES, 0);
