//! The command line, joined with the file that it names, and with what flags of kube-proxy in it mean.
//!
//! The file stands in for flags that are not given: the command line wins, then the environment, then the file, then
//! the default. Of the file, our own document wins over kube-proxy's.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::ffi::OsString;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, CommandFactory as _, Parser as _};

use super::agent::AgentConfig;
use super::file::{self, Decoded, Remark, Setting};
use super::flags::{self, Cli, ProxyArgs};
use super::record::Record;
use crate::error::{PathError, chain};
use crate::text;

/// Bytes of a file that are read: a ConfigMap has no more.
const MOST_BYTES: u64 = 1 << 20;
/// Values of a file: more than any node needs, and each is looked at alone.
const MOST_SETTINGS: usize = 4096;

/// Flags of `run` whose values a running agent can change: all others wait for a restart.
const LIVE: &[&str] = &[
    "closure-failure",
    "compat-all-vips",
    "compat-drop-service",
    "drift-interval",
    "external-ips",
    "kubernetes-via-hub",
    "nodeport-addresses",
    "oom-score-adj",
    "protect",
    "service-cidr",
];

/// Values of flags, by their long names.
type Values = BTreeMap<String, Vec<String>>;

/// What the operator says.
pub struct Said {
    /// The command line, as if it said what the environment and the file do.
    pub cli: Cli,
    /// The same, in words.
    pub words: Vec<OsString>,
    /// The file, to be read again; `None`: there is none.
    pub written: Option<Written>,
    /// What the file says in vain, each with its place.
    pub warnings: Vec<String>,
}

/// A command line and the file that it names, to be read again.
#[derive(Clone, Debug)]
pub struct Written {
    words: Vec<OsString>,
    /// The same, with the node's name and the source where nobody says them.
    without_file: Vec<OsString>,
    path: PathBuf,
    /// What the file sets in the agent as it was started, and as it is now.
    started: Values,
    taken: Values,
}

/// A file that was read again.
pub struct Again {
    /// All that is said now.
    pub config: AgentConfig,
    /// What is in force of it, and else what the agent was started with: to be left for `load`.
    pub record: Record,
    /// The file, to be read again.
    pub written: Written,
    /// As in [`Said`].
    pub warnings: Vec<String>,
    /// Flags that a running agent can change and that have other values than before.
    pub changed: Vec<String>,
    /// Other flags that have other values than at the start.
    pub waiting: Vec<String>,
}

impl Written {
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it again.
    pub fn read(&self) -> Result<Again, Unusable> {
        let Said {
            cli,
            written,
            warnings,
            ..
        } = read(self.words.clone())?;
        let (flags::Command::Run(args), Some(new)) = (cli.command, written) else {
            return Err(Unusable::Settings(Vec::new()));
        };
        let is_live = |flag: &String| LIVE.contains(&&**flag);
        let mut changed = differing(&self.taken, &new.taken);
        changed.retain(is_live);
        let mut waiting = differing(&self.started, &new.taken);
        waiting.retain(|flag| !is_live(flag));
        let config = args.config();
        Ok(Again {
            record: Record::new(&self.words_in_force(&new.taken), &config),
            config,
            written: Self {
                started: self.started.clone(),
                without_file: self.without_file.clone(),
                ..new
            },
            warnings,
            changed: shown(changed),
            waiting: shown(waiting),
        })
    }

    /// A command line of what the agent was started with, and of what it has taken since: the flags with which it
    /// serves.
    fn words_in_force(&self, taken: &Values) -> Vec<OsString> {
        let lenient = lenient();
        let run = lenient.find_subcommand("run");
        let is_live = |flag: &str| LIVE.contains(&flag);
        let started = self.started.iter().filter(|(flag, _)| !is_live(flag));
        let taken = taken.iter().filter(|(flag, _)| is_live(flag));
        let values = started.chain(taken).flat_map(|(flag, values)| {
            let values = values.iter();
            values.filter_map(move |value| word(run?, flag, value))
        });
        self.without_file.iter().cloned().chain(values).collect()
    }
}

/// The flags that have other values in one than in the other.
fn differing(old: &Values, new: &Values) -> Vec<String> {
    let flags: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let flags = flags
        .into_iter()
        .filter(|&flag| old.get(flag) != new.get(flag));
    flags.cloned().collect()
}

fn shown(flags: Vec<String>) -> Vec<String> {
    flags.iter().map(|flag| format!("--{flag}")).collect()
}

