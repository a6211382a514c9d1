//! The ports that stand for clients outside, reserved so that sockets of this node do not get them.
//!
//! A socket that does not ask for a port gets one of `net.ipv4.ip_local_port_range`. If that were one of our ports, an
//! answer to the socket could be taken for one to a client. So our ports in that range are put into
//! `net.ipv4.ip_local_reserved_ports`, which IPv6 follows, too. A record in memory, which lives as long as the kernel's
//! list, says which of them we have put there: what others have reserved stays.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::DataplaneError;
use super::error::at;

/// More bytes than the longest list has: every second port alone.
const LONGEST_LIST: usize = 1 << 18;

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The reserved ports, and a record of those that we have reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedPorts {
    /// The record.
    record: PathBuf,
}

impl ReservedPorts {
    /// Keeps the record in this directory, which need not exist.
    pub fn recorded_in(memory: &Path) -> Self {
        Self {
            record: memory.join("reserved-ports"),
        }
    }

    /// Reserves the ports of this range that sockets could be given, and gives back all others of ours.
    pub fn keep(&self, (first, count): (u16, u16)) -> Result<(), DataplaneError> {
        let local = read(Path::new(LOCAL))?;
        let among = among_local((first, count), &local);
        if leaves_too_few(among.len(), &local) {
            let last = first.saturating_add(count - 1);
            let source = io::Error::other(format!(
                "--snat-ports {first}-{last} would leave sockets of this node too few ports of {}: choose others",
                local.trim()
            ));
            return Err(at("reserve ports in", Path::new(RESERVED))(source));
        }
        self.bring_to(among).map(drop)
    }

    /// Gives back all that was reserved; true if there was anything.
    pub fn release(&self) -> Result<bool, DataplaneError> {
        if !self.record.exists() {
            return Ok(false);
        }
        self.bring_to(BTreeSet::new())
    }

