//! Flags of `monitor`.

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::place::PlaceArgs;
use super::values::{Output, service_name};
use crate::dataplane::events::reasons;

/// `monitor`.
#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    /// Only what dials this Service, or this port of it.
    #[arg(long, value_name = "NAMESPACE/NAME[:PORT]", value_parser = service_name)]
    pub service: Option<String>,
    /// Only what this Pod of this node is refused.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_name)]
    pub pod: Option<String>,
    /// Only for these reasons, by the names of their counters.
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = PossibleValuesParser::new(reasons()))]
    pub reason: Vec<String>,
    /// End after this many refusals and drops.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Form of the output; as JSON one object a line.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// A Pod, `namespace/name`.
fn pod_name(text: &str) -> Result<String, &'static str> {
    service_name(text).map_err(|_service| "expected a Pod as NAMESPACE/NAME")
}
