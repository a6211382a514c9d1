//! What lives on this machine, as far as a plugin can see: what its processes say of themselves, and which addresses its network namespaces have.

use std::fs;
use std::io;
use std::path::Path;

use crate::host::netns::{self, Netns};
use crate::ledger::adopt::Living;

/// All of it; `None` where something cannot be looked at, or where the namespace of this request is not in sight: then others may not be, either.
///
/// Processes come first. A main plugin that is at work for a container is seen, or it has ended, and then its namespace has the address.
pub(super) fn look(netns: &str) -> Option<Living> {
    let processes = processes().ok()?;
    let namespaces = netns::all().ok()?;
    let own = Netns::open(Path::new(netns)).ok()?.inode();
    if !namespaces.iter().any(|netns| netns.inode() == own) {
        return None;
    }
    let visits = netns::inside(&namespaces, |_| netns::addresses()).ok()?;
    let addresses: io::Result<Vec<_>> = visits.into_iter().map(io::Result::flatten).collect();
    Some(Living {
        addresses: addresses.ok()?.into_iter().flatten().collect(),
        processes,
    })
}

/// The environment of a process that has more rights than this one stays unknown. It is no plugin at work: those have been started as this one was.
fn processes() -> io::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let mut text = Vec::new();
        for file in ["cmdline", "environ", "cgroup"] {
            match fs::read(entry.path().join(file)) {
                Ok(bytes) => text.extend(bytes),
                Err(error) if has_gone(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
            text.push(0);
        }
        all.push(text);
    }
    Ok(all)
}

/// Of a process that has ended since its directory was listed.
fn has_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_process_says_its_arguments_its_environment_and_its_cgroup() {
        let mut child = Command::new("sleep")
            .args(["600"])
            .env("CNI_CONTAINERID", "at-work-for-this-one")
            .spawn()
            .unwrap();
        let is_child = |text: &Vec<u8>| {
            let text = String::from_utf8_lossy(text);
            text.contains("CNI_CONTAINERID=at-work-for-this-one") && text.contains("sleep\x00600")
        };
        // A program has neither in the moment in which it is loaded.
        let is_found = (0..6000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            processes().unwrap().iter().any(is_child)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_found);
    }

    #[test]
    fn where_the_namespace_of_the_request_is_not_in_sight_nothing_is_told() {
        assert!(look("").is_none());
        assert!(look("/nonexistent").is_none());
    }
}
