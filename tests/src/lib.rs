//! The lab: nodes as namespaces.
