//! The clocks of this machine.
#![expect(
    unsafe_code,
    reason = "the boot's clock, which the standard library lacks"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::PathError;

/// Seconds since 1970, by the wall clock of the machine; 0 if that is before 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "what is on disk can only be compared with the clock of the machine"
)]
pub fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Seconds of `CLOCK_MONOTONIC`, the clock that programs in the kernel read (`bpf_ktime_get_ns`).
pub fn monotonic_seconds() -> u64 {
    u64::try_from(read(libc::CLOCK_MONOTONIC).tv_sec).unwrap_or(0)
}

/// Nanoseconds of the same clock.
pub fn monotonic_ns() -> u64 {
    nanoseconds(read(libc::CLOCK_MONOTONIC))
}

/// The time of day, by the wall clock as it is now, at a moment that has passed: nanoseconds of `CLOCK_MONOTONIC`.
pub fn wall_time(monotonic_ns_then: u64) -> SystemTime {
    let wall = nanoseconds(read(libc::CLOCK_REALTIME));
    let since = monotonic_ns().saturating_sub(monotonic_ns_then);
    UNIX_EPOCH + Duration::from_nanos(wall.saturating_sub(since))
}

fn nanoseconds(time: libc::timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid buffer. It cannot fail: both clocks are there since Linux 2.6.39.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time
}

/// The machine's clocks at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The ID of this boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// Milliseconds since the boot, including suspends (`CLOCK_BOOTTIME`).
    pub up: u64,
    /// Unix seconds.
    pub wall: u64,
}

impl Clock {
    /// Reads the clocks.
    pub fn read() -> Result<Self, PathError> {
        const BOOT: &str = "/proc/sys/kernel/random/boot_id";
        let boot = fs::read_to_string(BOOT).map_err(PathError::of("read", Path::new(BOOT)))?;
        let time = read(libc::CLOCK_BOOTTIME);
        Ok(Self {
            boot: boot.trim().to_owned(),
            up: u64::try_from(time.tv_sec).unwrap_or(0) * 1000
                + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000,
            wall: unix_seconds(),
        })
    }
}
