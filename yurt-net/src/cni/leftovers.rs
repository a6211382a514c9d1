//! Reads the files that another IPAM plugin has left for a network, from a disk that may be failing.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::error::{PathError, chain};
use crate::host::disk::read_whole;
use crate::ledger::adopt::Leftover;

/// More than a container ID and an interface need.
const MAX_BYTES: u64 = 4096;

/// Reads all files; an absent directory has none. A file that cannot be read costs only its own address, which counts
/// as that of an unknown container. host-local makes only regular files; anything else is left out.
pub(super) fn read(directory: &Path, alarms: &mut Vec<String>) -> Result<Vec<Leftover>, PathError> {
    let failed = |path: &Path| PathError::of("read", path);
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(failed(directory))?,
    };
    let mut files = Vec::new();
    for file in listed {
        let file = file.map_err(failed(directory))?;
        let name = file.file_name();
        // Reading a pipe would wait for its writer.
        let (Some(name), Ok(true)) = (name.to_str(), file.file_type().map(|kind| kind.is_file()))
        else {
            continue;
        };
        match read_whole(&file.path(), MAX_BYTES) {
            Ok(contents) => {
                let contents = String::from_utf8_lossy(&contents).into_owned();
                files.push((name.to_owned(), contents));
            }
            // Its container has just gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The names of OpenYurt's files say everything.
            Err(_) if name.parse::<IpAddr>().is_err() => {
                files.push((name.to_owned(), String::new()))
            }
            Err(error) => {
                alarms.push(format!(
                    "{}; {name} is given to nobody while a network namespace of this node has it, and after that when the \
                     runtime's GC or a reboot has given it back: is the disk failing?",
                    chain(&failed(&file.path())(error))
                ));
                files.push((name.to_owned(), format!("unread-{name}")));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_a_crash_has_made_long_costs_its_own_address_and_no_memory() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("10.9.0.2"), "c1\neth0").unwrap();
        let long = fs::File::create(directory.path().join("10.9.0.7")).unwrap();
        // More than this machine has memory for.
        long.set_len(1 << 40).unwrap();
        let mut alarms = Vec::new();
        let mut files = read(directory.path(), &mut alarms).unwrap();
        files.sort();
        let expected = [("10.9.0.2", "c1\neth0"), ("10.9.0.7", "unread-10.9.0.7")];
        assert_eq!(
            files,
            expected.map(|(name, contents)| (name.to_owned(), contents.to_owned()))
        );
        let [alarm] = &alarms[..] else {
            panic!("{alarms:?}");
        };
        let expected = "10.9.0.7: it has 1099511627776 bytes, and no more than 4096 are read; 10.9.0.7 is given to nobody";
        assert!(alarm.contains(expected), "{alarm}");
    }
}
