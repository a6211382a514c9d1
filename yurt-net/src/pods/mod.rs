//! What this node knows of its Pods: what each may use and appear with, where it is, and whether it answers.
//!
//! Pure but for `settings`, which are on disk. `members` joins what the ledger, the Pods' objects and the operator say; `guard` makes of it
//! who may send with which address, `translate` who appears with an address that it had. `truth` says where Pods are and `probe` whether
//! they answer, while nobody else tells.

pub mod guard;
pub mod members;
pub mod probe;
pub mod settings;
pub mod translate;
pub mod truth;
