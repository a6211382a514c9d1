//! The `yurt-net` command: reads the command line, prints errors, sets the exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 bad usage or a bad configuration file.
// A longer function says why it is one. Tables of tests are long.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::error::Error;
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use yurt_net::cni::Plugin;
use yurt_net::config::flags::LogFormat;
use yurt_net::config::{self, Command, Record, Said, Unusable, Written};
use yurt_net::host::process;
use yurt_net::observe::selftest;
use yurt_net::output::{LimitedLog, LossyLog};
use yurt_net::text::{self, Log, LogStyle};
use yurt_net::{agent, cli, error, output};

/// How long work that was begun may take when all else has ended.
const LAST_WORK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    process::begin();
    // A container runtime waits for plugins: they come before all that only the agent needs.
    let program = std::env::args_os().next().unwrap_or_default();
    if let Some(plugin) = Plugin::named(program.as_ref()) {
        return plugin.main();
    }
    let Said {
        cli,
        words,
        written,
        warnings,
    } = match config::read(std::env::args_os().collect()) {
        Ok(said) => said,
        Err(Unusable::CommandLine(error)) => return explain_usage(error),
        Err(Unusable::Settings(problems)) => {
            for problem in problems {
                output::complain(format_args!("error: {}", text::line(&problem)));
            }
            return ExitCode::from(2);
        }
    };
    let (format, level) = match &cli.command {
        Command::Run(args) => (args.log_format, level(args.v)),
        _ => (LogFormat::Text, LevelFilter::WARN),
    };
    start_log(format, level);
    for warning in warnings {
        warn!("{warning}");
    }
    // One thread: the work is small, and every further thread costs memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(dispatch(&cli.command, &words, written));
            // Work on its other threads may end, as writes to the disk do. A look-up of a name may take half a minute.
            runtime.shutdown_timeout(LAST_WORK);
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let reason = error::chain(error.as_ref());
            output::complain(format_args!("error: {}", text::line(&reason)));
            ExitCode::FAILURE
        }
    }
}

/// What klog logs at a verbosity.
fn level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0..=3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        5.. => LevelFilter::TRACE,
    }
}

/// Help, the version, or what is wrong with the command line: clap writes it in colours, where they are wanted. It
/// repeats the value that is wrong, which may have a password in it.
fn explain_usage(mut error: clap::Error) -> ExitCode {
    let kinds = [
        ContextKind::InvalidValue,
        ContextKind::InvalidArg,
        ContextKind::InvalidSubcommand,
    ];
    for kind in kinds {
        if let Some(ContextValue::String(said)) = error.get(kind)
            && let Cow::Owned(shown) = text::without_user(said)
        {
            error.insert(kind, ContextValue::String(shown));
        }
    }
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    match error.print() {
        Err(failed) if !error.use_stderr() && failed.kind() != ErrorKind::BrokenPipe => {
            output::complain(format_args!("error: write to standard output: {failed}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(code),
    }
}

async fn dispatch(
    command: &Command,
    words: &[OsString],
    written: Option<Written>,
) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Run(args) => {
            let config = args.config();
            let record = Record::new(words, &config);
            agent::run(config, record, written).await?;
        }
        Command::Load(args) => cli::load::load(args).await?,
        Command::Plan(args) => cli::verbs::plan(args).await?,
        Command::Explain(args) => cli::explain::explain(args).await?,
        Command::Status(args) => cli::verbs::status(args).await?,
        Command::Services(args) => cli::services::services(args).await?,
        Command::Flows(args) => cli::flows::flows(args).await?,
        Command::Monitor(args) => cli::monitor::monitor(args).await?,
        Command::Ledger(args) => cli::ledger::ledger(args)?,
        Command::Cni(args) => cli::cni::cni(args)?,
        Command::Cleanup(args) => cli::verbs::cleanup(args).await?,
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

/// Logs to stderr: stdout belongs to results. `RUST_LOG` overrides the level, as `debug` or
/// `yurt_net::plan=trace,info`.
fn start_log(format: LogFormat, level: LevelFilter) {
    let filter = std::env::var("RUST_LOG")
        .ok()
        .and_then(|directives| directives.parse().ok());
    let filter: Targets = filter.unwrap_or_else(|| {
        // Each failed request is an error to it; here it is one of many tries, and said once.
        let quiet = ("kube_client", LevelFilter::OFF);
        Targets::new().with_default(level).with_targets([quiet])
    });
    let is_terminal = std::io::stderr().is_terminal();
    let is_text = match format {
        LogFormat::Auto => is_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let style = if is_text {
        LogStyle::Text
    } else {
        LogStyle::Json
    };
    let lines = LossyLog::new(output::standard_error(), style);
    let writer = LimitedLog::new(Log::new(lines, style), style);
    // A log that cannot be written is lost, and costs nothing else: the library would complain of it to stderr, and
    // panic.
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .log_internal_errors(false);
    let layer = match style {
        LogStyle::Text => layer.with_target(false).with_ansi(false).boxed(),
        LogStyle::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .init();
}
