//! What is said of a Pod.

/// Something about a Pod that is not as it should be. The rest goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint {
    /// The Pod, as `namespace/name`.
    pub pod: String,
    /// Its interface.
    pub interface: String,
    /// What, and what to do.
    pub reason: String,
}
