//! The golden cases once more, through a real agent: it explains, and sockets go, as the table says.

use std::collections::BTreeSet;

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
        rows.extend(case::rows(service)?);
    }
    let mut own = BTreeSet::new();
    for row in rows.iter().filter(|row| row.kind == "NodePort") {
        own.insert(row.to.parse::<std::net::SocketAddr>()?.ip());
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
    for row in &rows {
        is_explained(&node, row)?;
        for client in &clients {
            goes_where_it_should(client, row)?;
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

fn goes_where_it_should(client: &Pod, row: &Row) -> Result<()> {
    let proto = match row.protocol.as_str() {
        "TCP" => Tcp,
        "UDP" => Udp,
        // There is no hook for others.
        _ => return Ok(()),
    };
    let tally = client.dial(proto, &row.to, DIALS)?;
    let name = client.name();
    if row.verdict == "refuse" {
        let refused = tally.error("ECONNREFUSED");
        ensure!(refused == u64::from(DIALS), "{name} {row:?}: {tally:?}");
        return Ok(());
    }
    let went: Vec<&String> = tally.answers.keys().collect();
    let mut expected: Vec<&String> = row.endpoints.iter().collect();
    expected.sort();
    ensure!(went == expected, "{name} {row:?}: {tally:?}");
    Ok(())
}
