//! Several sources: preference, never a merge.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use yurt_net::source::preferred::{Origin, SourceStatus};
use yurt_net::table::edition::SaidBy;
use yurt_net_tests::apiserver::{FakeApiserver, Fault, On, Resource};

use crate::followed::{Followed, PATIENCE, services};
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
    followed.until_status("the hub's node is watched", |_| {
        hub.http().open_watches(Resource::Nodes) == 1
    })?;
    hub.bookmark(Resource::Nodes);
    // Not the sum of both.
    followed.until("what the first one says", |s| services(s) == ["a", "b"])?;
    ensure!(followed.status().provenance == Origin::Hub);
    Ok(())
}

/// Two servers of one cluster, of which the second is in charge, because the first has gone: with what it said, and
/// nothing more.
fn failed_over(
    first: &FakeApiserver,
    second: &FakeApiserver,
    specs: [String; 2],
) -> Result<Followed> {
    let mut followed = Followed::start(&specs)?;
    followed.until("the first one's", |s| services(s) == ["a", "b", "c"])?;
    for resource in [Resource::Services, Resource::EndpointSlices] {
        followed.until_status("it is watched", |_| {
            first.http().open_watches(resource) == 1
        })?;
    }
    first.http().stop();
    followed.until_status("the second one is in charge", |status| {
        status.source == specs[1]
    })?;
    // No replica of it that lags was asked.
    let lists = second.http().requests_on(On::list(Resource::Services));
    ensure!(
        lists
            .iter()
            .all(|list| list.parameter("resourceVersion").is_empty())
    );
    for (name, last) in [("d", 4), ("e", 5)] {
        second.put_all(web(name, last))?;
    }
    followed.until("what is new", |s| services(s) == ALL)?;
    Ok(followed)
}

const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Follows until this source is in charge; all Services are there meanwhile, and then.
fn hands_over(followed: &mut Followed, to: &str) -> Result<()> {
    let started = Instant::now();
    while followed.status().source != to {
        ensure!(started.elapsed() < PATIENCE, "{:?}", followed.status());
        followed.follow(Duration::from_millis(20))?;
        let snapshot = followed.sources().snapshot().map(services);
        ensure!(snapshot.as_deref() == Some(&ALL), "{snapshot:?}");
    }
    Ok(())
}

#[test]
fn an_apiserver_that_comes_back_takes_charge_when_it_has_said_what_was_missed() -> Result<()> {
    let (first, second) = (cluster(&["a", "b", "c"])?, cluster(&["a", "b", "c"])?);
    let specs = [kube(&first), kube(&second)];
    let mut followed = failed_over(&first, &second, specs.clone())?;
    for (name, last) in [("d", 4), ("e", 5)] {
        first.put_all(web(name, last))?;
    }
    // It accepts watches of what it knew, and says nothing yet.
    first
        .http()
        .fail_next(On::watch(Resource::Services), [Fault::StallBody]);
    first.http().restart()?;
    hands_over(&mut followed, &specs[0])?;
    // No replica that lags was asked.
    let lists = first.http().requests_on(On::list(Resource::Services));
    let last = lists.iter().rfind(|one| one.parameter("limit").is_empty());
    ensure!(last.is_some_and(|last| last.parameter("resourceVersion").is_empty()));
    Ok(())
}

/// What it said before it was lost again is of a past, too.
#[test]
fn an_apiserver_that_is_lost_while_it_comes_back_says_all_of_it_once_more() -> Result<()> {
    let (first, second) = (cluster(&["a", "b", "c"])?, cluster(&["a", "b", "c"])?);
    let specs = [kube(&first), kube(&second)];
    let mut followed = failed_over(&first, &second, specs.clone())?;
    let slices = On::list(Resource::EndpointSlices);
    first.http().fail_always(slices, Fault::Stall);
    first.http().restart()?;
    followed.until_status("its Services are read", |_| {
        first.http().open_watches(Resource::Services) == 1
    })?;
    first.http().stop();
    first.http().clear_faults();
    for (name, last) in [("d", 4), ("e", 5)] {
        first.put_all(web(name, last))?;
    }
    followed.until_status("it is lost", |status| {
        let error = status.source_error.as_deref().unwrap_or_default();
        error.contains("services")
    })?;
    first
        .http()
        .fail_next(On::watch(Resource::Services), [Fault::StallBody]);
    first.http().restart()?;
    hands_over(&mut followed, &specs[0])
}

#[test]
fn a_hub_that_comes_back_without_its_cloud_takes_charge_only_once_it_hears_of_it() -> Result<()> {
    let (hub, second) = (cluster(&["a", "b", "c"])?, cluster(&["a", "b", "c"])?);
    let specs = [yurthub(&hub), kube(&second)];
    let mut followed = failed_over(&hub, &second, specs.clone())?;
    hub.http().restart()?;
    followed.until_status("it answers", |status| status.sources[0].is_good)?;
    followed.all_the_while(Duration::from_secs(2), "nothing is taken back", |s| {
        services(s) == ALL
    })?;
    ensure!(followed.status().source == specs[1]);
    let events = |status: &SourceStatus| {
        let all = [Resource::Services, Resource::EndpointSlices];
        all.map(|resource| status.received[resource.plural()].events)
    };
    let before = events(&followed.status());
    for (name, last) in [("d", 4), ("e", 5)] {
        hub.put_all(web(name, last))?;
    }
    followed.until_status("the events", |status| {
        events(status) == before.map(|count| count + 2)
    })?;
    followed.until_status("its node is watched", |_| {
        hub.http().open_watches(Resource::Nodes) == 1
    })?;
    hub.bookmark(Resource::Nodes);
    hands_over(&mut followed, &specs[0])
}

