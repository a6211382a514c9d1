//! `check`: whether this machine can run the agent, and whether Services are really translated.

mod cni;
mod config;
mod finding;
mod packets;
mod retention;

use std::fs;
use std::path::Path;

use self::finding::{Finding, Outcome};
use super::verbs::why_not_ready;
use crate::config::flags::{CheckArgs, Output};
use crate::dataplane::DataplaneError;
use crate::dataplane::attach::bpffs::check_bpffs;
use crate::dataplane::attach::strays::{Strays, shown};
use crate::dataplane::load::{ProgramSize, trial};
use crate::dataplane::service::SocketLb;
use crate::dataplane::service::in_force::TableInForce;
use crate::dataplane::service::sockets::{self, Unsupported};
use crate::error::chain;
use crate::host::cgroup::{self, Cgroup, CgroupError};
use crate::host::filesystem::Kind;
use crate::model::Protocol;
use crate::observe::control::{ControlError, Request, ask};
use crate::observe::selftest;
use crate::observe::status::Status;
use crate::output::print;
use crate::text;

/// The oldest kernel with links that outlive the agent.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// Runs every check; true if none failed.
pub async fn check(args: &CheckArgs) -> Result<bool, std::io::Error> {
    let findings = match &args.config {
        Some(path) => config::findings(path),
        None => findings(args).await,
    };
    match args.output {
        Output::Json => print(text::json(&findings)? + "\n")?,
        Output::Table => {
            let mut report = String::new();
            for Finding {
                check,
                result,
                detail,
                remedy,
            } in &findings
            {
                let mark = match result {
                    Outcome::Ok => "ok     ",
                    Outcome::Warning => "WARNING",
                    Outcome::Failed => "FAILED ",
                };
                report += &format!("{mark}  {check:<12} {}\n", text::message(detail));
                if !remedy.is_empty() {
                    report += &format!("         {:<12} -> {}\n", "", text::message(remedy));
                }
            }
            print(report)?;
        }
    }
    Ok(findings
        .iter()
        .all(|finding| finding.result != Outcome::Failed))
}

async fn findings(args: &CheckArgs) -> Vec<Finding> {
    let place = &args.place.place();
    let mut findings = vec![kernel(), permissions()];
    let is_root = findings
        .iter()
        .all(|finding| finding.result != Outcome::Failed);
    let status = ask(&place.sockets(), &Request::Status).await;
    let running: Option<Status> = status
        .as_ref()
        .ok()
        .and_then(|status| serde_json::from_value(status.clone()).ok());
    // The cgroup that the running agent serves counts, and not the one that this process would find, if both see the
    // same files.
    let is_here = |status: &Status| Kind::Cgroup2.is_at(&status.cgroup).unwrap_or_default();
    let cgroup = match &running {
        Some(status) if place.cgroup.is_none() && is_here(status) => Ok(Cgroup {
            path: status.cgroup.clone(),
            is_root: status.cgroup_is_root,
        }),
        _ => cgroup::cgroup(place.cgroup.as_deref()),
    };
    findings.push(cgroup_finding(&cgroup));
    findings.push(bpffs(&place.bpffs));
    if is_root {
        findings.extend(tables(&place.bpffs));
        findings.extend(programs());
        findings.push(stale_sockets());
    }
    findings.push(agent(&status));
    findings.extend(running.as_ref().and_then(socket_lb));
    let served = running
        .as_ref()
        .and_then(|status| status.packet_path.as_ref());
    findings.extend(served.into_iter().flat_map(packets::findings));
    if is_root && status.is_err() {
        let cgroup = cgroup.as_ref().map_or(Path::new(""), |cgroup| &cgroup.path);
        findings.extend(strays(&place.bpffs, cgroup));
    }
    // An agent that is ready serves. Otherwise what an earlier agent left serves; before the first table nothing does.
    let is_ready = running.as_ref().is_some_and(|status| status.ready);
    let is_served = is_ready || place.bpffs.join("yurt-net/links").is_dir();
    if is_root {
        findings.extend(cni::findings(&args.cni.cni(), &place.directories()));
        findings.extend(retention::findings(place, running.as_ref()));
    }
    if let Ok(cgroup) = &cgroup
        && is_served
    {
        findings.push(self_test(&cgroup.path).await);
    }
    findings
}

fn kernel() -> Finding {
    let release = release();
    match needs_newer(&release) {
        Some(remedy) => Finding::new("kernel", Outcome::Failed, &release, &remedy),
        None => Finding::ok("kernel", &release),
    }
}

