//! The `yurt-net` command.
fn main() {}
