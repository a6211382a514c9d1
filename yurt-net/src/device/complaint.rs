//! Faults of single Pods.

/// A fault of a Pod's interface, which affects nothing else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint {
    /// The Pod, as `namespace/name`.
    pub pod: String,
    /// Its interface.
    pub interface: String,
    /// What is wrong, and what to do.
    pub reason: String,
}
