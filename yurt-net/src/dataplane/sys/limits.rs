//! Limits of this process, and the number of CPUs that the machine may have.
#![expect(
    unsafe_code,
    reason = "limits of the process, which the standard library lacks"
)]

use std::path::Path;

use crate::dataplane::DataplaneError;
use crate::dataplane::error::at;

/// Lets this process have as many descriptors open as it may: of each Pod it holds up to three links.
pub(in crate::dataplane) fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a valid structure, twice. Failure shows later, as EMFILE from the call that needed it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Lets maps be made on kernels that count them as locked memory (before 5.11).
pub(in crate::dataplane) fn raise_memlock() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid structure. Failure shows later, as EPERM from the call that needed it.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// Number of CPUs that a per-CPU map has values for.
pub(in crate::dataplane) fn possible_cpus() -> Result<usize, DataplaneError> {
    let cpus = aya::util::nr_cpus();
    cpus.map_err(|(path, source)| at("read", Path::new(path))(source))
}
