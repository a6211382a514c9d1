//! The command line: words separated by line feeds, and the sources that it names.
#![no_main]

use clap::Parser as _;
use libfuzzer_sys::fuzz_target;
use yurt_net::config::{Cli, Command};
use yurt_net::source::SourceSpec;

fuzz_target!(|text: &str| {
    if let Ok(source) = text.parse::<SourceSpec>() {
        is_read_as_written(&source);
    }
    let words = std::iter::once("yurt-net").chain(text.split('\n'));
    let Ok(cli) = Cli::try_parse_from(words) else {
        return;
    };
    match cli.command {
        Command::Run(args) => {
            args.source.iter().for_each(is_read_as_written);
            drop(args.config());
        }
        Command::Plan(args) => {
            is_read_as_written(&args.source);
            drop(args.policy.config(&args.node));
        }
        Command::Explain(args) => assert!(args.source.is_some() == args.node.is_some()),
        Command::Load(_)
        | Command::Status(_)
        | Command::Services(_)
        | Command::Flows(_)
        | Command::Monitor(_)
        | Command::Check(_)
        | Command::Cleanup(_)
        | Command::Ledger(_)
        | Command::Cni(_)
        | Command::Probe => {}
    }
});

/// A checkpoint is known by the source that it came from, as text.
fn is_read_as_written(source: &SourceSpec) {
    let text = source.to_string();
    assert_eq!(text.parse::<SourceSpec>().as_ref(), Ok(source), "{text}");
}