/// Nothing fails then: its answer is on its way, for ever.
#[test]
fn a_source_whose_list_hangs_gives_way_to_the_next_one() -> Result<()> {
    let (first, second) = (cluster(&["a"])?, cluster(&["a", "b"])?);
    let specs = [kube(&first), kube(&second)];
    let mut followed = Followed::start(&specs)?;
    followed.until_status("it is watched", |_| {
        first.http().open_watches(Resource::Services) == 1
    })?;
    let lists = On::list(Resource::Services);
    first.http().fail_always(lists, Fault::StallBody);
    first.expire_watches(Resource::Services);
    followed.until("what the second one says", |s| services(s) == ["a", "b"])?;
    let error = followed.status().source_error;
    let error = error.unwrap_or_default();
    ensure!(error.contains("a list of it is on its way"), "{error}");
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

/// A node that starts again without the cloud: its checkpoint is from an apiserver that is away, and a hub that lacks
/// the last two Services has answered from its disk.
fn restarted_behind_a_hub() -> Result<(FakeApiserver, [String; 2], Followed)> {
    let hub = cluster(&["a", "b", "c"])?;
    let direct = cluster(&ALL)?;
    let specs = [yurthub(&hub), kube(&direct)];
    hub.http().stop();
    let mut before = Followed::start(&specs)?;
    before.until("what the second one says", |s| services(s) == ALL)?;
    let checkpoint = before.checkpoint()?;
    drop(before);

    direct.http().stop();
    hub.http().restart()?;
    let mut followed = Followed::from(&specs, Some(checkpoint))?;
    followed.until_status("the hub has said all", has_said_all)?;
    Ok((hub, specs, followed))
}

fn has_said_all(status: &SourceStatus) -> bool {
    status.sources.iter().any(|source| source.is_good)
}

#[test]
fn after_a_restart_a_hub_waits_for_the_cloud_before_it_replaces_what_another_source_said()
-> Result<()> {
    let (hub, specs, mut followed) = restarted_behind_a_hub()?;
    let status = followed.status();
    ensure!(status.provenance == Origin::Checkpoint, "{status:?}");
    ensure!(
        matches!(&status.held_lists[..], [held] if held.contains("may be older")),
        "{status:?}"
    );
    let kept = followed.sources().snapshot().map(services);
    ensure!(kept.as_deref() == Some(&ALL), "{kept:?}");

    for (name, last) in [("d", 4), ("e", 5)] {
        hub.put_all(web(name, last))?;
    }
    followed.until_status("its node is watched", |_| {
        hub.http().open_watches(Resource::Nodes) == 1
    })?;
    hub.bookmark(Resource::Nodes);
    hands_over(&mut followed, &specs[0])?;
    ensure!(followed.status().held_lists.is_empty());
    Ok(())
}

/// Versions say so, where no bookmark does.
#[test]
fn after_a_restart_a_hub_that_tells_of_something_newer_than_the_checkpoint_is_not_older()
-> Result<()> {
    let (hub, specs, mut followed) = restarted_behind_a_hub()?;
    let is_held = |followed: &mut Followed| followed.sources().unproven() == specs[..1];
    ensure!(is_held(&mut followed));
    // What the checkpoint knows already.
    for (name, last) in [("d", 4), ("e", 5)] {
        hub.put_all(web(name, last))?;
    }
    followed.until_status("the hub has told of it", |status| {
        let events = status.received.values().map(|received| received.events);
        events.sum::<u64>() == 4
    })?;
    ensure!(is_held(&mut followed));
    hub.put_all(web("f", 6))?;
    followed.until("all that the hub has", |s| {
        services(s) == ["a", "b", "c", "d", "e", "f"]
    })?;
    ensure!(followed.status().source == specs[0]);
    Ok(())
}

/// The maps say who said what they hold, where no checkpoint does: it was not written yet, or cannot be.
#[test]
fn after_a_restart_a_hub_waits_for_the_cloud_before_it_replaces_newer_maps_of_another_source()
-> Result<()> {
    let hub = cluster(&["a", "b", "c"])?;
    let direct = cluster(&ALL)?;
    let specs = [yurthub(&hub), kube(&direct)];
    let said_by = |specs: &[String]| -> Result<_> {
        let mut before = Followed::start(specs)?;
        before.until("what it says", |s| !services(s).is_empty())?;
        Ok(before.sources().said_by())
    };
    let (of_hub, of_direct) = (said_by(&specs[..1])?, said_by(&specs[1..])?);
    ensure!(of_hub != of_direct);
    let mut of_hubs = Followed::start(&specs[..1])?;
    of_hubs.until("the hub's", |s| services(s) == ["a", "b", "c"])?;
    let old = of_hubs.checkpoint()?;
    drop(of_hubs);

    direct.http().stop();
    // Without a checkpoint, and with an older one of the hub's own.
    for checkpoint in [None, Some(old)] {
        for newer in [of_direct, SaidBy::UNKNOWN] {
            let mut followed = Followed::from(&specs, checkpoint.clone())?;
            followed.sources().expect(ALL.len(), Some(newer));
            followed.until_status("the hub has said all", has_said_all)?;
            ensure!(followed.sources().unproven() == specs[..1], "{newer:?}");
            ensure!(followed.status().provenance != Origin::Hub, "{newer:?}");
        }
        let mut followed = Followed::from(&specs, checkpoint.clone())?;
        followed.sources().expect(3, Some(of_hub));
        followed.until_status("the hub's own maps", |s| s.provenance == Origin::Hub)?;
    }
    Ok(())
}
