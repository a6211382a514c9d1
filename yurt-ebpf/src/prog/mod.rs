//! The hooks. Each reads what the kernel hands it, has pure code decide, and does what was decided.

mod affinity;
mod edge;
mod guard;
mod say;
mod skb;
mod sock;
mod tell;
mod translate;
mod vtep;
