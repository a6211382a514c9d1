//! `monitor`: prints refusals and drops as they happen, with the names of whom and what they concern.
//!
//! Programs tell them through a ring in the kernel, and only while somebody listens (`dataplane::events`). It is read
//! ten times a second: programs wake nobody, so a flood costs this process no more than a full ring each time. What
//! finds no room is counted, and told at the end.

mod known;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use self::known::Known;
use super::verbs::VerbError;
use crate::config::flags::{MonitorArgs, Output};
use crate::dataplane::events::{ASK_EVERY, By, Listener, Told};
use crate::explain::services::is_of;
use crate::host::clock::wall_time;
use crate::model::Protocol;
use crate::output::{is_printed, print, reader_is_gone};
use crate::text;

/// How often the ring is read.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const NONE: &str = "-";

/// A refusal or a drop: the object that `monitor -o json` prints for each.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// The wall clock's, as RFC 3339 has it.
    time: String,
    /// The path that refused it: `socket` or `packet`.
    path: &'static str,
    /// The name of the counter.
    reason: &'static str,
    /// `None`: not known, of packets that are dropped for what is in their first headers.
    protocol: Option<String>,
    dialled: Option<SocketAddr>,
    /// `ns/name:port`; `ns/name` if the Service has no such port; `None` if no Service has it, or it is not known.
    service: Option<String>,
    client: Option<IpAddr>,
    /// `None` of sockets: they have none yet.
    client_port: Option<u16>,
    /// The client is a process in the node's own network namespace.
    is_host: bool,
    /// `ns/name` of the client, if the ledger of this node has it.
    pod: Option<String>,
    /// Of sockets.
    process: Option<Process>,
    /// The device that the packet was at; its index if it is gone.
    device: Option<String>,
    /// In the running agent's words: for one, whether closure has left all endpoints out.
    why: Option<String>,
}

/// Whose thread has dialled.
#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    name: String,
}

/// The object that `monitor -o json` prints at the end, if something was lost.
#[derive(Debug, Serialize)]
struct Lost {
    lost: u64,
}

impl Row {
    fn new(told: &Told, known: &Known) -> Self {
        let time = humantime::format_rfc3339_millis(wall_time(told.at_ns)).to_string();
        let protocol = Protocol::of_number(told.protocol);
        let (path, client, is_host, process, device) = match &told.by {
            By::Socket { netns, pid, comm } => {
                let process = Process {
                    pid: *pid,
                    name: comm.clone(),
                };
                let client = known.client(*netns, told.dialled);
                ("socket", client, known.is_host(*netns), Some(process), None)
            }
            By::Packet { ifindex } => {
                let client = told.client.map(|client| client.ip());
                let device = known.device(*ifindex);
                ("packet", client, false, None, Some(device))
            }
        };
        Self {
            time,
            path,
            reason: told.reason,
            protocol: match (protocol, told.protocol) {
                (Some(protocol), _) => Some(protocol.to_string()),
                (None, 0) => None,
                (None, number) => Some(number.to_string()),
            },
            dialled: told.dialled,
            service: known.service(told),
            client,
            client_port: told
                .client
                .map(|client| client.port())
                .filter(|port| *port != 0),
            is_host,
            pod: client
                .filter(|_| !is_host)
                .and_then(|client| known.pod(client)),
            process,
            device,
            why: known.why(told),
        }
    }

    /// Whether it is asked for.
    fn is_wanted(&self, args: &MonitorArgs) -> bool {
        let of_service = args.service.as_ref().is_none_or(|wanted| {
            let name = self.service.as_deref();
            name.is_some_and(|name| is_of(name, wanted))
        });
        of_service && (args.pod.is_none() || args.pod == self.pod)
    }
}