/// The release of the running kernel.
pub(super) fn release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// What to use in place of a kernel that is too old; `None`: it is not.
pub(super) fn needs_newer(release: &str) -> Option<String> {
    let mut numbers = release
        .split(['.', '-', '+'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let (major, minor) = OLDEST_KERNEL;
    (version < OLDEST_KERNEL).then(|| format!("needs Linux {major}.{minor} or later"))
}

/// Effective capabilities: `CapEff:` in `/proc/self/status`, a hexadecimal bit set.
fn permissions() -> Finding {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or_default();
    let missing: Vec<&str> = [
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    ]
    .into_iter()
    .filter(|(bit, _)| effective & bit == 0)
    .map(|(_, name)| name)
    .collect();
    if missing.is_empty() {
        return Finding::ok("permissions", "CAP_NET_ADMIN and CAP_SYS_ADMIN");
    }
    let detail = format!("{} missing", missing.join(" and "));
    let remedy = "run as root; in a container, privileged: true";
    Finding::new("permissions", Outcome::Failed, detail, remedy)
}

fn cgroup_finding(cgroup: &Result<Cgroup, CgroupError>) -> Finding {
    match cgroup {
        Ok(Cgroup {
            path,
            is_root: true,
        }) => Finding::ok("cgroup2", path.display().to_string()),
        Ok(Cgroup { path, .. }) => Finding::ok(
            "cgroup2",
            format!(
                "{}, which is not the root of its hierarchy: only processes below it are served",
                path.display()
            ),
        ),
        Err(error) => Finding::new("cgroup2", Outcome::Failed, chain(error), ""),
    }
}

fn bpffs(path: &Path) -> Finding {
    match check_bpffs(path) {
        Ok(()) => Finding::ok("bpffs", path.display().to_string()),
        Err(error) => {
            let remedy = "mount one there, or name the mount point of another one with --bpffs";
            Finding::new("bpffs", Outcome::Failed, chain(&error), remedy)
        }
    }
}

/// Pins of tables that are not what they are called, or of which one is missing.
fn tables(path: &Path) -> Option<Finding> {
    let error = TableInForce::check(path).err()?;
    let remedy = "an agent that runs makes them again, within --drift-interval, from what it knows; start it where none does";
    Some(Finding::new(
        "pins",
        Outcome::Warning,
        chain(&error),
        remedy,
    ))
}

fn programs() -> Vec<Finding> {
    let trial = match trial() {
        Ok(trial) => trial,
        Err(error) => {
            let remedy =
                "see the reason above; the kernel needs CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL";
            return vec![Finding::new(
                "programs",
                Outcome::Failed,
                chain(&error),
                remedy,
            )];
        }
    };
    let largest = (trial.sockets.iter())
        .map(|program| program.verified)
        .max()
        .unwrap_or_default();
    let detail = format!(
        "{} load, the largest verifies in {largest} instructions",
        trial.sockets.len()
    );
    let refusal = if trial.has_set_retval {
        Finding::ok(
            "refusals",
            "a Service without endpoints fails with ECONNREFUSED",
        )
    } else {
        Finding::new(
            "refusals",
            Outcome::Warning,
            "a Service without endpoints fails with EPERM: no bpf_set_retval in these hooks",
            "ECONNREFUSED needs Linux 6.1 or later",
        )
    };
    vec![
        Finding::ok("programs", detail),
        refusal,
        optional(
            "guard",
            &trial.guard.map(|size| vec![size]),
            "this kernel cannot watch which addresses Pods use (--guard)",
        ),
        optional(
            "translation",
            &trial.translate.map(Vec::from),
            "on this kernel Pods cannot keep addresses that they were not given again (--translate)",
        ),
        optional(
            "peer-repair",
            &trial.vtep.map(|size| vec![size]),
            "this kernel cannot listen to peers (--repair-peers)",
        ),
        optional(
            "packet-path",
            &trial.packet,
            "on this kernel clients outside are not served (--packet-path)",
        ),
    ]
}

/// The finding for programs that Services do not need.
fn optional(
    what: &'static str,
    loaded: &Result<Vec<ProgramSize>, DataplaneError>,
    without: &str,
) -> Finding {
    match loaded {
        Ok(sizes) => {
            let verified: u32 = sizes.iter().map(|size| size.verified).sum();
            let detail = format!("loads, and verifies in {verified} instructions");
            Finding::ok(what, detail)
        }
        Err(error) => {
            let remedy = format!("Services do without it; {without}");
            Finding::new(what, Outcome::Warning, chain(error), &remedy)
        }
    }
}

fn stale_sockets() -> Finding {
    match sockets::support(true) {
        Ok(()) => Finding::ok("sockets", "UDP sockets whose endpoint went are ended"),
        Err(error) => {
            let without_tcp = matches!(
                error,
                Unsupported::NoDiag {
                    protocol: Protocol::Tcp
                }
            );
            let remedy = match without_tcp {
                true => {
                    "until then no YurtHub on this node is believed, because its owner cannot be found out, and \
                     --closure-established=reset ends nothing"
                }
                false => "until then clients with connected UDP sockets must notice by themselves",
            };
            Finding::new("sockets", Outcome::Warning, chain(&error), remedy)
        }
    }
}

fn agent(status: &Result<serde_json::Value, ControlError>) -> Finding {
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            let remedy = "start it: yurt-net run";
            return Finding::new("agent", Outcome::Warning, chain(error), remedy);
        }
    };
    let status: Status = match serde_json::from_value(status.clone()) {
        Ok(status) => status,
        Err(error) => {
            let remedy = "it is of another version: start this one";
            return Finding::new("agent", Outcome::Warning, error.to_string(), remedy);
        }
    };
    let faults = status.degraded.iter();
    let faults = faults.map(|fault| format!("{}: {}", fault.what, fault.reason));
    let faults: Vec<String> = faults.collect();
    let (pid, why) = (status.pid, faults.join("; "));
    let remedy = "see its log for the reason";
    match (status.ready, faults.is_empty()) {
        (true, true) => Finding::ok("agent", format!("ready (pid {pid})")),
        (true, false) => {
            let detail = format!("ready, but degraded (pid {pid}): {why}");
            Finding::new("agent", Outcome::Warning, detail, remedy)
        }
        // It has no table yet, because it is new.
        (false, true) => {
            let detail = format!("not ready (pid {pid}): {}", why_not_ready(&status));
            Finding::new("agent", Outcome::Warning, detail, remedy)
        }
        (false, false) => {
            let detail = format!("not ready (pid {pid}): {why}");
            Finding::new("agent", Outcome::Failed, detail, remedy)
        }
    }
}

