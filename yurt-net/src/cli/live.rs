//! `explain --live`: what the program that is in force does with a made-up packet.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::links::PATIENCE;
use crate::config::Place;
use crate::dataplane::DataplaneError;
use crate::dataplane::live::{Verdict, devices, try_packet};
use crate::device::Link;
use crate::error::chain;
use crate::explain::verdict::Dial;
use crate::node::{LinkWatch, NodeError};

/// Why nothing was tried.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// Such a packet cannot exist, or would show nothing.
    #[error("--live: {0}")]
    Refused(String),
    /// The kernel refused the trial.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

/// What `explain --live -o json` adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Live {
    /// The device that the packet came in by.
    device: String,
    /// What the program did: `forward`, `pass`, `drop`, `redirect`.
    verdict: String,
    /// Where the packet went, if it went on.
    to: Option<SocketAddr>,
    /// What the program counted; see docs/packet-path.md.
    counted: Vec<String>,
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device, verdict, ..
        } = self;
        write!(f, "live, coming in at {device}: {verdict}")?;
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        match &*self.counted {
            [] => writeln!(f),
            counted => writeln!(f, " ({})", counted.join(", ")),
        }
    }
}

/// Tries the program. `device`: the one that the packet comes in by, if it matters.
pub(super) async fn live(
    place: &Place,
    dial: Dial,
    device: Option<&str>,
) -> Result<Live, LiveError> {
    let (from, to) = (dial.from.to_canonical(), dial.to.ip().to_canonical());
    let to = SocketAddr::new(to, dial.to.port());
    let refused = |why: String| Err(LiveError::Refused(why));
    if from.is_ipv4() != to.is_ipv4() {
        return refused(format!("{from} and {to} are of two families"));
    }
    let served = devices(&place.bpffs)?;
    if served.is_empty() {
        return refused("no packets are served: run the agent with --packet-path=on".to_owned());
    }
    let look = async || {
        let watch = LinkWatch::new()?;
        Ok::<_, NodeError>((watch.links().await?, watch.leads_to_pods(from).await?))
    };
    let (links, is_pod) = match timeout(PATIENCE, look()).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return refused(chain(&error)),
        Err(_elapsed) => return refused("the kernel does not list its devices".to_owned()),
    };
    let is_here = is_pod || links.iter().any(|link| link.addresses.contains(&from));
    if is_here && (!is_pod || device.is_none()) {
        return refused(format!(
            "{from} is on this node: what it dials is decided at its socket, and not by a packet that comes in. Of a Pod that bypasses \
             its socket, name the device with --device"
        ));
    }
    let place_of = |link: &Link| {
        let mut served = served.iter();
        served.find(|one| one.ifindex == link.ifindex && one.is_pods == is_pod)
    };
    let mut candidates = links.iter().filter(|link| place_of(link).is_some());
    let found = match device {
        Some(name) => candidates.find(|link| link.name == name),
        None => {
            let mut candidates = candidates.filter(|link| link.mac.is_some());
            let first = candidates.clone().next();
            candidates.find(|link| link.is_uplink).or(first)
        }
    };
    let Some((link, served)) = found.and_then(|link| Some((link, *place_of(link)?))) else {
        return refused(format!(
            "packets from {from} are served at no device {}: `yurt-net status` lists those that lead outside",
            device.unwrap_or("that is there")
        ));
    };
    let Some(mac) = link.mac else {
        return refused(format!(
            "{} has no link-layer addresses, so no packet can be made up for it: name another with --device",
            link.name
        ));
    };
    let protocol = dial.protocol.number();
    let tried = try_packet(&place.bpffs, (served, mac), from, to, protocol)?;
    let verdict = match tried.verdict {
        Verdict::GoesOn if tried.to == Some(to) => "pass".to_owned(),
        Verdict::GoesOn => "forward".to_owned(),
        Verdict::Dropped => "drop".to_owned(),
        Verdict::Redirected => "redirect".to_owned(),
        Verdict::Unknown(number) => format!("unknown verdict {number}"),
    };
    Ok(Live {
        device: link.name.clone(),
        verdict,
        to: tried.to,
        counted: tried.counted.into_iter().map(str::to_owned).collect(),
    })
}
