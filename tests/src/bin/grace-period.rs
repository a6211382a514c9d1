//! Prints which calls wait for a program that was preempted: `membarrier`, and the agent's own way. Runs in the old
//! kernel.
#![expect(clippy::print_stdout, reason = "the test reads what it prints")]

use std::io;

use anyhow::Result;
use yurt_net::dataplane::service::grace::GracePeriod;
use yurt_net_tests::preempted;

const TIMES: usize = 10;

fn main() -> Result<()> {
    let grace_period = GracePeriod::new()?;
    let ended = preempted::ended_after(TIMES, || grace_period.wait())?;
    println!("YURT grace period: {ended} of {TIMES} had ended");
    let ended = preempted::ended_after(TIMES, membarrier)?;
    println!("YURT membarrier: {ended} of {TIMES} had ended");
    Ok(())
}

fn membarrier() -> io::Result<()> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers.
    match unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
