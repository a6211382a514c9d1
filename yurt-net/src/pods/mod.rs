//! What this node knows of its Pods: which addresses each may use and appears with, where it is, and whether it
//! answers.
//!
//! Pure, except for `settings`, which are on disk. `members` joins the ledger, the Pods' objects and the operator's
//! settings. From that, `guard` decides which addresses a Pod may send with, and `translate` which earlier address it
//! appears with. While the cloud does not say so, `truth` knows where Pods are, and `probe` whether they answer.

pub mod guard;
pub mod members;
pub mod probe;
pub mod settings;
pub mod translate;
pub mod truth;
