//! Flags of `flows`.

use std::net::SocketAddr;
use std::str::FromStr;

use clap::Args;
use ipnetwork::IpNetwork;

use super::place::PlaceArgs;
use super::values::{Output, service_name};

/// `flows`.
#[derive(Args, Clone, Debug)]
pub struct FlowsArgs {
    /// Only those of clients at this address, or in this prefix.
    #[arg(long, value_name = "ADDR")]
    pub from: Option<IpNetwork>,
    /// Only those to this address, prefix, or address and port, be it what the client dialled or its backend; or to
    /// this Service.
    #[arg(long, value_name = "ADDR|NAMESPACE/NAME")]
    pub to: Option<To>,
    /// Print no more than this many, the latest ones.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub limit: usize,
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// Which flows are listed, by where their clients dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// To addresses.
    Network(IpNetwork),
    /// To a port of an address.
    Port(SocketAddr),
    /// To a Service, `namespace/name`, or to one of its ports, `namespace/name:port`.
    Service(String),
}

impl FromStr for To {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(network) = text.parse() {
            Ok(Self::Network(network))
        } else if let Ok(port) = text.parse() {
            Ok(Self::Port(port))
        } else {
            service_name(text).map(Self::Service).map_err(|_service_alone| {
                "expected an address, a prefix, an address and port, or a Service as NAMESPACE/NAME"
            })
        }
    }
}
