//! Command lines, shown before they run.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Prints one line. A closed pipe is no reason to stop, let alone to panic.
pub(crate) fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// The workspace root: where every command runs.
pub(crate) fn root() -> &'static Path {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member)
}

/// Where cargo puts what it builds for the host.
pub(crate) fn target_dir() -> PathBuf {
    let configured = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(configured)
}

/// The path of a program, found on `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Whether this process has root's rights.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Fails at once, before something fails late for lack of root.
pub(crate) fn require_root(what: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "{what} needs root (network namespaces, eBPF); run: sudo env PATH=\"$PATH\" cargo xtask ..."
        );
    }
    Ok(())
}

/// A command line: what is shown is what runs.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    words: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    dir: Option<PathBuf>,
}

impl Line {
    /// A line of words without blanks in them. [`Self::arg`] adds other words.
    pub(crate) fn new(words: &str) -> Self {
        Self {
            words: words.split_whitespace().map(OsString::from).collect(),
            env: Vec::new(),
            dir: None,
        }
    }

    /// Adds one word.
    pub(crate) fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Adds words.
    pub(crate) fn args<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Runs in this directory instead of the workspace root.
    pub(crate) fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Shows and runs the line. Any exit status but 0 is an error.
    pub(crate) fn run(&self) -> Result<()> {
        say(format_args!("$ {self}"));
        let status = self
            .command()
            .status()
            .with_context(|| self.not_started())?;
        if !status.success() {
            bail!("`{self}` failed ({status})");
        }
        Ok(())
    }

    /// Shows and runs the line, with its output in a file. Returns whether it succeeded.
    pub(crate) fn run_into(&self, log: &Path) -> Result<bool> {
        say(format_args!("$ {self}"));
        let open = || {
            let file = File::create(log)?;
            Ok::<_, io::Error>((file.try_clone()?, file))
        };
        let (out, err) = open().with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let status = command.status().with_context(|| self.not_started())?;
        Ok(status.success())
    }

    /// Shows the line and replaces this process by it: Ctrl-C and the exit status are the command's own.
    pub(crate) fn exec(&self) -> Result<Infallible> {
        say(format_args!("$ {self}"));
        Err(self.command().exec()).with_context(|| self.not_started())
    }

    /// The output of the line, which is not shown; an error if it fails.
    pub(crate) fn output(&self) -> Result<String> {
        let output = self
            .command()
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.not_started())?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`{self}` failed ({}): {}",
                output.status,
                message.trim().lines().last().unwrap_or("no message")
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self) -> Command {
        let (program, args) = match self.words.split_first() {
            Some((program, args)) => (program.as_os_str(), args),
            None => (OsStr::new(""), &[][..]),
        };
        let mut command = Command::new(program);
        command
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.as_deref().unwrap_or(root()));
        command
    }

    fn not_started(&self) -> String {
        let program = self.words.first().map(|word| word.to_string_lossy());
        let program = program.unwrap_or_default();
        format!("cannot run `{program}` (if it is missing, `cargo xtask setup` installs it)")
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dir) = &self.dir {
            let dir = dir.strip_prefix(root()).unwrap_or(dir);
            write!(f, "cd {} && ", quoted(dir.as_os_str()))?;
        }
        for (name, value) in &self.env {
            write!(f, "{name}={} ", quoted(value))?;
        }
        let words: Vec<_> = self.words.iter().map(|word| quoted(word)).collect();
        f.write_str(&words.join(" "))
    }
}

/// The word as one would type it in a shell.
fn quoted(word: &OsStr) -> Cow<'_, str> {
    let text = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_as_one_would_type_it() {
        let line = Line::new("cargo build -p x")
            .arg("two words")
            .env("RUSTFLAGS", "-C a -C b");
        assert_eq!(
            line.to_string(),
            "RUSTFLAGS='-C a -C b' cargo build -p x 'two words'"
        );
    }

    #[test]
    fn a_missing_program_is_an_error_that_names_setup() {
        let error = Line::new("no-such-program-here").output().unwrap_err();
        assert!(format!("{error:#}").contains("cargo xtask setup"));
    }
}