/// Why that cannot be taken.
#[derive(Debug)]
pub enum Unusable {
    /// The command line is wrong, or asks for help.
    CommandLine(clap::Error),
    /// A setting of the file or a flag of kube-proxy is: all that are wrong, each with its place.
    Settings(Vec<String>),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(error) => error.fmt(f),
            Self::Settings(problems) => f.write_str(&problems.join("; ")),
        }
    }
}

impl std::error::Error for Unusable {}

/// Reads a command line, and the file that it names.
pub fn read(mut words: Vec<OsString>) -> Result<Said, Unusable> {
    let lenient = lenient();
    let matches = lenient.clone().try_get_matches_from(&words);
    let matches = matches.map_err(Unusable::CommandLine)?;
    let Some(("run", given)) = matches.subcommand() else {
        return parsed(words, None, Vec::new());
    };
    let Some(run) = lenient.find_subcommand("run") else {
        return parsed(words, None, Vec::new());
    };
    if given.value_source("node") == Some(ValueSource::EnvVariable)
        && let Some(node) = given.get_one::<String>("node")
    {
        words.push(format!("--node={node}").into());
    }
    let path = given.get_one::<PathBuf>("config");
    let mut flags = ProxyArgs::given(given);
    if path.is_none() && flags.is_empty() {
        return parsed(words, None, Vec::new());
    }
    if let Some(kubeconfig) = given.get_one::<PathBuf>("kubeconfig") {
        flags.push(("kubeconfig", vec![kubeconfig.display().to_string()]));
    }
    let at = |remark: &Remark| match path {
        Some(path) if !remark.field.starts_with("--") => format!("{}:{remark}", path.display()),
        _ => remark.to_string(),
    };
    let text = path.map(|path| load(path)).transpose();
    let text = text.map_err(|error| Unusable::Settings(vec![chain(&error)]))?;
    let Decoded {
        mut settings,
        mut problems,
        mut warnings,
    } = file::decode(text.as_deref(), &flags, run);
    if settings.len() > MOST_SETTINGS {
        let many = format!("the file has more than {MOST_SETTINGS} values");
        return Err(Unusable::Settings(vec![many]));
    }
    let mut alone = lenient.clone();
    problems.extend(
        settings
            .iter()
            .filter_map(|setting| check(run, &mut alone, setting)),
    );
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.line);
        return Err(Unusable::Settings(problems.iter().map(at).collect()));
    }
    settings.retain(|setting| !is_given(run, given, &setting.flag));
    let mut taken = Values::new();
    for Setting { flag, value, .. } in &settings {
        taken.entry(flag.clone()).or_default().push(value.clone());
    }
    let mut written = path.map(|path| Written {
        words: words.clone(),
        without_file: Vec::new(),
        path: path.clone(),
        started: taken.clone(),
        taken,
    });
    let has = |flag| is_given(run, given, flag) || settings.iter().any(|said| said.flag == flag);
    // As kube-proxy does without them.
    if !has("node") {
        let name = hostname().map_err(|error| Unusable::Settings(vec![chain(&error)]))?;
        words.push(format!("--node={name}").into());
    }
    if !has("source") {
        words.push("--source=kube:".into());
    }
    if let Some(written) = &mut written {
        written.without_file.clone_from(&words);
    }
    let said = |Setting { flag, value, .. }: &Setting| word(run, flag, value);
    words.extend(settings.iter().filter_map(said));
    warnings.sort_by_key(|warning| warning.line);
    parsed(words, written, warnings.iter().map(at).collect())
}

fn parsed(
    words: Vec<OsString>,
    written: Option<Written>,
    warnings: Vec<String>,
) -> Result<Said, Unusable> {
    let cli = Cli::try_parse_from(&words).map_err(Unusable::CommandLine)?;
    Ok(Said {
        cli,
        words,
        written,
        warnings,
    })
}

/// The command line, without what must be there: a file may have that.
fn lenient() -> Command {
    Cli::command().mut_subcommand("run", |run| run.mut_args(|arg| arg.required(false)))
}

fn load(path: &Path) -> Result<String, PathError> {
    let mut text = String::new();
    // A pipe would be waited for, and is gone once it was read.
    let open = || {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("not a regular file")),
        }
    };
    let read = open().and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text));
    read.map_err(PathError::of("read", path))?;
    if text.len() as u64 > MOST_BYTES {
        let large = io::Error::other("it has more than 1 MiB");
        return Err(PathError::of("read", path)(large));
    }
    Ok(text)
}

