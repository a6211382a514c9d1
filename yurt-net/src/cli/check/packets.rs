//! Checks whether the node lets the packets pass that the packet path serves.

use std::collections::BTreeSet;
use std::path::Path;

use super::finding::{Finding, Outcome};
use crate::dataplane::attach::before::others_before;
use crate::dataplane::ports::{among_local, ports, read};
use crate::observe::status::PacketPath;

const CHECK: &str = "packets";

/// What the running agent serves, and what on the node is in its way.
pub(super) fn findings(path: &PacketPath) -> Vec<Finding> {
    let mut before = Vec::new();
    for device in &path.devices {
        let others = others_before(device).into_iter();
        before.extend(others.map(|name| format!("{name} at {device}")));
    }
    judge(path, &before, |key| {
        read(&Path::new("/proc/sys/net").join(key)).ok()
    })
}

/// `setting` reads a kernel setting below `net`; `None`: it does not exist, or cannot be read.
fn judge(
    path: &PacketPath,
    before: &[String],
    setting: impl Fn(&str) -> Option<String>,
) -> Vec<Finding> {
    let number = |key: &str| setting(key)?.trim().parse::<u32>().ok();
    let mut findings = Vec::new();
    let mut find = |outcome, detail: String, remedy: &str| {
        findings.push(Finding::new(CHECK, outcome, detail, remedy));
    };
    if let Some(problem) = &path.problem {
        let remedy = "see the agent's log; what is served already goes on";
        find(Outcome::Warning, problem.clone(), remedy);
    }
    if path.devices.is_empty() {
        let detail = "no device leads outside, so packets are served nowhere".to_owned();
        find(Outcome::Warning, detail, "name some with --edge-device");
    }
    let mut is_strict = false;
    for device in &path.devices {
        for (family, outcome) in [("ipv4", Outcome::Failed), ("ipv6", Outcome::Warning)] {
            let key = format!("{family}/conf/{device}/forwarding");
            if number(&key) == Some(0) {
                let detail = format!(
                    "net.{family}.conf.{device}.forwarding is 0: clients behind it reach no Pod by {family}"
                );
                let all = match family {
                    "ipv4" => "sysctl -w net.ipv4.ip_forward=1",
                    _ => "sysctl -w net.ipv6.conf.all.forwarding=1",
                };
                find(outcome, detail, all);
            }
        }
        let filters = [device, "all"].map(|of| number(&format!("ipv4/conf/{of}/rp_filter")));
        is_strict |= filters.into_iter().flatten().max() == Some(1);
    }
    if is_strict && path.devices.len() > 1 {
        let detail = "rp_filter is strict, and several devices lead outside: a client that comes in by another one than the route to it is \
                      dropped by the kernel";
        let remedy = "sysctl -w net.ipv4.conf.all.rp_filter=2, unless each client has but one way";
        find(Outcome::Warning, detail.to_owned(), remedy);
    }
    if !before.is_empty() {
        let detail = format!("programs of others run before ours: {}", before.join(", "));
        let remedy =
            "what they drop, redirect or let through by a verdict of their own is not served";
        find(Outcome::Warning, detail, remedy);
    }
    let ours = ports(&path.ports);
    let range = ours.first().zip(ours.last());
    let range = range.map_or((0, 0), |(first, last)| (*first, last - first + 1));
    let local = setting("ipv4/ip_local_port_range").unwrap_or_default();
    let among = among_local(range, &local);
    let reserved = ports(&setting("ipv4/ip_local_reserved_ports").unwrap_or_default());
    let open: BTreeSet<&u16> = among.difference(&reserved).collect();
    if !open.is_empty() {
        let detail = format!(
            "{} ports of --snat-ports {} are in net.ipv4.ip_local_port_range and not reserved: sockets of this node may use them",
            open.len(),
            path.ports
        );
        let remedy = "let the agent write to /proc/sys (privileged), or choose --snat-ports outside of the range";
        find(Outcome::Warning, detail, remedy);
    }
    if findings.is_empty() {
        let reserved = match among.len() {
            0 => String::new(),
            some => format!(", {some} of them reserved from net.ipv4.ip_local_port_range"),
        };
        let detail = format!(
            "served at {}; ports {} stand for clients{reserved}",
            path.devices.join(", "),
            path.ports
        );
        findings.push(Finding::ok(CHECK, detail));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(
        devices: &[&str],
        before: &[&str],
        settings: &[(&str, &str)],
    ) -> Vec<(Outcome, String)> {
        let path = PacketPath {
            devices: devices.iter().map(|name| (*name).to_owned()).collect(),
            ports: "61000-65535".to_owned(),
            ..PacketPath::default()
        };
        let before: Vec<String> = before.iter().map(|name| (*name).to_owned()).collect();
        let setting = |key: &str| {
            let found = settings.iter().find(|(name, _)| *name == key);
            found.map(|(_, value)| format!("{value}\n"))
        };
        let findings = judge(&path, &before, setting).into_iter();
        findings.map(|found| (found.result, found.detail)).collect()
    }

    #[test]
    fn a_node_that_lets_packets_through_is_one_line() {
        let range = ("ipv4/ip_local_port_range", "32768\t60999");
        assert_eq!(
            said(&["eth0"], &[], &[range, ("ipv4/conf/eth0/forwarding", "1")]),
            [(
                Outcome::Ok,
                "served at eth0; ports 61000-65535 stand for clients".to_owned()
            )]
        );
        let reserved = [
            ("ipv4/ip_local_port_range", "1024\t65535"),
            ("ipv4/ip_local_reserved_ports", "80,61000-65535"),
        ];
        let [(Outcome::Ok, detail)] = &*said(&["eth0"], &[], &reserved) else {
            panic!("{:?}", said(&["eth0"], &[], &reserved));
        };
        assert!(detail.contains("4536 of them reserved"), "{detail}");
    }

    #[test]
    fn what_is_in_the_way_of_packets_is_told_each_by_itself() {
        for (devices, before, settings, outcome, words) in [
            (&[][..], &[][..], &[][..], Outcome::Warning, "no device"),
            (
                &["eth0"],
                &[],
                &[("ipv4/conf/eth0/forwarding", "0")],
                Outcome::Failed,
                "net.ipv4.conf.eth0.forwarding is 0",
            ),
            (
                &["eth0"],
                &[],
                &[("ipv6/conf/eth0/forwarding", "0")],
                Outcome::Warning,
                "net.ipv6.conf.eth0.forwarding is 0",
            ),
            (
                &["eth0", "eth1"],
                &[],
                &[("ipv4/conf/all/rp_filter", "1")],
                Outcome::Warning,
                "rp_filter is strict",
            ),
            (
                &["eth0"],
                &["cil_from_netdev at eth0"],
                &[],
                Outcome::Warning,
                "cil_from_netdev",
            ),
            (
                &["eth0"],
                &[],
                &[("ipv4/ip_local_port_range", "32768 61099")],
                Outcome::Warning,
                "100 ports",
            ),
        ] {
            let range = [("ipv4/ip_local_port_range", "32768 60999")];
            let settings: Vec<_> = settings.iter().chain(&range).copied().collect();
            let found = said(devices, before, &settings);
            let [(result, detail)] = &*found else {
                panic!("{found:?}");
            };
            assert_eq!(*result, outcome);
            assert!(detail.contains(words), "{detail}");
        }
        // A single way, or a loose filter, is fine.
        let range = ("ipv4/ip_local_port_range", "32768 60999");
        let strict = ("ipv4/conf/all/rp_filter", "1");
        let loose = ("ipv4/conf/eth1/rp_filter", "2");
        assert_eq!(said(&["eth0"], &[], &[range, strict])[0].0, Outcome::Ok);
        let both = said(&["eth1"], &[], &[range, strict, loose]);
        assert_eq!(both[0].0, Outcome::Ok);
    }
}
