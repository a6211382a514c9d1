//! Which containers run on this machine, as far as a plugin can see: from the processes that name them, and from the
//! addresses that network namespaces have.
//!
//! Any tenant may start processes with megabytes of arguments and environment. So only a bounded part of each process
//! is read, the environment only of processes that may be plugins, and the search ends after [`PATIENCE`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::host::netns::{self, Netns};
use crate::ledger::adopt::{Living, Words};

/// How long a look may take: a hundred times as long as it takes on a board with a few hundred processes.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bound on the arguments of a process; the bound on its environment is this plus the size of our own. A shim has
/// the ID among its first arguments. The environment of a plugin that is at work is the runtime's, as ours is, and a
/// few variables more.
const MOST_BYTES: u64 = 64 << 10;

/// The signs of life of these containers. `None` if something cannot be examined, or not in time, or if the namespace
/// of this request is not visible: then others may not be visible either.
pub(super) fn look(netns: &str, containers: BTreeSet<String>) -> Option<Living> {
    let netns = netns.to_owned();
    within(PATIENCE, move || see(&netns, &containers)).flatten()
}

/// The result of this, if it comes within this time. After that, it is left to end with this process.
fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::Builder::new().name("living".to_owned());
    thread.spawn(move || drop(done.send(work()))).ok()?;
    wait.recv_timeout(patience).ok()
}

/// Processes come first: if a main plugin is at work for a container, it is seen, or it has ended and the namespace has
/// the address.
fn see(netns: &str, containers: &BTreeSet<String>) -> Option<Living> {
    let named = named(containers).ok()?;
    let namespaces = netns::all().ok()?;
    let own = Netns::open(Path::new(netns)).ok()?.inode();
    if !namespaces.iter().any(|netns| netns.inode() == own) {
        return None;
    }
    let visits = netns::inside(&namespaces, |_| netns::addresses()).ok()?;
    let addresses: io::Result<Vec<_>> = visits.into_iter().map(io::Result::flatten).collect();
    Some(Living {
        addresses: addresses.ok()?.into_iter().flatten().collect(),
        named,
    })
}

/// The containers that a process of this machine names.
fn named(containers: &BTreeSet<String>) -> io::Result<BTreeSet<String>> {
    let words = Words::new(containers.iter().map(String::as_str));
    let own = read(Path::new("/proc/self/environ"), u64::MAX)?;
    let most_environment = MOST_BYTES.saturating_add(own.len().try_into().unwrap_or(u64::MAX));
    let user = fs::metadata("/proc/self")?.uid();
    let mut named = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = entry.path();
        let mut hear = |file: &str, most: u64| -> io::Result<()> {
            let text = read(&process.join(file), most)?;
            named.extend(words.named_in(&text).map(str::to_owned));
            Ok(())
        };
        hear("cmdline", MOST_BYTES)?;
        hear("cgroup", MOST_BYTES)?;
        // Runtimes run all plugins as one user.
        if fs::metadata(&process).is_ok_and(|process| process.uid() == user) {
            hear("environ", most_environment)?;
        }
    }
    Ok(named)
}

/// Reads a file of a process, up to a limit; nothing if the process has ended since its directory was listed. The
/// environment of a process with more rights than this one stays unknown. Such a process is no plugin at work: those
/// were started as this one was.
fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = File::open(file).and_then(|file| file.take(most).read_to_end(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if has_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => return Err(error),
    }
    Ok(text)
}

/// Whether the process has ended since its directory was listed.
fn has_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn only(container: &str) -> BTreeSet<String> {
        BTreeSet::from([container.to_owned()])
    }

    /// Waits until this child names the container: while a program is being loaded, it has neither arguments nor
    /// environment.
    fn is_named(container: &str, child: &mut Child) -> bool {
        let is_named = (0..6000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            !named(&only(container)).unwrap().is_empty()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        is_named
    }

    #[test]
    fn a_process_names_a_container_in_its_arguments_or_its_environment() {
        let mut sleep = Command::new("sh");
        let in_arguments = sleep.args(["-c", "read line; sleep 600", "argued-by-this-one"]);
        in_arguments.stdin(std::process::Stdio::piped());
        assert!(is_named(
            "argued-by-this-one",
            &mut in_arguments.spawn().unwrap()
        ));
        let mut sleep = Command::new("sleep");
        let in_environment = sleep
            .arg("600")
            .env("CNI_CONTAINERID", "at-work-for-this-one");
        assert!(is_named(
            "at-work-for-this-one",
            &mut in_environment.spawn().unwrap()
        ));
        assert!(
            named(&only("nobody-is-at-work-for-this-one"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn of_a_file_no_more_is_read_than_asked_for() {
        assert_eq!(read(Path::new("/dev/zero"), 4096).unwrap().len(), 4096);
        assert_eq!(read(Path::new("/proc/0/cmdline"), 4096).unwrap(), b"");
    }

    #[test]
    fn where_the_namespace_of_the_request_is_not_in_sight_nothing_is_told() {
        assert!(look("", only("c1")).is_none());
        assert!(look("/nonexistent", only("c1")).is_none());
    }

    #[test]
    fn what_takes_too_long_is_not_waited_for() {
        let (end, wait) = mpsc::channel::<()>();
        assert_eq!(within(Duration::ZERO, move || wait.recv()), None);
        drop(end);
        assert_eq!(within(PATIENCE, || 1), Some(1));
    }

    #[test]
    fn of_an_environment_that_no_plugin_has_only_the_beginning_is_read() {
        // The variables are in this order.
        let mut child = Command::new("sleep");
        child
            .arg("600")
            .env_clear()
            .env("A", "in-the-beginning-of-this-one");
        for n in 10..20 {
            child.env(format!("B{n}"), "x".repeat(100_000));
        }
        child
            .env("C", "in-the-end-of-this-one")
            .env("PATH", "/usr/bin:/bin");
        let mut child = child.spawn().unwrap();
        let both = ["in-the-beginning-of-this-one", "in-the-end-of-this-one"].map(str::to_owned);
        let mut found = BTreeSet::new();
        for _ in 0..6000 {
            found = named(&both.clone().into()).unwrap();
            if !found.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, only("in-the-beginning-of-this-one"));
    }
}
