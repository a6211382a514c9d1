//! The files that another IPAM plugin has left for a network, as they are on a disk that may be failing.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::Path;

use crate::error::{PathError, chain};
use crate::retain::adopt::Leftover;

/// More than two words of a runtime.
const MAX_BYTES: u64 = 4096;

/// Reads all of them; none where there is no such directory. A file that cannot be read costs its address alone: somebody has it, who is not
/// known by any other name than that. What is no regular file is none of host-local's.
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
        // A pipe would be waited for.
        let (Some(name), Ok(true)) = (name.to_str(), file.file_type().map(|kind| kind.is_file()))
        else {
            continue;
        };
        let mut contents = Vec::new();
        let read = File::open(file.path())
            .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut contents));
        match read {
            Ok(_) => {
                let contents = String::from_utf8_lossy(&contents).into_owned();
                files.push((name.to_owned(), contents));
            }
            // Its container has just gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // OpenYurt's files say all by their names.
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
