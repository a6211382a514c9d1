//! Runs a program on a made-up packet (`BPF_PROG_TEST_RUN`), by aya.

use std::io;
use std::path::Path;

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};

/// The number of bytes by which a program may lengthen a frame.
const ROOM: usize = 256;

/// Runs a pinned program for devices on a frame, as if the frame came in at a device. Returns the program's result and
/// the frame afterwards. The device's other programs and the network stack do not see the frame. Needs Linux 5.10.
pub(in crate::dataplane) fn run_on_frame(
    pin: &Path,
    ifindex: u32,
    frame: &[u8],
) -> io::Result<(u32, Vec<u8>)> {
    // `struct __sk_buff` up to its eleventh word, the index of the device. All other words must be zero.
    let mut context = [0; 11 * 4];
    context[10 * 4..].copy_from_slice(&ifindex.to_ne_bytes());
    let mut out = vec![0; frame.len() + ROOM];
    let program = SchedClassifier::from_pin(pin).map_err(io_error)?;
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    });
    let result = result.map_err(io_error)?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

fn io_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}
