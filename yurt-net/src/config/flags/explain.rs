//! Flags of `explain`.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;

use super::place::PlaceArgs;
use super::policy::PolicyArgs;
use super::values::{Destination, Output, service_name};
use crate::source::SourceSpec;

/// `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The Service that is dialled at its ClusterIP, and its port by name or number.
    #[arg(value_name = "NAMESPACE/NAME[:PORT]", value_parser = service_name, required_unless_present = "to", conflicts_with = "to")]
    pub service: Option<String>,
    /// Address of the client, or a Pod that the ledger of this node has.
    #[arg(long, value_name = "ADDR|NAMESPACE/POD")]
    pub from: Client,
    /// What it dials, as `10.96.0.10:80/TCP` or `[fd00::10]:53/UDP`.
    #[arg(long, value_name = "ADDR:PORT/PROTO")]
    pub to: Option<Destination>,
    /// Run the program of the packet path that is in force on a made-up packet as well, and print what it does. As
    /// root, on the node; for clients outside. No flow is left behind.
    #[arg(long)]
    pub live: bool,
    /// The device that the made-up packet comes in by [default: the one with the default route]. For a Pod of this
    /// node, its own.
    #[arg(long, value_name = "NAME", requires = "live")]
    pub device: Option<String>,
    /// Name of the node; with --source.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", requires = "source")]
    pub node: Option<String>,
    /// Ask this source instead of the running agent.
    #[arg(long, value_name = "SRC", requires = "node")]
    pub source: Option<SourceSpec>,
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Policy; with --source.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// Who dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// At this address.
    Address(IpAddr),
    /// A Pod, `namespace/name`.
    Pod(String),
}

impl FromStr for Client {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text.parse(), service_name(text)) {
            (Ok(address), _) => Ok(Self::Address(address)),
            (Err(_), Ok(pod)) if !pod.contains(':') => Ok(Self::Pod(pod)),
            _ => Err("expected an address, or a Pod as NAMESPACE/NAME"),
        }
    }
}
