//! Ctrl-C and SIGTERM remove every lab of this process before it ends.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use super::Core;
use super::lock;

/// As a shell reports a program that SIGINT ended.
const EXIT_CODE: i32 = 130;

static LABS: Mutex<Vec<Weak<Core>>> = Mutex::new(Vec::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(super) fn register(core: &Arc<Core>) {
    let mut labs = lock(&LABS);
    labs.retain(|lab| lab.strong_count() > 0);
    labs.push(Arc::downgrade(core));
}

/// Whether a signal has come and the labs are being removed: later errors do not matter.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Unblocks the signals for this thread. Call it in a child before it becomes another program, which would otherwise
/// inherit the mask and never get SIGTERM.
pub(super) fn unblock() -> io::Result<()> {
    // SAFETY: a zeroed sigset_t is a valid one, and sigemptyset initializes it anyway.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to that live set; a null old set is allowed.
    let result = unsafe {
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP remove all labs and end the process with 130. Call it once, before any other
/// thread is started, because threads inherit the signal mask.
pub fn tear_down_on_signals() -> Result<()> {
    // SAFETY: a zeroed sigset_t is a valid one, and sigemptyset initializes it anyway.
    let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to that live set; a null old set is allowed.
    let result = unsafe {
        libc::sigemptyset(&raw mut signals);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut signals, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut())
    };
    if result != 0 {
        bail!("block signals: error {result}");
    }
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut signal = 0;
            // SAFETY: both pointers are to live variables of this thread.
            while unsafe { libc::sigwait(&raw const signals, &raw mut signal) } != 0 {}
            INTERRUPTED.store(true, Ordering::SeqCst);
            eprintln!("\ninterrupted, removing the lab");
            let labs: Vec<_> = lock(&LABS).iter().filter_map(Weak::upgrade).collect();
            for lab in labs {
                if let Err(e) = lab.tear_down() {
                    eprintln!("lab: {e:#}");
                }
            }
            process::exit(EXIT_CODE);
        })
        .context("start the signal thread")?;
    Ok(())
}
