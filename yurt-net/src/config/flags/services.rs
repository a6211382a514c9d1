//! Flags of `services`.

use clap::{Args, ValueEnum};

use super::place::PlaceArgs;
use super::values::service_name;

/// `services`.
#[derive(Args, Clone, Debug)]
pub struct ServicesArgs {
    /// Only this Service, or this port of it; with the endpoints that take no traffic, and why.
    #[arg(value_name = "NAMESPACE/NAME[:PORT]", value_parser = service_name)]
    pub service: Option<String>,
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Form,
}

/// Form of the output of `services`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A line for each frontend, with its first endpoints.
    Table,
    /// The same with all endpoints, source ranges and session affinity.
    Wide,
    /// For programs.
    Json,
    /// The same as YAML.
    Yaml,
}
