//! `demo`: service closure on real sockets, in a lab of network namespaces.

use anyhow::Result;

use crate::build;
use crate::shell::require_root;

/// Options of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Handed to the demo; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Installs, builds, shows.
pub(crate) fn run(Args { args }: Args) -> Result<()> {
    require_root("the demo")?;
    build::exec_in_lab("demo", args)
}
