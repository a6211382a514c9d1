//! The `yurt-net` command: reads the command line, prints errors, sets the exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 bad usage.

use std::error::Error;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use yurt_net::config::{Cli, Command, LogFormat};
use yurt_net::{agent, cli, selftest};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = match &cli.command {
        Command::Run(args) => args.log_format,
        _ => LogFormat::Text,
    };
    let is_run = matches!(cli.command, Command::Run(_));
    start_log(format, if is_run { "info" } else { "warn" });
    // One thread: the work is small, and every further thread costs memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(&cli.command)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the last word of a command that failed"
            )]
            {
                eprintln!("error: {}", agent::chain(error.as_ref()));
            }
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: &Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Run(args) => agent::run(args).await?,
        Command::Plan(args) => cli::verbs::plan(args)?,
        Command::Explain(args) => cli::verbs::explain(args).await?,
        Command::Status(args) => cli::verbs::status(args).await?,
        Command::Cleanup(args) => cli::verbs::cleanup(args)?,
        Command::Probe => selftest::probe()?,
        Command::Check(args) => {
            let is_ok = cli::check::check(args).await?;
            return Ok(if is_ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs to stderr: stdout belongs to results. `RUST_LOG` overrides the level.
fn start_log(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let is_text = match format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    if is_text {
        log.with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .init();
    } else {
        log.json().flatten_event(true).init();
    }
}
