//! A program that is preempted in the middle, and calls that wait for its end.
//!
//! The program marks its start and its end in a map, and copies for milliseconds in between. On one processor of a
//! kernel that preempts, a process that sees the first mark without the second runs while the program is interrupted.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::bpf;
use crate::testrun::Program;

const MAP_CREATE: libc::c_long = 0;
const ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;
/// How much is copied at once, and how often.
const BYTES: u32 = 1 << 16;
const COPIES: i32 = 2000;
const MARKS: u32 = 16;

/// Runs the program until `wait` was called `times` times while it was interrupted, and counts how often it had ended
/// when `wait` returned.
pub fn ended_after(times: usize, wait: impl Fn() -> io::Result<()>) -> Result<usize> {
    let (marks, source, target) = (array(MARKS, MMAPABLE)?, array(BYTES, 0)?, array(BYTES, 0)?);
    let program = Program::new(&instructions(&marks, &source, &target))?;
    let [started, ended] = mapped(&marks)?;
    let mut outcomes = Vec::new();
    for _ in 0..times * 100 {
        started.store(0, Ordering::SeqCst);
        ended.store(0, Ordering::SeqCst);
        let outcome = thread::scope(|scope| {
            let run = scope.spawn(|| program.verdict(&[0; 64]));
            while started.load(Ordering::SeqCst) == 0 && !run.is_finished() {
                thread::yield_now();
            }
            let was_on_its_way = ended.load(Ordering::SeqCst) == 0;
            let waited = was_on_its_way.then(&wait).transpose();
            let had_ended = ended.load(Ordering::SeqCst) != 0;
            match run.join() {
                Ok(verdict) => drop(verdict?),
                Err(_panic) => bail!("the thread that runs the program panicked"),
            }
            Ok(waited.context("wait")?.map(|()| had_ended))
        });
        outcomes.extend(outcome?);
        if outcomes.len() == times {
            return Ok(outcomes.into_iter().filter(|had_ended| *had_ended).count());
        }
    }
    bail!("the program is never preempted: is this kernel booted with preempt=full?")
}

/// An array of one entry.
fn array(value_size: u32, map_flags: u32) -> Result<OwnedFd> {
    let mut attr = [ARRAY, 4, value_size, 1, map_flags];
    bpf::open(MAP_CREATE, &mut attr).context("make a map")
}

/// The two marks, in this process' memory until it ends.
fn mapped(marks: &OwnedFd) -> Result<[&'static AtomicU64; 2]> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let (nowhere, fd) = (std::ptr::null_mut(), marks.as_raw_fd());
    // SAFETY: a new mapping, which is never removed.
    let base = unsafe { libc::mmap(nowhere, MARKS as usize, access, libc::MAP_SHARED, fd, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("map the marks into memory");
    }
    let base: *mut u64 = base.cast();
    // SAFETY: two aligned words of the mapping, which program and process access as a whole.
    Ok(unsafe { [AtomicU64::from_ptr(base), AtomicU64::from_ptr(base.add(1))] })
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

/// `marks[0] = 1; for COPIES { target[0] = source[0] }; marks[1] = 1`.
fn instructions(marks: &OwnedFd, source: &OwnedFd, target: &OwnedFd) -> Vec<u64> {
    // `BPF_LD | BPF_IMM | BPF_DW`, with BPF_PSEUDO_MAP_FD and BPF_PSEUDO_MAP_VALUE.
    let map = |to, kind, map: &OwnedFd| {
        [
            instruction(0x18, to, kind, 0, map.as_raw_fd()),
            instruction(0, 0, 0, 0, 0),
        ]
    };
    const MAP_UPDATE_ELEM: i32 = 2;
    [
        &map(6, 2, marks)[..],
        &map(7, 2, source),
        &[
            instruction(0x7a, 6, 0, 0, 1),   // marks[0] = 1
            instruction(0x62, 10, 0, -4, 0), // key = 0
            instruction(0xb7, 8, 0, 0, 0),   // r8 = 0
        ],
        &map(1, 1, target),
        &[
            instruction(0xbf, 2, 10, 0, 0),
            instruction(0x07, 2, 0, 0, -4),
            instruction(0xbf, 3, 7, 0, 0),
            instruction(0xb7, 4, 0, 0, 0),
            instruction(0x85, 0, 0, 0, MAP_UPDATE_ELEM),
            instruction(0x07, 8, 0, 0, 1),
            instruction(0xa5, 8, 0, -9, COPIES), // once more while r8 is below
            instruction(0x7a, 6, 0, 8, 1),       // marks[1] = 1
            instruction(0xb7, 0, 0, 0, 0),
            instruction(0x95, 0, 0, 0, 0),
        ],
    ]
    .concat()
}
