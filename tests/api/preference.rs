//! Several sources: preference, never a merge.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use yurt_net::source::preferred::Origin;

use crate::followed::{Followed, services};
use crate::{cluster, kube, web, yurthub};

#[test]
fn the_second_source_serves_while_the_first_is_away_and_steps_back() -> Result<()> {
    let hub = cluster(&["a", "b"])?;
    let direct = cluster(&["a", "b", "c"])?;
    hub.http().stop();
    let mut followed = Followed::start(&[yurthub(&hub), kube(&direct)])?;
    followed.until("what the second one says", |s| {
        services(s) == ["a", "b", "c"]
    })?;
    ensure!(followed.status().provenance == Origin::Live);
    hub.http().restart()?;
    // Not the sum of both.
    followed.until("what the first one says", |s| services(s) == ["a", "b"])?;
    ensure!(followed.status().provenance == Origin::Hub);
    Ok(())
}

#[test]
fn the_checkpoint_serves_until_a_source_answers() -> Result<()> {
    let api = cluster(&["a", "b"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("both services", |s| services(s) == ["a", "b"])?;
    let checkpoint = followed.checkpoint()?;
    drop(followed);
    api.http().stop();
    let mut followed = Followed::from(&[kube(&api)], Some(checkpoint))?;
    followed.all_the_while(Duration::from_secs(1), "both services are there", |s| {
        services(s) == ["a", "b"]
    })?;
    ensure!(followed.status().provenance == Origin::Checkpoint);
    api.put_all(web("c", 3))?;
    api.http().restart()?;
    followed.until("live data", |s| services(s) == ["a", "b", "c"])?;
    ensure!(followed.status().provenance == Origin::Live);
    Ok(())
}

#[test]
fn a_file_can_stand_behind_an_apiserver() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: fallback}\n\
        spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}\n";
    fs::write(dir.path().join("web.yaml"), manifest)?;
    let api = cluster(&["a"])?;
    api.http().stop();
    let file = format!("file:{}", dir.path().display());
    let mut followed = Followed::start(&[kube(&api), file])?;
    followed.until("the file's service", |s| services(s) == ["fallback"])?;
    ensure!(followed.status().provenance == Origin::File);
    api.http().restart()?;
    followed.until("the apiserver's", |s| services(s) == ["a"])
}
