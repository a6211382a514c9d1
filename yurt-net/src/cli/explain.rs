//! `explain`: the verdict for a flow. Its ends may be given by name: a Pod is looked for in the ledger of this node, a
//! Service where the verdict is from.

use std::net::IpAddr;

use serde::Serialize;

use super::live::{Live, live};
use super::names::{addresses_of, ledger, pods};
use super::verbs::{Planned, VerbError, load};
use crate::config::flags::{Client, ExplainArgs, Output};
use crate::explain::find::{Found, FoundPort};
use crate::explain::rows::unknown_interfaces;
use crate::explain::verdict::{Dial, Explanation, OwnAddresses, explain as explain_flow};
use crate::ledger::Ledger;
use crate::model::Snapshot;
use crate::observe::control::{Request, ask};
use crate::output::print;
use crate::text;

/// So many Pods are told where one is not there.
const TOLD: usize = 10;

/// The object that `explain -o json` prints.
#[derive(Serialize)]
struct Explained {
    #[serde(flatten)]
    explanation: Explanation,
    /// With `--live`.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Live>,
}

/// `explain`.
pub async fn explain(args: &ExplainArgs) -> Result<(), VerbError> {
    let place = args.place.place();
    let clients = match &args.from {
        Client::Address(address) => vec![*address],
        Client::Pod(pod) => pod_addresses(&ledger(&place).await, pod)?,
    };
    let (dial, explanation): (Dial, Explanation) = match (&args.source, &args.node) {
        (Some(source), Some(node)) => {
            let read = load(source, node, &args.policy).await?;
            let found = |wanted: &str| Found::of(&read.snapshot, wanted);
            let dial = dial(args, &clients, args.service.as_deref().map(found))?;
            let planned = Planned::new(&read, node, source, &args.policy, place.ledger()).await;
            (dial, explained(&planned, &read.snapshot, node, dial))
        }
        _ => {
            let found = match &args.service {
                Some(service) => {
                    let answer = ask(&place.sockets(), &Request::Find(service.clone())).await?;
                    Some(serde_json::from_value(answer)?)
                }
                None => None,
            };
            let dial = dial(args, &clients, found)?;
            let answer = ask(&place.sockets(), &Request::Explain(dial)).await?;
            (dial, serde_json::from_value(answer)?)
        }
    };
    let live = match args.live {
        true => Some(live(&place, dial, args.device.as_deref()).await?),
        false => None,
    };
    match args.output {
        Output::Table => {
            let live = live.as_ref().map(text::plain).transpose()?;
            let live = live.map_or_else(String::new, |live| live.to_string());
            print(text::plain(&explanation)?.to_string() + &live)?;
        }
        Output::Json => print(text::json(&Explained { explanation, live })? + "\n")?,
    }
    Ok(())
}

fn explained(planned: &Planned<'_>, snapshot: &Snapshot, node: &str, dial: Dial) -> Explanation {
    let Planned {
        table,
        reasons,
        view,
    } = planned;
    let mut own = OwnAddresses::new(snapshot, node);
    own.node.extend(view.local_addresses.iter().flatten());
    let mut explanation = explain_flow(table, reasons, &own, dial);
    if !reasons.see_interfaces() {
        explanation.reason += &format!("; {}", unknown_interfaces(node));
    }
    explanation
}

/// The flow that is asked about: of the ends that a name has, the first two of one family.
fn dial(args: &ExplainArgs, clients: &[IpAddr], found: Option<Found>) -> Result<Dial, VerbError> {
    let targets = match (found, args.to) {
        (Some(found), _) => one_port(args.service.as_deref().unwrap_or_default(), found)?,
        (None, Some(to)) => vec![FoundPort {
            name: String::new(),
            at: to.address,
            protocol: to.protocol,
        }],
        (None, None) => Vec::new(),
    };
    let mut pairs = clients
        .iter()
        .flat_map(|from| targets.iter().map(move |to| (*from, to)));
    let is_one_family = |(from, to): &(IpAddr, &FoundPort)| {
        from.to_canonical().is_ipv4() == to.at.ip().to_canonical().is_ipv4()
    };
    // An address that was given is taken as it is.
    let first = pairs.clone().next();
    let pair = pairs.find(is_one_family).or_else(|| {
        let is_given = matches!(args.from, Client::Address(_)) && args.to.is_some();
        first.filter(|_| is_given)
    });
    match pair {
        Some((from, to)) => Ok(Dial {
            from,
            to: to.at,
            protocol: to.protocol,
        }),
        None => Err(VerbError::NotFound(
            "client and Service have no addresses of the same family".to_owned(),
        )),
    }
}

