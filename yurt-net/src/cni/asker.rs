//! The main plugin for which `yurt-ipam` gives addresses: which process it is, and whether it is still at work.

use std::fs;
use std::os::unix::process::parent_id;

use super::protocol::Environment;
use crate::ledger::Asker;

/// The parent of this process, if it is a plugin that answers the same request. A runtime that calls IPAM plugins
/// itself does not count: it runs on, so its end would never show that the request is done.
/// goes on running, and nothing would ever tell that the request is done.
pub(super) fn find(environment: &Environment) -> Option<Asker> {
    let pid = parent_id();
    let start = start(pid)?;
    let variables = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let has = |name: &str, value: &str| {
        let wanted = format!("{name}={value}");
        variables
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
    };
    let is_same = has("CNI_COMMAND", &environment.command)
        && has("CNI_CONTAINERID", &environment.container)
        && has("CNI_IFNAME", &environment.interface);
    let asked = crate::cni::asker::start(std::process::id())?;
    is_same.then_some(Asker { pid, start, asked })
}

/// Whether a process still runs.
pub(super) fn is_at_work(process: Asker) -> bool {
    start(process.pid) == Some(process.start)
}

/// When a process was started; `None` if it does not exist, or has ended and was not reaped yet.
fn start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, and ends with the last parenthesis: proc_pid_stat(5).
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_ascii_whitespace();
    let state = fields.next()?;
    // Field 22 of the file.
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_at_work_until_it_ends_and_a_later_one_of_its_number_is_another() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let process = Asker {
            pid,
            start: start(pid).unwrap(),
            asked: 0,
        };
        assert!(is_at_work(process));
        let later = Asker {
            start: process.start + 1,
            ..process
        };
        assert!(!is_at_work(later));
        drop(child.stdin.take());
        // A process is a zombie until it is reaped.
        while is_at_work(process) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_at_work(process));
    }

    #[test]
    fn a_parent_that_answers_another_request_is_no_asker() {
        let environment = Environment {
            command: "ADD".to_owned(),
            container: "c1".to_owned(),
            netns: String::new(),
            interface: "eth0".to_owned(),
            args: String::new(),
        };
        assert_eq!(find(&environment), None);
    }
}
