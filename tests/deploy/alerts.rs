//! Alerts and the dashboard ask for metrics that there are.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{of_kind, text};

/// Labels that a Prometheus adds: the job, and by deploy/monitoring/podmonitor.yaml the node.
const ADDED: [&str; 2] = ["job", "node"];

/// The labels of each metric, by docs/metrics.md, which a unit test of the agent compares with what it serves.
fn metrics() -> Result<BTreeMap<String, Vec<String>>> {
    let page = text("../docs/metrics.md")?;
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.filter(|row| row.matches('|').count() == 5);
    let mut metrics = BTreeMap::new();
    for row in rows {
        let mut cells = row.split('|').skip(1);
        let name = cells.next().context("no name")?.trim().trim_matches('`');
        let is_histogram = cells.next().context("no type")?.trim() == "histogram";
        let labels = cells.next().context("no labels")?.split(',');
        let labels = labels.map(|label| label.trim().trim_matches('`').to_owned());
        let mut labels: Vec<String> = labels.filter(|label| !label.is_empty()).collect();
        if is_histogram {
            for suffix in ["_sum", "_count"] {
                metrics.insert(format!("{name}{suffix}"), labels.clone());
            }
            labels.push("le".to_owned());
            metrics.insert(format!("{name}_bucket"), labels);
        } else {
            metrics.insert(name.to_owned(), labels);
        }
    }
    ensure!(metrics.len() > 40, "{} metrics", metrics.len());
    Ok(metrics)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Metrics in an expression, each with what is between its braces.
fn selectors(expression: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(['y', 'k', 'p']) {
        let word = &rest[start..];
        let end = word.find(|c| !is_word(c)).unwrap_or(word.len());
        let (name, after) = word.split_at(end.max(1));
        let is_inside = rest[..start].ends_with(is_word);
        if !is_inside
            && ["yurtnet_", "kubeproxy_", "process_"]
                .iter()
                .any(|of| name.starts_with(of))
        {
            let braces = after
                .strip_prefix('{')
                .and_then(|braces| braces.split_once('}'));
            found.push((name, braces.map_or("", |(inside, _)| inside)));
        }
        rest = after;
    }
    found
}

/// Labels that an expression groups by.
fn grouped(expression: &str) -> impl Iterator<Item = &str> {
    let groups = expression.split("by (").skip(1);
    let groups = groups.filter_map(|group| Some(group.split_once(')')?.0));
    groups.flat_map(|group| group.split(',').map(str::trim))
}

fn is_answered(expression: &str, metrics: &BTreeMap<String, Vec<String>>) -> Result<()> {
    // As the agent serves it: what a unit test compares word for word.
    let served = text("../yurt-net/src/observe/metrics/golden.txt")?;
    let selectors = selectors(expression);
    ensure!(!selectors.is_empty(), "it asks for nothing of the agent");
    let mut labels = ADDED.map(str::to_owned).to_vec();
    for (name, braces) in selectors {
        let own = metrics.get(name);
        let own = own.with_context(|| format!("there is no metric {name}"))?;
        for matcher in braces.split(',').filter(|matcher| !matcher.is_empty()) {
            let (label, value) = matcher.split_once('=').context("no matcher")?;
            if ADDED.contains(&label) {
                continue;
            }
            ensure!(own.iter().any(|own| own == label), "{name} has no {label}");
            let sample = format!("{label}={value}");
            let mut lines = served.lines().filter(|line| line.starts_with(name));
            ensure!(
                lines.any(|line| line.contains(&sample)),
                "{name} has no {sample}"
            );
        }
        labels.extend(own.iter().cloned());
    }
    for label in grouped(expression) {
        ensure!(
            labels.iter().any(|known| known == label),
            "no label {label}"
        );
    }
    Ok(())
}

#[test]
fn every_alert_asks_for_a_metric_that_the_agent_serves() -> Result<()> {
    let metrics = metrics()?;
    let rules = of_kind("monitoring/rules.yaml", "PrometheusRule")?;
    let rules = rules["spec"]["groups"][0]["rules"]
        .as_array()
        .context("no rules")?;
    for rule in rules {
        let expression = rule["expr"].as_str().context("no expression")?;
        is_answered(expression, &metrics).with_context(|| rule["alert"].to_string())?;
    }
    ensure!(rules.len() > 10, "{} alerts", rules.len());
    Ok(())
}

#[test]
fn every_panel_of_the_dashboard_asks_for_metrics_that_the_agent_serves() -> Result<()> {
    let metrics = metrics()?;
    let dashboard: Value = serde_json::from_str(&text("monitoring/dashboard.json")?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    for panel in panels {
        for target in panel["targets"].as_array().context("no targets")? {
            let expression = target["expr"].as_str().context("no expression")?;
            is_answered(expression, &metrics).with_context(|| panel["title"].to_string())?;
        }
    }
    ensure!(panels.len() > 10, "{} panels", panels.len());
    Ok(())
}

#[test]
fn a_metric_or_label_that_is_not_there_is_found() -> Result<()> {
    let metrics = metrics()?;
    is_answered(
        "sum by (what, node) (rate(yurtnet_packets_total{node=~\"$node\"}[5m]))",
        &metrics,
    )?;
    for wrong in [
        "yurtnet_reads == 0",
        "sum(yurtnet_ready) / sum(yurtnet_read)",
        "yurtnet_self_test{outcome=\"failed\"} == 1",
        "yurtnet_self_test{result=\"fail\"} == 1",
        "sum by (reason) (yurtnet_packets_total)",
        "kubeproxy_sync_proxy_rules_duration_seconds > 1",
    ] {
        ensure!(is_answered(wrong, &metrics).is_err(), "{wrong}");
    }
    Ok(())
}
