//! Prints the layout of every map type, for `cargo xtask check`.
//!
//! An example and not a part of xtask, so that the front door opens without the programs' crate.

use std::io::{self, Write as _};

fn main() -> io::Result<()> {
    io::stdout().write_all(yurt_ebpf::abi::layout().as_bytes())
}
