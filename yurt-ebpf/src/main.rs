//! The eBPF programs.
//!
//! Of `prog/`, `sock.rs` is the socket path: each program is one call that cannot fail. `guard.rs` judges what Pods
//! send, `translate.rs` has them appear with the addresses that were promised to them, `vtep.rs` listens to peers'
//! tunnels. `maps/` has every map.
// A longer function says why it is one. Tables of tests are long.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

mod maps;
mod prog;

/// Reading the licence is how the kernel decides which helpers a program may call.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A loop without end: the verifier refuses it, so a program that could panic never loads.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
