//! A thread that cannot find any file.
#![expect(
    unsafe_code,
    reason = "a root directory of its own for one thread, which the standard library lacks"
)]

use std::thread;

/// An empty root: it has one entry for each descriptor, named by a number, and nothing else.
const NO_FILES: &std::ffi::CStr = c"/proc/self/fdinfo";

/// Runs something that looks for a file by its path and can do without it, in a thread where no path leads to a file.
///
/// Paths of other threads stay as they are. Without the capability to change roots (`CAP_SYS_CHROOT`), without `/proc`,
/// or if no thread can be made, it runs all the same and finds its file.
pub(in crate::dataplane) fn without_files<T: Send>(work: impl Fn() -> T + Send + Copy) -> T {
    let secluded = thread::scope(|scope| {
        let thread = thread::Builder::new().name("no-files".to_owned());
        let work = move || {
            // SAFETY: a string that ends with NUL. The root is changed only after this thread has one of its own.
            unsafe {
                if libc::unshare(libc::CLONE_FS) == 0 {
                    libc::chroot(NO_FILES.as_ptr());
                }
            }
            work()
        };
        thread.spawn_scoped(scope, work).ok()?.join().ok()
    });
    secluded.unwrap_or_else(work)
}
