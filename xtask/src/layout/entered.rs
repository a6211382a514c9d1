//! Runs a program with a trap at the start of each of its functions, and records which ones it enters, in order.
//!
//! Each trap is removed when it is hit, so a run has a few thousand stops and is as fast as usual afterwards. The
//! traced program keeps its process: this process becomes the program, and a child of it is the tracer.
#![cfg(target_arch = "x86_64")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use libc::{c_int, c_long, pid_t};

/// `int3`.
const TRAP: u8 = 0xcc;

/// Options of `entered`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Addresses of functions, in hexadecimal, one a line.
    functions: PathBuf,
    /// Where those that are entered go, in a file for each run.
    out: PathBuf,
    /// Only this verb of the program is traced.
    verb: String,
    /// The program, not position-independent, and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 1..)]
    command: Vec<String>,
}

/// Becomes the program.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Some((program, rest)) = args.command.split_first() else {
        bail!("no program is named");
    };
    if rest.first() == Some(&args.verb) {
        trace_this_process(&args.functions, &args.out)?;
    }
    Err(Command::new(program).args(rest).exec()).with_context(|| format!("run {program}"))
}

/// Starts a child that traces this process from its next `exec` on.
fn trace_this_process(functions: &Path, out: &Path) -> Result<()> {
    let list =
        fs::read_to_string(functions).with_context(|| format!("read {}", functions.display()))?;
    let addresses = list.lines().map(|line| u64::from_str_radix(line, 16));
    let addresses: Vec<u64> = addresses.collect::<Result<_, _>>()?;
    let program = pid_t::try_from(std::process::id())?;
    let (waiting, ready) = io::pipe()?;
    // SAFETY: there is one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("fork"),
        0 => {
            drop(waiting);
            let traced = Tracer::seize(program, out).and_then(|mut tracer| {
                drop(ready);
                tracer.follow(&addresses)
            });
            if let Err(error) = &traced {
                eprintln!("entered: {error:#}");
            }
            std::process::exit(i32::from(traced.is_err()));
        }
        _ => {
            drop(ready);
            // No byte is ever written: the read ends when the tracer is attached or gone.
            io::read_to_string(waiting)?;
            Ok(())
        }
    }
}

struct Tracer {
    program: pid_t,
    out: File,
    /// The instruction that each trap replaces.
    under_traps: BTreeMap<u64, u8>,
    /// The functions that were entered, with the instruction that the trap replaced.
    entered: BTreeMap<u64, u8>,
}

impl Tracer {
    fn seize(program: pid_t, out: &Path) -> Result<Self> {
        // SAFETY: no pointers. Signals of the lab's terminal are not for the tracer.
        unsafe { libc::setsid() };
        let out = out.join(program.to_string());
        let out = File::create(&out).with_context(|| format!("make {}", out.display()))?;
        let options = libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK;
        ptrace(libc::PTRACE_SEIZE, program, c_long::from(options)).context("trace")?;
        Ok(Self {
            program,
            out,
            under_traps: BTreeMap::new(),
            entered: BTreeMap::new(),
        })
    }

    /// Follows the program to its end.
    fn follow(&mut self, addresses: &[u64]) -> Result<()> {
        loop {
            let mut status: c_int = 0;
            // SAFETY: the number outlives the call.
            let stopped = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
            if stopped == -1 || (stopped == self.program && !libc::WIFSTOPPED(status)) {
                return Ok(());
            }
            if !libc::WIFSTOPPED(status) {
                continue;
            }
            let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
            let mut passed_on = 0;
            match event {
                libc::PTRACE_EVENT_EXEC
                    if stopped == self.program && self.under_traps.is_empty() =>
                {
                    self.set_traps(addresses)?;
                }
                libc::PTRACE_EVENT_EXEC => {
                    let _gone = ptrace(libc::PTRACE_DETACH, stopped, 0);
                    continue;
                }
                0 if signal != libc::SIGTRAP || !self.remove_trap(stopped)? => {
                    passed_on = c_long::from(signal);
                }
                _ => {}
            }
            // The process may have been killed meanwhile; the next wait shows that.
            let _gone = ptrace(libc::PTRACE_CONT, stopped, passed_on);
        }
    }

    fn set_traps(&mut self, addresses: &[u64]) -> Result<()> {
        let memory = memory(self.program)?;
        for &address in addresses {
            let mut byte = [0];
            memory.read_exact_at(&mut byte, address)?;
            memory.write_all_at(&[TRAP], address)?;
            self.under_traps.insert(address, byte[0]);
        }
        Ok(())
    }

    /// Removes the trap that a thread has hit; false if it is not one of ours.
    fn remove_trap(&mut self, thread: pid_t) -> Result<bool> {
        let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
        // SAFETY: the thread is stopped, and the registers have room here.
        let got = unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, 0, registers.as_mut_ptr()) };
        if got == -1 {
            return Ok(true);
        }
        // SAFETY: it was filled.
        let mut registers = unsafe { registers.assume_init() };
        let at = registers.rip - 1;
        let Some(&byte) = self.under_traps.get(&at) else {
            return Ok(false);
        };
        if self.entered.insert(at, byte).is_none() {
            writeln!(self.out, "{at:x}")?;
        }
        // A child process has a copy of the trap, and other threads may be at it: so each of them removes it.
        memory(thread)?.write_all_at(&[byte], at)?;
        registers.rip = at;
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, 0, &raw const registers) };
        Ok(true)
    }
}

fn memory(process: pid_t) -> Result<File> {
    let path = format!("/proc/{process}/mem");
    let opened = File::options().read(true).write(true).open(&path);
    opened.with_context(|| format!("open {path}"))
}

fn ptrace(request: libc::c_uint, thread: pid_t, data: c_long) -> io::Result<()> {
    // SAFETY: none of the requests that this is for has a pointer in it.
    match unsafe { libc::ptrace(request, thread, 0 as c_long, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