    fn bring_to(&self, wanted: BTreeSet<u16>) -> Result<bool, DataplaneError> {
        let ours = match read(&self.record) {
            Err(DataplaneError::Path { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                BTreeSet::new()
            }
            ours => ports(&ours?),
        };
        let reserved = ports(&read(Path::new(RESERVED))?);
        let others = of_others(&reserved, &ours);
        let new: BTreeSet<u16> = wanted.difference(&others).copied().collect();
        let all: BTreeSet<u16> = others.union(&new).copied().collect();
        // The record comes first: a port that is reserved without a record would stay reserved for ever.
        if !new.is_empty() && new != ours {
            self.write_down(&new)?;
        }
        if all != reserved {
            fs::write(RESERVED, text(&all)).map_err(at("write", Path::new(RESERVED)))?;
        }
        if new.is_empty() && !ours.is_empty() {
            fs::remove_file(&self.record).map_err(at("remove", &self.record))?;
        }
        Ok(all != reserved)
    }

    /// Replaces the record as a whole: without it, what is reserved would never be given back.
    fn write_down(&self, ours: &BTreeSet<u16>) -> Result<(), DataplaneError> {
        if let Some(directory) = self.record.parent() {
            fs::create_dir_all(directory).map_err(at("make", directory))?;
        }
        let next = self.record.with_extension("next");
        let written = fs::write(&next, text(ours)).map_err(at("write", &next));
        let written =
            written.and_then(|()| fs::rename(&next, &self.record).map_err(at("rename", &next)));
        if written.is_err() {
            let _ = fs::remove_file(&next);
        }
        written
    }
}

/// The reserved ports that are not ours. Whoever replaces the list, as `sysctl --system` does, throws ours out: then
/// all that it holds is theirs, also what we had reserved before.
fn of_others(reserved: &BTreeSet<u16>, ours: &BTreeSet<u16>) -> BTreeSet<u16> {
    match ours.is_subset(reserved) {
        true => reserved.difference(ours).copied().collect(),
        false => reserved.clone(),
    }
}

/// The fewest ports that sockets of this node are left with.
const FEWEST: usize = 1024;

/// Whether sockets of this node would have too few ports left if this many of `local` were reserved.
fn leaves_too_few(reserved: usize, local: &str) -> bool {
    let all = among_local((1, u16::MAX), local).len();
    reserved > 0 && all - reserved < FEWEST
}

/// The ports of this range that sockets get without asking for them. `local` is the text of `ip_local_port_range`.
pub fn among_local((first, count): (u16, u16), local: &str) -> BTreeSet<u16> {
    let mut bounds = local
        .split_whitespace()
        .map_while(|number| number.parse().ok());
    let local = bounds.next().zip(bounds.next());
    let ours = (0..count).map(|offset| first.saturating_add(offset));
    ours.filter(|port| local.is_none_or(|(low, high): (u16, u16)| (low..=high).contains(port)))
        .collect()
}

/// The ports in a list like `80,1000-1999`, the format of `ip_local_reserved_ports`. Other words are skipped.
pub fn ports(text: &str) -> BTreeSet<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

fn text(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let ranges = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    ranges.collect::<Vec<_>>().join(",") + "\n"
}

/// Reads a list or a range. The kernel answers only the first read of such a file, and cuts the list at the end of the
/// buffer, even inside a number (`proc_do_large_bitmap`, kernel/sysctl.c). So there is one read, and a text that may
/// have been cut is an error.
pub fn read(path: &Path) -> Result<String, DataplaneError> {
    let mut buffer = vec![0; LONGEST_LIST];
    let length = File::open(path).and_then(|mut file| file.read(&mut buffer));
    let length = length.map_err(at("read", path))?;
    buffer.truncate(length);
    let text = String::from_utf8(buffer).map_err(io::Error::other);
    let text = match text {
        Ok(_) if length == LONGEST_LIST => Err(io::Error::other("it is too long")),
        text => text,
    };
    text.map_err(at("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_ports_is_read_back_as_it_was_written() {
        for (list, shown) in [
            ("\n", "\n"),
            ("80,1000-1003,1004\n", "80,1000-1004\n"),
            ("65534-65535", "65534-65535\n"),
            ("7, 9,x,8-", "7,9\n"),
        ] {
            assert_eq!(text(&ports(list)), shown, "{list}");
            assert_eq!(ports(&text(&ports(list))), ports(list), "{list}");
        }
    }

    #[test]
    fn a_port_that_others_reserve_in_the_place_of_our_list_is_theirs() {
        for (reserved, ours, others) in [
            ("7,100-109", "100-109", "7\n"),
            ("7", "100-109", "7\n"),
            ("7,105", "100-109", "7,105\n"),
            ("7", "", "7\n"),
        ] {
            let found = of_others(&ports(reserved), &ports(ours));
            assert_eq!(text(&found), others, "{reserved} {ours}");
        }
    }

    #[test]
    fn a_record_that_cannot_be_written_anew_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let reserved = ReservedPorts::recorded_in(dir.path());
        reserved.write_down(&[1].into()).unwrap();
        // The replacement cannot be written, as on a full disk.
        fs::create_dir(dir.path().join("reserved-ports.next")).unwrap();
        reserved.write_down(&[2].into()).unwrap_err();
        assert_eq!(read(&reserved.record).unwrap(), "1\n");
    }

    #[test]
    fn sockets_of_this_node_are_not_left_without_ports() {
        for (ours, local, is_too_few) in [
            ((12000, 18000), "32768\t60999", false),
            ((12000, 18000), "1024\t65535", false),
            ((12000, 18000), "20000\t29999", true),
            ((12000, 18000), "20000\t31000", true),
            // The range has few ports, but none of ours.
            ((12000, 18000), "32768\t32800", false),
        ] {
            let among = among_local(ours, local);
            assert_eq!(leaves_too_few(among.len(), local), is_too_few, "{local}");
        }
    }

    #[test]
    fn only_ports_that_sockets_could_be_given_are_reserved() {
        assert!(among_local((61000, 4536), "32768\t60999\n").is_empty());
        let some = among_local((61000, 4536), "32768\t61001\n");
        assert_eq!(text(&some), "61000-61001\n");
        // The range is unknown.
        assert_eq!(among_local((61000, 64), "").len(), 64);
    }
}
