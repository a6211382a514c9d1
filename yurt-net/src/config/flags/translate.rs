//! Flags for translation: Pods that keep an address which they were not given again.

use clap::{Args, ValueEnum};
use ipnetwork::IpNetwork;

use crate::pods::translate::Policy;

/// Pods that have other addresses than were promised to them.
#[derive(Args, Clone, Debug)]
pub struct TranslateArgs {
    /// Whether a Pod that was given another address than it had is reached at the one that it had, and appears with it,
    /// unless its annotation yurt-net.openyurt.io/keep-address says otherwise (`true`, `false`). See docs/retention.md.
    #[arg(long, value_enum, default_value = "off")]
    pub translate: TranslateArg,
    /// Prefix that the node's IPAM was configured to give to nobody any more; repeatable. Where that IPAM is not
    /// yurt-ipam, only addresses of such prefixes are kept for Pods that were given others.
    #[arg(long, value_name = "CIDR")]
    pub translate_exclusive: Vec<IpNetwork>,
}

/// Whether Pods are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TranslateArg {
    /// Only Pods whose annotation asks for it.
    Off,
    /// All Pods but those whose annotation declines it.
    On,
}

impl TranslateArgs {
    /// The same.
    pub fn policy(&self) -> Policy {
        Policy {
            is_on: self.translate == TranslateArg::On,
            exclusive: self.translate_exclusive.clone(),
        }
    }
}