/// The name of this machine, as kube-proxy takes it for its node's.
fn hostname() -> Result<String, PathError> {
    let path = Path::new("/proc/sys/kernel/hostname");
    let name = std::fs::read_to_string(path).map_err(PathError::of("read", path))?;
    Ok(name.trim().to_lowercase())
}

/// Whether the command line or the environment says it.
fn is_given(run: &Command, given: &ArgMatches, flag: &str) -> bool {
    let arg = run.get_arguments().find(|arg| arg.get_long() == Some(flag));
    let source = arg.and_then(|arg| given.value_source(arg.get_id().as_str()));
    matches!(
        source,
        Some(ValueSource::CommandLine | ValueSource::EnvVariable)
    )
}

/// A setting as a word of the command line; `None`: a flag without a value that is not set.
fn word(run: &Command, flag: &str, value: &str) -> Option<OsString> {
    let arg = run.get_arguments().find(|arg| arg.get_long() == Some(flag));
    let is_switch = arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
    match (is_switch, value) {
        (true, "true") => Some(format!("--{flag}").into()),
        (true, _) => None,
        (false, value) => Some(format!("--{flag}={value}").into()),
    }
}

/// What is wrong with a setting by itself. `alone`: the command line, to be tried with nothing else.
fn check(run: &Command, alone: &mut Command, setting: &Setting) -> Option<Remark> {
    let word = word(run, &setting.flag, &setting.value)?;
    let words = ["yurt-net".into(), "run".into(), word];
    // Building the command anew would cost more than everything else.
    let error = alone.try_get_matches_from_mut(words).err()?;
    let value = text::without_user(&setting.value);
    let what = match (
        error.kind(),
        error.get(ContextKind::ValidValue),
        error.source(),
    ) {
        (ErrorKind::InvalidValue, Some(ContextValue::Strings(known)), _) => {
            format!("{value:?}: expected one of {}", known.join(", "))
        }
        (_, _, Some(source)) => format!("{value:?}: {}", chain(source)),
        _ => format!("{value:?} is no value of it"),
    };
    Some(Remark {
        line: setting.line,
        field: setting.field.clone(),
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;
    use crate::config::flags::RunArgs;

    const PROXY: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    const OWN: &str =
        "---\napiVersion: yurt-net.openyurt.io/v1alpha1\nkind: YurtNetConfiguration\n";

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let words = ["yurt-net", "run", "--node=a", "--source=kube:", "--config"];
        let words = words.map(OsString::from).into_iter().chain([path.into()]);
        let Err(Unusable::Settings(problems)) = read(words.collect()) else {
            panic!("taken")
        };
        assert!(problems[0].contains("not a regular file"), "{problems:?}");
    }

    #[test]
    fn a_file_with_more_values_than_a_node_needs_is_refused() {
        let many = |count: usize| {
            let addresses = vec!["192.0.2.1"; count].join(",");
            run(&format!("{OWN}protect: [{addresses}]\n"), &["--node=a"])
        };
        assert!(many(MOST_SETTINGS).is_ok());
        let problems = many(MOST_SETTINGS + 1).unwrap_err();
        assert!(
            problems[0].contains("more than 4096 values"),
            "{problems:?}"
        );
    }

    /// What `run` is told by a file and by flags.
    fn run(text: &str, flags: &[&str]) -> Result<(Box<RunArgs>, Vec<String>), Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        let words = ["yurt-net", "run", "--config"].map(OsString::from);
        let flags = flags.iter().map(OsString::from);
        let prefix = format!("{}:", path.display());
        let bare = |said: Vec<String>| {
            let said = said
                .iter()
                .map(|line| line.trim_start_matches(&prefix).to_owned());
            said.collect::<Vec<_>>()
        };
        match read(
            words
                .into_iter()
                .chain([path.into()])
                .chain(flags)
                .collect(),
        ) {
            Ok(Said { cli, warnings, .. }) => match cli.command {
                Command::Run(args) => Ok((args, bare(warnings))),
                _ => unreachable!(),
            },
            Err(Unusable::Settings(problems)) => Err(bare(problems)),
            Err(Unusable::CommandLine(error)) => Err(vec![error.to_string()]),
        }
    }

    #[test]
    fn a_file_alone_is_enough_and_its_node_is_this_machine() {
        let (args, warnings) = run(PROXY, &[]).unwrap();
        assert_eq!((&args.node, warnings), (&hostname().unwrap(), vec![]));
        assert_eq!(args.source, ["kube:".parse().unwrap()]);
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_a_list_is_not_joined() {
        let file = format!(
            "{PROXY}hostnameOverride: of-file\n{OWN}source: ['file:/a', 'file:/b']\nguard: enforce\nrepairPeers: true\n"
        );
        let (args, _) = run(&file, &[]).unwrap();
        assert_eq!((&*args.node, args.source.len()), ("of-file", 2));
        assert!(args.config().guard.is_some_and(|guard| guard.enforce));
        assert!(args.devices.repair_peers);
        let (args, _) = run(
            &file,
            &["--node=given", "--source=file:/c", "--guard", "audit"],
        )
        .unwrap();
        assert_eq!(
            (&*args.node, &args.source[..]),
            ("given", &["file:/c".parse().unwrap()][..])
        );
        assert!(args.config().guard.is_some_and(|guard| !guard.enforce));
    }

    #[test]
    fn what_a_flag_refuses_is_refused_of_a_file_with_its_line_and_all_at_once() {
        let file = format!(
            "{PROXY}mode: x\n{OWN}guard: sometimes\nmaxServices: 0\nsource: nonsense\nrepairPeers: false\n"
        );
        let problems = run(&file, &[]).unwrap_err();
        let starts = [
            "3: mode: \"x\": expected one of",
            "7: guard: \"sometimes\": expected one of off, audit, enforce",
            "8: maxServices: \"0\": 0 is not in 1..",
            "9: source: \"nonsense\": source \"nonsense\" is not known",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem}");
        }
    }

    #[test]
    fn what_starts_kube_proxy_starts_this_agent() {
        let flags = "run --hostname-override=Edge-A1 --kubeconfig /k --proxy-mode=iptables --masquerade-all \
                     --cluster-cidr 10.244.0.0/16 --oom-score-adj -998 -v 4 --metrics-bind-address=127.0.0.1:9";
        let words = std::iter::once("yurt-net").chain(flags.split_whitespace());
        let Said { cli, warnings, .. } =
            read(words.map(OsString::from).collect()).unwrap_or_else(|error| panic!("{error}"));
        let Command::Run(args) = cli.command else {
            unreachable!()
        };
        assert_eq!(
            (&*args.node, args.v, args.oom_score_adj),
            ("edge-a1", 4, Some(-998))
        );
        assert_eq!(args.source, ["kube:".parse().unwrap()]);
        assert_eq!(args.policy.kubeconfig, Some("/k".into()));
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        assert!(
            warning.starts_with("--masquerade-all: ignored: "),
            "{warning}"
        );
    }

    #[test]
    fn flags_of_kube_proxy_that_are_wrong_are_told_without_a_file() {
        let words = [
            "yurt-net",
            "run",
            "--proxy-mode=fast",
            "--hostname-override=a1",
        ];
        let error = read(words.map(OsString::from).into())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.starts_with("--proxy-mode: \"fast\": expected one of"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_read_again_tells_what_changes_and_what_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let write = |text: &str| std::fs::write(&path, format!("{OWN}{text}")).unwrap();
        write("externalIps: none\nguard: audit\n");
        let words = ["yurt-net", "run", "--closure-failure=open", "--config"].map(OsString::from);
        let first = read(words.into_iter().chain([path.clone().into()]).collect());
        let first = first
            .unwrap_or_else(|error| panic!("{error}"))
            .written
            .unwrap();
        let told = |again: &Again| (again.changed.join(" "), again.waiting.join(" "));
        // What the command line says is not changed by a file.
        write("externalIps: all\nguard: enforce\nclosureFailure: closed\nprotect: ['192.0.2.1']\n");
        let second = first.read().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            told(&second),
            ("--external-ips --protect".into(), "--guard".into())
        );
        // The same again changes nothing, and still waits.
        let third = second
            .written
            .read()
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(told(&third), (String::new(), "--guard".into()));
        // As it was at the start.
        write("externalIps: none\nguard: audit\n");
        let last = third
            .written
            .read()
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            told(&last),
            ("--external-ips --protect".into(), String::new())
        );
        write("guard: often\n");
        assert!(last.written.read().is_err());
    }

    #[test]
    fn a_password_in_a_file_is_shown_to_nobody() {
        let problems = run(
            &format!("{OWN}source: 'kube:https://u:secret@192.0.2.1'\n"),
            &[],
        );
        assert!(!problems.unwrap_err().concat().contains("secret"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let words = ["yurt-net", "run", "--config", "/no/such/file"].map(OsString::from);
        let error = read(words.into()).err().unwrap().to_string();
        assert!(error.contains("/no/such/file"), "{error}");
    }
}