impl fmt::Display for Row {
    /// One line: when, why, what was dialled, who has dialled, and why in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| NONE.to_owned());
        let dialled = self.dialled.map(|dialled| dialled.to_string());
        write!(
            f,
            "{} {} {} {} {} from",
            self.time,
            self.reason,
            or_none(&self.protocol),
            or_none(&dialled),
            or_none(&self.service)
        )?;
        let mut who = Vec::new();
        who.extend(self.pod.as_ref().map(|pod| format!("Pod {pod}")));
        if self.is_host {
            who.push("this node".to_owned());
        }
        who.extend(self.client.map(|client| match self.client_port {
            Some(port) => SocketAddr::new(client, port).to_string(),
            None => client.to_string(),
        }));
        let process = self.process.as_ref();
        who.extend(process.map(|Process { pid, name }| format!("process {name} ({pid})")));
        who.extend(
            self.device
                .as_ref()
                .map(|device| format!("device {device}")),
        );
        write!(f, " {}", who.join(", "))?;
        match &self.why {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}

/// Prints until it is told to end, nobody reads any more, or there were as many as were asked for.
pub async fn monitor(args: &MonitorArgs) -> Result<(), VerbError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(VerbError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(VerbError::Signal)?;
    let place = args.place.place();
    let Some(mut listener) = Listener::start(&place.bpffs)? else {
        print("no programs tell anything: `yurt-net run` puts them there\n")?;
        return Ok(());
    };
    let mut known = Known::new(place);
    let (mut asked, mut left) = (Instant::now(), args.count.unwrap_or(u64::MAX));
    loop {
        let is_over = tokio::select! {
            () = sleep(LOOK_EVERY) => false,
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
        };
        if reader_is_gone() {
            return Ok(());
        }
        if asked.elapsed() >= ASK_EVERY {
            listener.ask()?;
            asked = Instant::now();
        }
        let mut told = listener.take();
        let is_asked_for = |told: &Told| args.reason.iter().any(|reason| *reason == told.reason);
        told.retain(|told| args.reason.is_empty() || is_asked_for(told));
        known.learn(&told, args.service.is_some()).await?;
        for told in &told {
            let row = Row::new(told, &known);
            if !row.is_wanted(args) {
                continue;
            }
            let line = match args.output {
                Output::Json => text::json(&row)?,
                Output::Table => text::message(&row.to_string()).to_string(),
            };
            if !is_printed(line + "\n")? {
                return Ok(());
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        if is_over || left == 0 {
            break;
        }
    }
    let lost = listener.lost()?;
    if lost > 0 {
        print(match args.output {
            Output::Json => text::json(&Lost { lost })? + "\n",
            Output::Table => format!("lost {lost} more: there were too many at a time\n"),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::{Cli, Command};

    fn args(flags: &[&str]) -> MonitorArgs {
        let words = ["yurt-net", "monitor"].iter().chain(flags);
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Monitor(args)) => args,
            _ => panic!("{flags:?}"),
        }
    }

    fn row() -> Row {
        Row {
            time: "2026-05-04T03:02:01.000Z".to_owned(),
            path: "socket",
            reason: "refuse_no_endpoint",
            protocol: Some("TCP".to_owned()),
            dialled: Some("10.96.0.20:80".parse().unwrap()),
            service: Some("shop/empty:http".to_owned()),
            client: Some("10.244.1.5".parse().unwrap()),
            client_port: None,
            is_host: false,
            pod: Some("shop/cart-1".to_owned()),
            process: Some(Process {
                pid: 4711,
                name: "curl".to_owned(),
            }),
            device: None,
            why: None,
        }
    }

    #[test]
    fn a_line_says_who_has_dialled_what_and_why_it_failed() {
        assert_eq!(
            row().to_string(),
            "2026-05-04T03:02:01.000Z refuse_no_endpoint TCP 10.96.0.20:80 shop/empty:http from Pod shop/cart-1, \
             10.244.1.5, process curl (4711)"
        );
        let packet = Row {
            path: "packet",
            reason: "drop_tag",
            protocol: None,
            dialled: None,
            service: None,
            client: None,
            pod: None,
            process: None,
            device: Some("eth0".to_owned()),
            why: Some("a reason".to_owned()),
            ..row()
        };
        assert_eq!(
            packet.to_string(),
            "2026-05-04T03:02:01.000Z drop_tag - - - from device eth0: a reason"
        );
        let outside = Row {
            client_port: Some(4000),
            is_host: true,
            pod: None,
            process: None,
            ..row()
        };
        assert!(
            outside
                .to_string()
                .ends_with("from this node, 10.244.1.5:4000")
        );
    }

    #[test]
    fn services_pods_and_reasons_are_asked_for_by_name() {
        for (flags, expected) in [
            (&[][..], true),
            (&["--service", "shop/empty"], true),
            (&["--service", "shop/empty:http"], true),
            (&["--service", "shop/other"], false),
            (&["--pod", "shop/cart-1"], true),
            (&["--pod", "shop/cart-2"], false),
            (&["--pod", "shop/cart-1", "--service", "shop/other"], false),
        ] {
            assert_eq!(row().is_wanted(&args(flags)), expected, "{flags:?}");
        }
        let reasons = args(&["--reason", "drop_tag,refuse_no_endpoint"]).reason;
        assert_eq!(reasons, ["drop_tag", "refuse_no_endpoint"]);
        for wrong in [
            ["--reason", "forward"],
            ["--pod", "cart-1"],
            ["--count", "0"],
        ] {
            let words = ["yurt-net", "monitor"].into_iter().chain(wrong);
            assert!(Cli::try_parse_from(words).is_err(), "{wrong:?}");
        }
    }
}
