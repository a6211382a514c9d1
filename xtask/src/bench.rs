//! `bench`: speed and size, as ratios in one run.

use anyhow::Result;

use crate::build;
use crate::shell::require_root;

/// Options of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Handed to the bench; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Installs, builds, measures.
pub(crate) fn run(Args { args }: Args) -> Result<()> {
    require_root("the bench")?;
    build::exec_in_lab("bench", args)
}