/// The addresses of the one port that is meant.
fn one_port(wanted: &str, found: Found) -> Result<Vec<FoundPort>, VerbError> {
    let wanted = text::name(wanted);
    let not_found = |why: String| Err(VerbError::NotFound(why));
    let others = list(&found.others, found.more_others);
    let Some(first) = found.ports.first() else {
        return not_found(match (found.is_there, found.others.is_empty()) {
            (true, true) => format!("{wanted} has no ClusterIP: name an address with --to"),
            (true, false) => format!("{wanted}: the Service has no such port, but {others}"),
            (false, true) => format!("there is no {wanted}, nor any other Service"),
            (false, false) => format!("there is no {wanted}, but there is {others}"),
        });
    };
    let is_same =
        |one: &&FoundPort| (one.at.port(), one.protocol) == (first.at.port(), first.protocol);
    if !found.ports.iter().all(|one| is_same(&one)) {
        let mut ports: Vec<String> = found
            .ports
            .iter()
            .map(|one| format!("{} ({}/{})", one.name, one.at.port(), one.protocol))
            .collect();
        ports.dedup();
        let more = ports.len().saturating_sub(TOLD);
        ports.truncate(TOLD);
        let ports = list(&ports, more);
        return not_found(format!(
            "{wanted} has several ports: add one by its name, as NAMESPACE/NAME:PORT, or an address with --to; there is {ports}"
        ));
    }
    Ok(found.ports)
}

fn pod_addresses(ledger: &Ledger, wanted: &str) -> Result<Vec<IpAddr>, VerbError> {
    let addresses = addresses_of(ledger, wanted);
    if !addresses.is_empty() {
        return Ok(addresses);
    }
    let mut names: Vec<String> = pods(ledger).into_values().collect();
    names.sort_unstable();
    names.dedup();
    let wanted_name = text::name(wanted);
    let elsewhere = "where the Pod's address is known, give that to --from";
    let more = names.len().saturating_sub(TOLD);
    names.truncate(TOLD);
    Err(VerbError::NotFound(match names.is_empty() {
        true => format!(
            "the ledger of this node has no Pod, and so not {wanted_name} (docs/retention.md): {elsewhere}"
        ),
        false => format!(
            "the ledger of this node has no running Pod {wanted_name}, but {}; {elsewhere}",
            list(&names, more)
        ),
    }))
}

fn list(some: &[String], more: usize) -> String {
    let some: Vec<String> = some.iter().map(|one| text::name(one).to_string()).collect();
    match more {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::{Cli, Command};
    use crate::model::Protocol;

    fn args(words: &[&str]) -> ExplainArgs {
        let words = ["yurt-net", "explain"].iter().chain(words);
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Explain(args)) => args,
            _ => panic!("these are no words of explain"),
        }
    }

    fn found(ports: &[(&str, &str, Protocol)]) -> Found {
        let ports = ports.iter().map(|(name, at, protocol)| FoundPort {
            name: (*name).to_owned(),
            at: at.parse().unwrap(),
            protocol: *protocol,
        });
        Found {
            ports: ports.collect(),
            is_there: true,
            ..Found::default()
        }
    }

    fn said(result: Result<Dial, VerbError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn ends_of_one_family_are_taken_of_what_a_pod_and_a_service_have() {
        let args = args(&["--from", "shop/cart-0", "shop/web"]);
        let dual = [
            ("http", "10.96.0.10:80", Protocol::Tcp),
            ("http", "[fd00:96::10]:80", Protocol::Tcp),
        ];
        let client = ["fd00::7".parse().unwrap()];
        let flow = dial(&args, &client, Some(found(&dual))).unwrap();
        assert_eq!(flow.to, "[fd00:96::10]:80".parse().unwrap());
        let only4 = Some(found(&dual[..1]));
        assert!(said(dial(&args, &client, only4)).contains("same family"));
    }

    #[test]
    fn a_name_that_says_too_little_or_nothing_is_told_with_what_there_is() {
        let args = args(&["--from", "10.1.0.2", "shop/web"]);
        let client = ["10.1.0.2".parse().unwrap()];
        let ports = [
            ("http", "10.96.0.10:80", Protocol::Tcp),
            ("dns", "10.96.0.10:53", Protocol::Udp),
        ];
        let told = said(dial(&args, &client, Some(found(&ports))));
        assert!(
            told.contains("several ports") && told.contains("http (80/TCP), dns (53/UDP)"),
            "{told}"
        );
        let unknown = Found {
            others: vec!["shop/we\u{1b}b2".to_owned()],
            more_others: 7,
            ..Found::default()
        };
        let told = said(dial(&args, &client, Some(unknown)));
        assert_eq!(
            told,
            "there is no shop/web, but there is shop/we\\u{1b}b2 and 7 more"
        );
        let told = said(dial(&args, &client, Some(found(&[]))));
        assert!(told.contains("no ClusterIP"), "{told}");
    }

    #[test]
    fn without_a_ledger_a_pod_is_unknown_and_its_address_is_asked_for() {
        let told = pod_addresses(&Ledger::default(), "shop/cart-0")
            .unwrap_err()
            .to_string();
        assert!(told.contains("no Pod") && told.contains("--from"), "{told}");
    }

    #[test]
    fn a_flow_is_to_an_address_or_to_a_service_and_not_to_both() {
        for words in [
            &["--from", "10.1.0.2"][..],
            &[
                "--from",
                "10.1.0.2",
                "shop/web",
                "--to",
                "10.96.0.10:80/TCP",
            ],
            &["--from", "cart", "shop/web"],
            &["--from", "10.1.0.2", "web"],
        ] {
            let words = ["yurt-net", "explain"].iter().chain(words);
            assert!(Cli::try_parse_from(words).is_err());
        }
    }
}
