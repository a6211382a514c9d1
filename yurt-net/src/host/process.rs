//! The agent's own process, as the kernel counts it. Sources: `proc(5)`, `/proc/self/stat` and `/proc/stat`.
#![expect(
    unsafe_code,
    reason = "sysconf(3), umask(2), a signal and the allocator, which the standard library lacks"
)]

use std::{fs, io};

use serde::{Deserialize, Serialize};

/// Sets what a process inherits and must not depend on. Every verb and plugin does this first.
///
/// - The umask: some runtimes and scripts leave 0, under which everybody could write the state directory.
/// - `SIGXFSZ`: a write beyond `RLIMIT_FSIZE` (systemd's `LimitFSIZE=`) fails with `EFBIG`, as one to a full disk
///   fails, and does not end the process.
pub fn begin() {
    // SAFETY: calls without pointers; no other thread runs yet.
    unsafe {
        libc::umask(0o022);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// The resources that a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Memory that is resident, in bytes.
    pub resident_bytes: u64,
    /// Processor time, in user and system mode, in milliseconds.
    pub cpu_ms: u64,
    /// When it was started, in seconds since 1970, by the present wall clock.
    pub started_at: u64,
}

impl Process {
    /// Reads them for this process; `None` if `/proc` cannot be read.
    pub fn current() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let booted_at = boot_time(&fs::read_to_string("/proc/stat").ok()?)?;
        // SAFETY: calls without pointers.
        let (ticks, page) = unsafe {
            (
                libc::sysconf(libc::_SC_CLK_TCK),
                libc::sysconf(libc::_SC_PAGESIZE),
            )
        };
        let (ticks, page) = (u64::try_from(ticks).ok()?, u64::try_from(page).ok()?);
        let Counts { cpu, start, pages } = counts(&stat)?;
        Some(Self {
            resident_bytes: pages.saturating_mul(page),
            cpu_ms: cpu.saturating_mul(1000).checked_div(ticks)?,
            started_at: booted_at.saturating_add(start.checked_div(ticks)?),
        })
    }
}

/// How many files this process may have open, at most: the hard limit of `RLIMIT_NOFILE`, to which the agent raises its
/// own. `usize::MAX` where there is no limit.
pub fn most_open_files() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid structure, which outlives the call; a failure leaves it as it is.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    usize::try_from(limit.rlim_max).unwrap_or(usize::MAX)
}

/// Sets the score by which the kernel kills processes when memory is short, from -1000 (never) to 1000. Processes that
/// this one starts inherit it. A lower score than the inherited one needs `CAP_SYS_RESOURCE`.
pub fn set_oom_score(score: i16) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// Returns freed memory to the machine: the node needs it more than the allocator does.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call without pointers.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The fields of `/proc/<pid>/stat` that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Processor time, in clock ticks.
    pub cpu: u64,
    /// Clock ticks from the boot to its start.
    pub start: u64,
    /// Resident pages.
    pub pages: u64,
}

/// Reads a `/proc/<pid>/stat`. The second field, the name of the process, may contain blanks and brackets.
pub fn counts(stat: &str) -> Option<Counts> {
    let (_, fields) = stat.rsplit_once(") ")?;
    // The first field after the name is the third one of all.
    let number = |field: usize| fields.split(' ').nth(field - 3)?.parse::<u64>().ok();
    Some(Counts {
        cpu: number(14)?.saturating_add(number(15)?),
        start: number(22)?,
        pages: number(24)?,
    })
}

/// The boot time of the machine, in seconds since 1970, from `/proc/stat`.
pub fn boot_time(stat: &str) -> Option<u64> {
    let mut lines = stat.lines();
    lines
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::clock::unix_seconds;

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let stat =
            "7 (a b) c) (d)) S 1 7 7 0 -1 4194560 9 9 9 9 250 17 9 9 20 0 1 0 4711 99 2042 1844 1";
        let expected = Counts {
            cpu: 267,
            start: 4711,
            pages: 2042,
        };
        assert_eq!(counts(stat), Some(expected));
        assert_eq!(counts("7 (x) S 1 7"), None);
        assert_eq!(
            boot_time("cpu 1 2\nbtime 1700000000\n"),
            Some(1_700_000_000)
        );
    }

    #[test]
    fn this_process_has_memory_and_was_started_not_long_ago() {
        let process = Process::current().unwrap();
        assert!(process.resident_bytes > 100_000, "{process:?}");
        let age = unix_seconds().abs_diff(process.started_at);
        assert!(age < 3600, "{process:?}");
    }
}
