//! A plugin that writes down, in the file system in which it finds itself, by which name it was called, what it was
//! asked, and about what. The test `host` compiles it, as one static program. As the first process of a namespace it
//! waits for a file instead.

use std::fs::{OpenOptions, read_to_string};
use std::io::{Read as _, Write as _};
use std::process::exit;
use std::time::Duration;

fn main() -> std::io::Result<()> {
    if std::process::id() == 1 {
        loop {
            // A file without a whole line is one that is being written.
            let done = read_to_string("/done").unwrap_or_default();
            if let Some(code) = done.strip_suffix('\n') {
                exit(code.parse().unwrap_or(1));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let name = std::env::args().next().unwrap_or_default();
    let command = std::env::var("CNI_COMMAND").unwrap_or_default();
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let mut seen = OpenOptions::new().create(true).append(true).open("/seen")?;
    seen.write_all(format!("{name} {command}\n").as_bytes())?;
    if command == "VERSION" {
        println!(
            r#"{{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}}"#
        );
    }
    Ok(())
}
