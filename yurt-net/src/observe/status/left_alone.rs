//! ClusterIPs that are left to a process of this node.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::table::ServiceTable;

/// A ClusterIP that is also on an interface of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// The address.
    pub address: IpAddr,
    /// `namespace/name` of the Service that it belongs to.
    pub service: String,
}

impl LeftAlone {
    /// Those of a table.
    pub fn all(table: &ServiceTable) -> Vec<Self> {
        let owner = |address: &IpAddr| {
            let mut entries = table.services.iter();
            let entry = entries.find(|entry| {
                let mut frontends = entry.frontends.iter();
                frontends.any(|f| f.address == *address && table.leaves_alone(f))
            })?;
            Some(Self {
                address: *address,
                service: format!("{}/{}", entry.key.namespace, entry.key.name),
            })
        };
        table.on_node.iter().filter_map(owner).collect()
    }

    pub(super) fn write(&self, out: &mut String) -> std::fmt::Result {
        use std::fmt::Write as _;
        let Self { address, service } = self;
        writeln!(
            out,
            "left alone    {address} of {service}: an interface of this node has it, so what listens there serves it"
        )
    }
}
