//! Routes of a node.

use ipnetwork::IpNetwork;

/// A route of the node other than a default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination.
    pub prefix: IpNetwork,
    /// The device that it leads out of, to neighbours there; `None` if it has a gateway or leads nowhere.
    pub link: Option<u32>,
    /// Whether it leads to no host at all, such as one that keeps the node's whole block off the default route.
    pub is_hole: bool,
    /// Whether an agent or a plugin of ours made it.
    pub is_ours: bool,
}
