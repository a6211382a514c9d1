//! The MACs that the node's own devices should have, on disk.
//!
//! ```text
//! 1a2b3c4d {"device":"flannel.1","mac":"0a:58:0a:f4:01:00"}
//! ```
//!
//! A line is written like one of the ledger: a CRC-32 of what follows the space, then JSON. A damaged line loses only
//! its own device. The file is written under another name and then renamed, so after a power cut it is either the old
//! one or the new one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::is_unicast;
use crate::device::Mac;
use crate::error::PathError;
use crate::host::disk::Disk;

const NAME: &str = "vtep";
const NEW: &str = "vtep.new";
/// More than the records of any node need.
const MAX_BYTES: u64 = 1 << 16;

#[derive(Serialize, Deserialize)]
struct Line {
    device: String,
    mac: Mac,
}

/// Reads the records, and the number of damaged lines. An absent file has no records.
pub fn load(disk: &impl Disk) -> Result<(BTreeMap<String, Mac>, usize), PathError> {
    let mut bytes = Vec::new();
    let read = disk
        .read(NAME)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Default::default()),
        Err(source) => Err(PathError::of("read", &disk.path(NAME))(source)),
        Ok(_) => Ok(decode(&bytes)),
    }
}

/// Writes the records. They are on the medium when this returns.
pub fn save(disk: &mut impl Disk, records: &BTreeMap<String, Mac>) -> Result<(), PathError> {
    let written = encode(records).and_then(|bytes| {
        let mut file = disk.create(NEW)?;
        file.write_all(&bytes)?;
        disk.sync_file(&file)?;
        disk.rename(NEW, NAME)?;
        disk.sync()
    });
    written.map_err(PathError::of("write", &disk.path(NAME)))
}

fn encode(records: &BTreeMap<String, Mac>) -> io::Result<Vec<u8>> {
    let mut out = String::new();
    for (device, &mac) in records {
        let line = Line {
            device: device.clone(),
            mac,
        };
        let json = serde_json::to_string(&line)?;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:08x} {json}", crc32fast::hash(json.as_bytes()));
    }
    Ok(out.into_bytes())
}

fn decode(bytes: &[u8]) -> (BTreeMap<String, Mac>, usize) {
    let mut records = BTreeMap::new();
    let mut damaged = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        match checked(line) {
            Some(Line { device, mac }) => {
                records.insert(device, mac);
            }
            None => damaged += 1,
        }
    }
    (records, damaged)
}

fn checked(line: &[u8]) -> Option<Line> {
    let (crc, json) = str::from_utf8(line)
        .ok()?
        .strip_suffix('\n')?
        .split_once(' ')?;
    let is_whole = u32::from_str_radix(crc, 16) == Ok(crc32fast::hash(json.as_bytes()));
    let line: Line = serde_json::from_str(json).ok().filter(|_| is_whole)?;
    is_unicast(line.mac).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::disk::memory::Memory;

    fn records(macs: &[(&str, u8)]) -> BTreeMap<String, Mac> {
        let macs = macs.iter();
        macs.map(|&(name, last)| (name.to_owned(), Mac([2, 0, 0, 0, 0, last])))
            .collect()
    }

    #[test]
    fn what_is_saved_is_loaded_and_no_file_is_no_record() {
        let mut disk = Memory::default();
        assert_eq!(load(&disk).unwrap(), (BTreeMap::new(), 0));
        let records = records(&[("flannel.1", 1), ("cni0", 2)]);
        save(&mut disk, &records).unwrap();
        assert_eq!(load(&disk).unwrap(), (records, 0));
    }

    #[test]
    fn a_damaged_line_costs_its_own_device() {
        let mut disk = Memory::default();
        save(
            &mut disk,
            &records(&[("flannel-v6.1", 1), ("flannel.1", 2)]),
        )
        .unwrap();
        let mut bytes = disk.get(NAME).unwrap();
        bytes[40] ^= 1;
        disk.put(NAME, &bytes);
        assert_eq!(load(&disk).unwrap(), (records(&[("flannel.1", 2)]), 1));
    }

    #[test]
    fn after_a_power_cut_at_any_moment_the_old_or_the_new_records_are_there() {
        let (old, new) = (records(&[("flannel.1", 1)]), records(&[("flannel.1", 2)]));
        for operation in 1..=8 {
            for luck in 0..200 {
                let mut disk = Memory::default();
                save(&mut disk, &old).unwrap();
                disk.expect(operation, crate::host::disk::memory::Trouble::Crashes);
                let saved = save(&mut disk, &new);
                let (found, damaged) = load(&disk.after_power_cut(luck)).unwrap();
                assert_eq!(damaged, 0);
                assert!(
                    found == new || (saved.is_err() && found == old),
                    "{found:?}"
                );
            }
        }
    }

    #[test]
    fn a_full_or_read_only_disk_is_an_error_that_names_the_file_and_keeps_the_old_one() {
        let old = records(&[("flannel.1", 1)]);
        let mut disk = Memory::default();
        save(&mut disk, &old).unwrap();
        disk.set_read_only(true);
        let error = save(&mut disk, &records(&[("flannel.1", 2)])).unwrap_err();
        assert!(error.to_string().ends_with("memory/vtep"), "{error}");
        disk.set_read_only(false);
        disk.set_room(Some(60));
        save(&mut disk, &records(&[("flannel.1", 2)])).unwrap_err();
        assert_eq!(load(&disk).unwrap(), (old, 0));
    }
}
