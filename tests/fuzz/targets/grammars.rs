//! Small languages: addresses and prefixes as Kubernetes writes them, OpenYurt's `listen`, mounts, processes.
//!
//! Each against another reader of the same language, where there is one.
#![no_main]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;

use libfuzzer_sys::fuzz_target;
use yurt_net::host::cgroup::cgroup_mounts;
use yurt_net::host::process::{Counts, boot_time, counts};
use yurt_net::policy::listens;
use yurt_net::source::decode::{parse_address, parse_cidr};

fuzz_target!(|data: &[u8]| {
    let _ignored = cgroup_mounts(data);
    mount(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    address(text);
    prefix(text);
    process(text);
    let (pool, grammar) = text.split_once('\n').unwrap_or(("hangzhou", text));
    listen(grammar, pool);
});

/// What the standard library reads is read, as the same address; what else is read has leading zeros.
fn address(text: &str) {
    let address = parse_address(text);
    if let Ok(standard) = text.parse::<IpAddr>() {
        assert_eq!(address, Some(standard.to_canonical()));
    }
    if let Some(address) = address {
        assert_eq!(parse_address(&address.to_string()), Some(address));
        assert_eq!(address.to_canonical(), address);
        if text.parse::<IpAddr>().is_err() {
            assert_eq!(
                without_zeros(text)
                    .parse()
                    .map(|ip: IpAddr| ip.to_canonical()),
                Ok(address)
            );
        }
    }
}

/// Each part of an IPv4 address without its leading zeros.
fn without_zeros(text: &str) -> String {
    let (head, tail) = text
        .rsplit_once(':')
        .map_or(("", text), |(head, tail)| (head, tail));
    let parts = tail
        .split('.')
        .map(|part| match part.trim_start_matches('0') {
            "" => "0",
            part => part,
        });
    let tail = parts.collect::<Vec<_>>().join(".");
    match text.contains(':') {
        true => format!("{head}:{tail}"),
        false => tail,
    }
}

/// A prefix begins with its own address, and is the same when written and read again.
fn prefix(text: &str) {
    let Some(prefix) = parse_cidr(text) else {
        return;
    };
    assert_eq!(parse_cidr(&prefix.to_string()), Some(prefix));
    assert_eq!(prefix.network(), prefix.ip());
    let (address, _) = text.split_once('/').expect("a prefix has a length");
    let address = parse_address(address).expect("a prefix has an address");
    assert!(prefix.contains(address));
}

/// Against the table that one would draw of it: for each name its first entry.
fn listen(grammar: &str, pool: &str) {
    let mut first = BTreeMap::new();
    for entry in grammar.split(',').map(str::trim) {
        let (name, is_in) = match entry.strip_prefix('-') {
            Some(name) => (name, false),
            None => (entry, true),
        };
        first.entry(name).or_insert(is_in);
    }
    let expected = first.get(pool).or_else(|| first.get("*")).copied();
    assert_eq!(
        listens(grammar, pool),
        expected.unwrap_or_default(),
        "{grammar:?} {pool:?}"
    );
}

/// What the kernel says of a process is found behind its name, whatever that is.
fn process(name: &str) {
    let _ignored = (counts(name), boot_time(name));
    let line = format!(
        "7 ({name}) S 1 7 7 0 -1 4194560 9 9 9 9 250 17 9 9 20 0 1 0 4711 99 2042 1844 1\n"
    );
    let expected = Counts {
        cpu: 267,
        start: 4711,
        pages: 2042,
    };
    assert_eq!(counts(&line), Some(expected));
}

/// A mount is found at its path, whatever that is, behind mounts of others.
fn mount(path: &[u8]) {
    if path.contains(&0) {
        return;
    }
    let mut mounts = b"30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n41 30 0:40 /part /".to_vec();
    mounts.extend(escaped(path));
    mounts.extend(b" rw - cgroup2 cgroup2 rw\n42 30 0:40 / /");
    mounts.extend(escaped(path));
    mounts.extend(b" rw shared:9 - cgroup2 cgroup2 rw\n");
    let expected = [b"/", path].concat();
    let found = cgroup_mounts(&mounts);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].point.as_os_str(), OsStr::from_bytes(&expected));
}

/// As `seq_path` of the kernel writes a path into `mountinfo`.
fn escaped(path: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        byte => vec![*byte],
    };
    path.iter().flat_map(escape).collect()
}
