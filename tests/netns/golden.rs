//! The golden cases once more, through a real agent: it explains, and sockets go, as the table says.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::case;
use crate::case::Case;
use crate::case::Row;
use crate::world::eventually;
use crate::world::explain;
use crate::world::json;

/// Enough to meet each of a few endpoints, but once in a million times.
const DIALS: u32 = 50;

#[test]
fn sockets_go_where_the_golden_tables_say() -> Result<()> {
    let cases = case::all()?.into_iter().filter(|case| case.has_sockets);
    let mut rows = 0;
    for case in cases {
        rows += serve(&case).with_context(|| format!("{}: {}", case.path.display(), case.rule))?;
    }
    assert!(rows >= 20, "{rows}");
    Ok(())
}

/// Serves a case on a node of its own, whose Pods need not exist.
fn serve(case: &Case) -> Result<usize> {
    let lab = Lab::new()?;
    let node = lab.node(&case.node)?;
    let plan = case.plan()?;
    let mut rows = Vec::new();
    for service in plan["services"].as_array().into_iter().flatten() {
        let is_sticky = service["affinitySeconds"] != 0;
        rows.extend(case::rows(service)?.into_iter().map(|row| (row, is_sticky)));
    }
    let mut own = BTreeSet::new();
    for (row, _) in rows.iter().filter(|(row, _)| row.kind == "NodePort") {
        own.insert(row.to.parse::<SocketAddr>()?.ip());
    }
    for address in own {
        node.netns().ip(&format!("addr add {address} dev lo\n"))?;
    }
    case.write_to(&node.manifests_dir())?;
    let flags: Vec<&str> = case.flags.iter().map(|flag| &**flag).collect();
    let mut plan_verb = vec!["plan", "-o", "json"];
    plan_verb.extend(&flags);
    let printed = json(&node.yurt_net(&plan_verb)?)?;
    let table = case::essence(&printed)?;
    ensure!(table == case.expect, "plan prints:\n{table}");
    node.start_agent(&flags)?;
    node.wait_ready()?;
    let clients = [node.host()?, node.pod("client")?];
    for (row, is_sticky) in &rows {
        is_explained(&node, row)?;
        for client in &clients {
            goes_where_it_should(&node, client, row, *is_sticky)?;
        }
    }
    Ok(rows.len())
}

fn is_explained(node: &Node, row: &Row) -> Result<()> {
    let explanation = explain(node, "127.0.0.1", &format!("{}/{}", row.to, row.protocol))?;
    let endpoints = explanation["endpoints"].as_array().cloned();
    ensure!(
        explanation["verdict"] == *row.verdict && endpoints.as_ref() == Some(&to_values(row)),
        "{row:?}: {explanation}"
    );
    Ok(())
}

fn to_values(row: &Row) -> Vec<serde_json::Value> {
    row.endpoints.iter().map(|e| e.as_str().into()).collect()
}

fn goes_where_it_should(node: &Node, client: &Pod, row: &Row, is_sticky: bool) -> Result<()> {
    let proto = match row.protocol.as_str() {
        "TCP" => Tcp,
        "UDP" => Udp,
        // There is no hook for others.
        _ => return Ok(()),
    };
    let verdict = match row.ranges.is_empty() {
        true => row.verdict.clone(),
        false => verdict_for(node, client, row)?,
    };
    let verdict = verdict.as_str();
    let errno = match verdict {
        "refuse" => Some("ECONNREFUSED"),
        "drop" => Some("EHOSTUNREACH"),
        _ => None,
    };
    let name = client.name();
    let tally = match row.ranges.is_empty() {
        true => client.dial(proto, &row.to, DIALS)?,
        // Clients are known a moment after the table is in force.
        false => eventually(node, || {
            let tally = client.dial(proto, &row.to, DIALS)?;
            let is_unknown = verdict != "refuse" && tally.error("ECONNREFUSED") > 0;
            ensure!(!is_unknown, "{name} {row:?}: {tally:?}");
            Ok(tally)
        })?,
    };
    if let Some(errno) = errno {
        let refused = tally.error(errno);
        ensure!(refused == u64::from(DIALS), "{name} {row:?}: {tally:?}");
        return Ok(());
    }
    let went: Vec<&String> = tally.answers.keys().collect();
    let mut expected: Vec<&String> = row.endpoints.iter().collect();
    expected.sort();
    let is_right = match is_sticky {
        false => went == expected,
        true => went.len() == 1 && expected.contains(&went[0]),
    };
    ensure!(is_right, "{name} {row:?}: {tally:?}");
    Ok(())
}

/// A source range admits one client and not another.
fn verdict_for(node: &Node, client: &Pod, row: &Row) -> Result<String> {
    let to: SocketAddr = row.to.parse()?;
    let from: IpAddr = match to {
        SocketAddr::V4(_) => client.ip4().into(),
        SocketAddr::V6(_) => client.ip6().into(),
    };
    let to = format!("{to}/{}", row.protocol);
    let explanation = explain(node, &from.to_string(), &to)?;
    let verdict = explanation["verdict"].as_str();
    Ok(verdict.context("no verdict")?.to_owned())
}
