//! Flags of kube-proxy that are none of ours: each is a field of its configuration, under another name.

use clap::error::Error;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::file::{FIELDS, FLAGGED, Shape};

/// Taken where kube-proxy was started before; `config::read` makes settings of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProxyArgs;

impl ProxyArgs {
    /// Their names, and the types of their values.
    fn all() -> impl Iterator<Item = (&'static str, Shape)> {
        let fields = FIELDS.iter().map(|field| (field.flag, field.shape));
        let others = FLAGGED.iter().map(|flagged| (flagged.flag, flagged.shape));
        fields.chain(others).filter(|(flag, _)| !flag.is_empty())
    }

    /// Those that were given, with their values.
    pub(crate) fn given(matches: &ArgMatches) -> Vec<(&'static str, Vec<String>)> {
        let given = Self::all().filter_map(|(flag, _)| {
            // Some have another type: they are ours.
            let values = matches.try_get_many::<String>(flag).ok()??;
            Some((flag, values.cloned().collect()))
        });
        given.collect()
    }
}

impl Args for ProxyArgs {
    fn augment_args(mut command: Command) -> Command {
        for (flag, shape) in Self::all() {
            if OURS.contains(&flag) {
                continue;
            }
            let arg = Arg::new(flag).long(flag).hide(true);
            let arg = arg.action(ArgAction::Append).allow_hyphen_values(true);
            command = command.arg(match shape {
                Shape::Bool => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                _ => arg.value_name("VALUE"),
            });
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ProxyArgs {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), Error> {
        Ok(())
    }
}

/// Flags that both have, with the same meaning.
const OURS: &[&str] = &[
    "healthz-bind-address",
    "kubeconfig",
    "metrics-bind-address",
    "nodeport-addresses",
    "oom-score-adj",
    "v",
];