/// Programs that still decide although no agent runs, and that no pin holds. A running agent takes them off itself.
fn strays(bpffs: &Path, cgroup: &Path) -> Option<Finding> {
    let Strays { found, failures } = Strays::out_of_sight(bpffs, cgroup);
    let detail = match (found.as_slice(), failures.first()) {
        ([], None) => return None,
        ([], Some(failure)) => chain(failure),
        (found, _) => format!(
            "no agent answers, and programs that no pin in {} leads to decide by what one has left: {}",
            bpffs.display(),
            shown(found)
        ),
    };
    let remedy = "start the agent, which takes them off, or run yurt-net cleanup; findmnt -t bpf shows whether another bpf file \
                  system is mounted over the one with their pins";
    Some(Finding::new("pins", Outcome::Warning, detail, remedy))
}

/// What the running agent does not serve because of its flags.
fn socket_lb(status: &Status) -> Option<Finding> {
    let detail = match (status.socket_lb, &status.packet_path) {
        (SocketLb::All, _) | (SocketLb::Host, Some(_)) => return None,
        (SocketLb::Host, None) => {
            "--socket-lb=host: Pods have no Service, their DNS neither, unless something else serves them, or --packet-path=on"
        }
        (SocketLb::Off, Some(_)) => {
            "--socket-lb=off: processes of this node have no Service; Pods are served by packets"
        }
        (SocketLb::Off, None) => "--socket-lb=off: yurt-net serves no Service",
    };
    let remedy = "run the agent with --socket-lb=all, or leave Services to kube-proxy";
    Some(Finding::new("socket-lb", Outcome::Warning, detail, remedy))
}

async fn self_test(cgroup: &Path) -> Finding {
    match selftest::run(cgroup).await {
        Ok(()) => Finding::ok("self-test", "a connect from another cgroup is translated"),
        Err(error) => {
            let remedy = "start the agent, which attaches its programs again; check --cgroup";
            Finding::new("self-test", Outcome::Failed, chain(&error), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_that_does_not_load_is_a_warning_of_its_own() {
        let finding = optional(
            "guard",
            &Err(DataplaneError::Missing { name: "guard" }),
            "Pods are not watched",
        );
        assert_eq!(finding.result, Outcome::Warning);
        assert!(finding.remedy.contains("Services do without it"));
    }
}
