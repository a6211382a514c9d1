//! The nameservers of this machine. Whoever has their address answers every lookup of the node, the agent's own for its apiserver too.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use crate::host::disk::read_text;

/// What this process asks (resolv.conf(5)), and whom the stubs of systemd-resolved and NetworkManager ask, whose files
/// there are only where the agent sees the host's `/run`.
const FILES: [&str; 3] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];
/// Bytes. The C library reads three nameservers.
const LARGEST: u64 = 64 << 10;

/// Reads them. A file that cannot be read names nobody: a process that cannot read it asks loopback.
pub(super) fn nameservers() -> BTreeSet<IpAddr> {
    let texts = FILES
        .into_iter()
        .filter_map(|path| read_text(Path::new(path), LARGEST).ok());
    texts.flat_map(|text| named(&text)).collect()
}

/// The addresses of lines `nameserver ADDRESS`, without the `%SCOPE` of link-local ones.
fn named(text: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let is_one = words.next() == Some("nameserver");
        let bare = words.next().filter(|_| is_one)?.split('%').next()?;
        bare.parse::<IpAddr>().ok().map(|one| one.to_canonical())
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 192.0.2.1\nsearch lan nameserver 192.0.2.2\nnameserver\t192.0.2.53 # ours\nnameserver 2001:db8::53\n\
            nameserver fe80::1%eth0\nnameserver ::ffff:192.0.2.54\nnameserver dns.example\nnameserver\noptions timeout:1\n";
        let found: Vec<String> = named(text).iter().map(IpAddr::to_string).collect();
        assert_eq!(
            found,
            ["192.0.2.53", "192.0.2.54", "2001:db8::53", "fe80::1"]
        );
    }
}
