//! Retention: `yurt-ipam` and `yurt-cni` as a container runtime calls them, with the plugins of Debian's
//! `containernetworking-plugins`, in network namespaces that the test makes. Needs root.

mod agent;
mod chained;
mod errors;
mod guard;
mod habits;
mod host;
mod ipam;
mod migration;
mod offline;
mod power;
mod probes;
mod translate;
