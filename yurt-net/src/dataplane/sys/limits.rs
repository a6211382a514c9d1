//! Limits of this process, and the number of possible CPUs.
#![expect(
    unsafe_code,
    reason = "limits of the process, which the standard library lacks"
)]

use std::path::Path;

use crate::dataplane::DataplaneError;
use crate::dataplane::error::at;

/// Raises the limit of open file descriptors to the hard limit: the process holds up to three links for each Pod.
pub(in crate::dataplane) fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid structure. A failure shows later, as EMFILE from the call that needs a descriptor.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Lifts the limit of locked memory: kernels before 5.11 count maps as such.
pub(in crate::dataplane) fn raise_memlock() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid structure. A failure shows later, as EPERM from the call that makes a map.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// The number of values in an entry of a per-CPU map.
pub(in crate::dataplane) fn possible_cpus() -> Result<usize, DataplaneError> {
    let cpus = aya::util::nr_cpus();
    cpus.map_err(|(path, source)| at("read", Path::new(path))(source))
}
