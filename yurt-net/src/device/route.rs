//! Routes of a node.

use ipnetwork::IpNetwork;

/// A route of the node that is no default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// To where.
    pub prefix: IpNetwork,
    /// Out of which device, to neighbours there; `None`: through a gateway, or to nowhere.
    pub link: Option<u32>,
    /// It leads to no host at all, as the one that keeps a node's whole block from leaving by the default route.
    pub is_hole: bool,
    /// It was made by an agent or a plugin of ours.
    pub is_ours: bool,
}
