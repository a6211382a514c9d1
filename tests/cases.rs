//! Every golden case has the table that it says. Needs no root.

#[path = "cases/case.rs"]
mod case;

use std::env;
use std::fmt::Write;
use std::fs;

use anyhow::Context;
use anyhow::Result;
use case::Case;
use case::EXPECT;
use case::HEAD_ENDS;

#[test]
fn every_case_has_the_table_that_it_says() -> Result<()> {
    let all = case::all()?;
    assert!(all.len() >= 20, "{} cases", all.len());
    let mut wrong = String::new();
    for one in &all {
        let name = one.path.display().to_string();
        let plan = one.plan().context(name.clone())?;
        let table = case::essence(&plan).context(name.clone())?;
        if table == one.expect {
            continue;
        }
        if env::var_os("YURT_BLESS").is_some() {
            bless(one, &table)?;
            continue;
        }
        wrong += &format!(
            "\n{name}\n{}\nexpected:\n{}is:\n{table}",
            one.rule, one.expect
        );
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

#[test]
fn most_cases_are_served_by_an_agent_too() -> Result<()> {
    let all = case::all()?;
    let served = all.iter().filter(|one| one.has_sockets).count();
    assert!(served * 2 > all.len(), "{served} of {}", all.len());
    // What an agent is asked about them is in the test binary `netns`.
    let rows: usize = all
        .iter()
        .map(|one| {
            let plan = one.plan()?;
            let services = plan["services"].as_array().into_iter().flatten();
            services
                .map(|service| Ok(case::rows(service)?.len()))
                .sum::<Result<usize>>()
        })
        .sum::<Result<usize>>()?;
    assert!(rows >= 20, "{rows}");
    Ok(())
}

/// Replaces what a case expects by what is.
fn bless(case: &Case, table: &str) -> Result<()> {
    let text = fs::read_to_string(&case.path)?;
    let (head, manifests) = text.split_once(HEAD_ENDS).context("no head")?;
    let head = format!("{head}\n");
    let (head, _) = head.split_once(EXPECT).context("no `expect: |`")?;
    let mut new = format!("{head}{EXPECT}");
    for line in table.lines() {
        writeln!(new, "  {line}")?;
    }
    Ok(fs::write(&case.path, format!("{new}---\n{manifests}"))?)
}
