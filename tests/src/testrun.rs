//! Runs programs on test input (`BPF_PROG_TEST_RUN`), which exists for programs on devices, but not for those on
//! sockets.

use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;

use crate::bpf::bpf;
use crate::bpf::load;
use crate::bpf::pinned;

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// `TC_ACT_UNSPEC`: the next program decides.
pub const NEXT: u32 = u32::MAX;
/// `TC_ACT_SHOT`: dropped.
pub const SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`: on its way somewhere else.
pub const REDIRECT: u32 = 7;
/// The number of bytes by which a program may lengthen a frame.
const ROOM: usize = 64;
/// The device that test input comes from by default: the loopback device of the caller's network namespace.
pub const IFINDEX: u32 = 1;

/// `r0 = -1; exit`: no verdict.
const NO_OPINION: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

/// A program for devices.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// `union bpf_attr`, the part for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

impl Program {
    /// Opens a pinned program.
    pub fn pinned(path: &Path) -> Result<Self> {
        let fd = pinned(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self(fd))
    }

    /// A program that does nothing.
    pub fn empty() -> Result<Self> {
        Self::new(&NO_OPINION).context("load an empty program")
    }

    /// A program with these instructions.
    pub(crate) fn new(instructions: &[u64]) -> Result<Self> {
        Ok(Self(load(BPF_PROG_TYPE_SCHED_CLS, 0, instructions)?))
    }

    /// Its verdict on a frame.
    pub fn verdict(&self, frame: &[u8]) -> Result<u32> {
        self.run(frame, &mut [], 1).map(|(attr, _)| attr.retval)
    }

    /// Its verdict on a frame, and the frame afterwards.
    pub fn pass(&self, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + ROOM];
        let (attr, _) = self.run(frame, &mut out, 1)?;
        out.truncate(usize::try_from(attr.data_size_out)?);
        Ok((attr.retval, out))
    }

    /// The mean time for a frame, over `repeat` runs. Each run gets the frame that the one before has left.
    pub fn time(&self, frame: &[u8], repeat: u32) -> Result<Duration> {
        self.run(frame, &mut [], repeat).map(|(_, time)| time)
    }

    fn run(&self, frame: &[u8], out: &mut [u8], repeat: u32) -> Result<(RunAttr, Duration)> {
        let mut attr = RunAttr {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            data_size_in: u32::try_from(frame.len())?,
            data_in: frame.as_ptr().addr() as u64,
            repeat,
            ..RunAttr::default()
        };
        if !out.is_empty() {
            attr.data_size_out = u32::try_from(out.len())?;
            attr.data_out = out.as_mut_ptr().addr() as u64;
        }
        let start = Instant::now();
        bpf(BPF_PROG_TEST_RUN, &mut attr).context("run a program on a frame")?;
        Ok((attr, start.elapsed()))
    }

    /// Its descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }
}
