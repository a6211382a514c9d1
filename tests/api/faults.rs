//! What can go wrong on the way.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use yurt_net_tests::apiserver::{FakeApiserver, Fault, On, Resource, Settings, objects};

use crate::followed::{Followed, services};
use crate::{NODE, address, cluster, cluster_with, kube, web, yurthub};

fn lists() -> On {
    On::list(Resource::Services)
}

/// A change arrives although this happens to the next lists, and nothing goes missing meanwhile.
fn survives(faults: impl IntoIterator<Item = Fault>) -> Result<()> {
    let api = cluster(&["a", "b", "c"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("all services", |s| services(s) == ["a", "b", "c"])?;
    relists(&api, &mut followed, faults)
}

fn relists(
    api: &FakeApiserver,
    followed: &mut Followed,
    faults: impl IntoIterator<Item = Fault>,
) -> Result<()> {
    api.http().fail_next(lists(), faults);
    api.put_all(web("d", 9))?;
    api.compact();
    api.expire_watches(Resource::Services);
    followed.all_the_while(Duration::from_millis(300), "a, b and c are there", |s| {
        ["a", "b", "c"]
            .iter()
            .all(|name| services(s).contains(name))
    })?;
    followed.until("the new service", |s| services(s) == ["a", "b", "c", "d"])?;
    // The event may have come before its watch was ended: the lists do come.
    followed.until_status("all of it happened", |_| api.http().pending_faults() == 0)?;
    followed.until("the new service", |s| services(s) == ["a", "b", "c", "d"])
}

#[test]
fn a_list_that_breaks_off_anywhere_loses_nothing() -> Result<()> {
    for bytes in [0, 1, 40, 100, 700, 1500] {
        survives([Fault::Cut(bytes)])?;
    }
    Ok(())
}

/// Beside which nothing else would run, for as long as they come.
#[test]
fn a_server_that_only_ever_says_continue_is_given_up() -> Result<()> {
    /// What the kernel buffers of a connection is a tenth.
    const MOST: usize = 64 << 20;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("kube:http://{}", listener.local_addr()?);
    let server = thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = listener.accept()?;
        let many = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
        let mut sent = 0;
        while sent < MOST && stream.write_all(&many).is_ok() {
            sent += many.len();
        }
        Ok(sent)
    });
    let mut followed = Followed::start(&[url])?;
    followed.until_status("it is given up", |_| server.is_finished())?;
    let sent = server.join().map_err(|_panic| anyhow!("the server"))??;
    ensure!(sent < MOST, "all of {sent} bytes were read");
    Ok(())
}

#[test]
fn an_answer_that_is_no_list_loses_nothing() -> Result<()> {
    let portal = || Fault::Body("text/html", b"<html>log in first</html>".to_vec());
    survives([portal()])?;
    survives([Fault::Body("application/json", b"{}".to_vec())])?;
    let empty = br#"{"kind":"Status","items":null}"#.to_vec();
    survives([Fault::Body("application/json", empty)])
}

#[test]
fn a_list_of_another_kind_takes_no_service_away() -> Result<()> {
    let slices = br#"{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":
        {"resourceVersion":"1000000"},"items":[{"kind":"EndpointSlice","metadata":{"name":"a-1"}}]}"#;
    survives([Fault::Body("application/json", slices.to_vec())])
}

#[test]
fn a_list_with_an_item_of_another_kind_takes_no_service_away() -> Result<()> {
    let mixed = br#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1000000"},"items":[
        {"kind":"Service","apiVersion":"v1","metadata":{"namespace":"default","name":"a"},"spec":{}},
        {"kind":"Secret","apiVersion":"v1","metadata":{"namespace":"default","name":"b"}}]}"#;
    survives([Fault::Body("application/json", mixed.to_vec())])
}

#[test]
fn an_event_of_another_kind_takes_no_service_away() -> Result<()> {
    let api = cluster(&["a", "b", "c"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("all services", |s| services(s) == ["a", "b", "c"])?;
    let event = |deed: &str| {
        let object = json!({
            "kind": "Secret",
            "apiVersion": "v1",
            "metadata": { "namespace": "default", "name": "a", "resourceVersion": "1000000" },
        });
        let line = format!("{}\n", json!({ "type": deed, "object": object }));
        Fault::Body("application/json", line.into_bytes())
    };
    let watches = On::watch(Resource::Services);
    api.http()
        .fail_next(watches, ["MODIFIED", "DELETED"].map(event));
    relists(&api, &mut followed, [])
}

/// Of a proxy that drops the query, and of a server that has more each time.
#[test]
fn a_list_whose_pages_never_end_is_given_up_and_loses_nothing() -> Result<()> {
    const PAGES: usize = 200;
    let page = |token: usize| {
        let item = objects::service(&format!("more-{token}"), address(200), 80);
        let list = json!({
            "kind": "ServiceList",
            "apiVersion": "v1",
            "metadata": { "resourceVersion": "7", "continue": token.to_string() },
            "items": [item],
        });
        Fault::Body("application/json", list.to_string().into_bytes())
    };
    let endless = [
        (
            vec![page(1), page(1)],
            "a page names itself as the next one",
        ),
        ((0..PAGES).map(page).collect(), "it has more than 200 pages"),
    ];
    for (pages, why) in endless {
        let api = cluster(&["a", "b", "c"])?;
        let mut followed = Followed::start(&[kube(&api)])?;
        followed.until("all services", |s| services(s).len() == 3)?;
        followed.until_watched(&api)?;
        let count = pages.len();
        api.http().forget_requests();
        api.http().fail_next(lists(), pages);
        // What would be one page more, or the list that is tried after a pause.
        api.http().fail_always(lists(), Fault::Stall);
        api.compact();
        api.expire_watches(Resource::Services);
        followed.until_status("it is given up", |status| {
            let problems = format!("{status:?}");
            problems.contains(&format!("the list of services does not end: {why}"))
        })?;
        followed.until_status("it is asked for anew", |_| {
            api.http().requests_on(lists()).len() == count + 1
        })?;
        let asked = api.http().requests_on(lists());
        let last = asked.last().map(|request| request.parameter("continue"));
        ensure!(last == Some(""), "{last:?}");
        followed.until("nothing has come or gone", |s| {
            services(s) == ["a", "b", "c"]
        })?;
        api.put_all(web("d", 9))?;
        api.http().clear_faults();
        api.http().drop_connections()?;
        followed.until("the new service", |s| services(s) == ["a", "b", "c", "d"])?;
    }
    Ok(())
}

#[test]
fn errors_of_the_server_lose_nothing() -> Result<()> {
    for status in [429, 500, 502, 503, 504] {
        survives([Fault::Status(status)])?;
    }
    survives([Fault::Reset, Fault::Close])
}

#[test]
fn a_server_that_refuses_loses_nothing() -> Result<()> {
    for status in [401, 403, 404, 410] {
        survives([Fault::Status(status)])?;
    }
    Ok(())
}

#[test]
fn a_live_list_that_is_empty_is_believed_at_once() -> Result<()> {
    let api = cluster(&["a", "b", "c"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("all services", |s| services(s).len() == 3)?;
    followed.until_watched(&api)?;
    api.http().fail_next(lists(), [Fault::EmptyList]);
    api.expire_watches(Resource::Services);
    followed.until("none", |s| services(s).is_empty())
}

#[test]
fn an_empty_list_of_a_cache_is_held_back_visibly_until_it_is_confirmed() -> Result<()> {
    let api = cluster(&["a", "b", "c"])?;
    let mut followed = Followed::start(&[yurthub(&api)])?;
    followed.until("all services", |s| services(s).len() == 3)?;
    followed.until_watched(&api)?;
    api.http().fail_next(lists(), [Fault::EmptyList]);
    api.expire_watches(Resource::Services);
    followed.until_status("it is held back", |status| !status.held_lists.is_empty())?;
    followed.all_the_while(Duration::from_secs(2), "all services stay", |s| {
        services(s).len() == 3
    })?;
    // The next list, ten seconds later, has them again.
    followed.until_status("it is forgotten", |status| status.held_lists.is_empty())?;
    followed.until("all services", |s| services(s).len() == 3)
}

#[test]
fn a_version_may_go_backwards() -> Result<()> {
    let api = cluster(&["a", "b", "c"])?;
    api.advance(5000);
    api.put_all(web("c2", 8))?;
    let mut followed = Followed::start(&[yurthub(&api)])?;
    followed.until("all services", |s| services(s).len() == 4)?;
    api.rewind(100);
    api.put_all(web("d", 9))?;
    followed.until("what came after", |s| services(s).len() == 5)
}

/// A watch from a version that is yet to come is accepted, and silent.
#[test]
fn an_apiserver_whose_versions_went_back_is_listed_anew_by_who_watched_it_and_by_who_starts()
-> Result<()> {
    let settings = Settings {
        is_future_watch_silent: true,
        ..Settings::default()
    };
    let api = cluster_with(settings, &["a", "b"])?;
    api.advance(5000);
    api.put_all(web("c", 3))?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("all services", |s| services(s) == ["a", "b", "c"])?;
    let checkpoint = followed.checkpoint()?;
    followed.until_watched(&api)?;

    // Its etcd was restored from a backup.
    api.http().stop();
    api.rewind(100);
    api.http().restart()?;
    api.put_all(web("d", 9))?;
    followed.until("what came after", |s| {
        services(s) == ["a", "b", "c", "d"] && s.slices.len() == 4
    })?;
    drop(followed);

    let mut next = Followed::from(&[kube(&api)], Some(checkpoint))?;
    next.until("what came after", |s| {
        services(s) == ["a", "b", "c", "d"] && s.slices.len() == 4
    })
}

#[test]
fn a_connection_that_is_made_anew_costs_one_item_of_a_list_and_no_list() -> Result<()> {
    let api = cluster(&["a", "b", "c"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("all services", |s| services(s).len() == 3)?;
    followed.until_watched(&api)?;
    api.http().forget_requests();
    api.http().drop_connections()?;
    followed.until_watched(&api)?;
    let lists = api.http().requests_on(lists());
    ensure!(
        lists.len() == 1 && lists[0].parameter("limit") == "1",
        "{lists:?}"
    );
    Ok(())
}

/// A Node tells of its images, a slice of a hundred endpoints: 30 KB each.
#[test]
fn a_connection_that_is_made_anew_costs_nothing_of_an_object_but_its_metadata() -> Result<()> {
    let api = cluster(&["a"])?;
    let endpoint = |last: u8| objects::endpoint(Ipv4Addr::new(10, 1, 0, last).into(), NODE);
    api.put(objects::slice("a-1", "a", 8080, (1..=100).map(endpoint)))?;
    let mut followed = Followed::start(&[kube(&api)])?;
    let lists = || api.http().requests_on(On::list(Resource::EndpointSlices));
    let is_watched = || api.http().open_watches(Resource::EndpointSlices) == 1;
    followed.until_status("slices are watched", |_| is_watched())?;
    api.http().forget_requests();
    api.http().drop_connections()?;
    followed.until_status("they are again", |_| is_watched() && !lists().is_empty())?;
    let lists = lists();
    ensure!(
        lists.len() == 1 && (1..1000).contains(&lists[0].body_bytes),
        "{lists:?}"
    );
    Ok(())
}

#[test]
fn watches_that_end_all_the_time_lose_no_event() -> Result<()> {
    let api = cluster(&["a"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the service", |s| services(s) == ["a"])?;
    for last in 10..20 {
        api.end_all_watches();
        api.put_all(web(&format!("b{last}"), last))?;
        followed.follow(Duration::from_millis(30))?;
    }
    followed.until("all services", |s| {
        services(s).len() == 11 && s.slices.len() == 11
    })?;
    let lists = api.http().requests_on(lists());
    ensure!(lists.len() == 1, "{} lists", lists.len());
    Ok(())
}

#[test]
fn a_server_that_goes_away_takes_nothing_with_it() -> Result<()> {
    let api = cluster(&["a", "b"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("both services", |s| services(s) == ["a", "b"])?;
    api.http().stop();
    followed.all_the_while(Duration::from_secs(2), "both services stay", |s| {
        services(s) == ["a", "b"]
    })?;
    followed.until_status("it is said", |status| status.source_error.is_some())?;
    api.put_all(web("c", 3))?;
    api.http().restart()?;
    followed.until("the third one", |s| services(s) == ["a", "b", "c"])?;
    followed.until_status("all is well", |status| status.source_error.is_none())
}

#[test]
fn garbage_in_a_watch_leads_to_a_list() -> Result<()> {
    let api = cluster(&["a"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the service", |s| services(s) == ["a"])?;
    // Followed meanwhile: a client that nobody drives opens no watch.
    followed.until_watched(&api)?;
    api.inject(Resource::Services, "{\"type\":\"ADDED\",\"object\":\n");
    api.put_all(web("b", 2))?;
    followed.until("both", |s| services(s) == ["a", "b"])?;
    ensure!(api.http().requests_on(lists()).len() == 2);
    Ok(())
}

#[test]
fn events_that_come_twice_or_out_of_order_come_to_the_same() -> Result<()> {
    let api = cluster(&["a"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the service", |s| services(s) == ["a"])?;
    api.pause(Resource::Services);
    api.put_all(web("b", 2))?;
    followed.until("its slice comes first", |s| {
        s.slices.len() == 2 && s.services.len() == 1
    })?;
    api.resume(Resource::Services);
    followed.until("then the service", |s| services(s) == ["a", "b"])?;
    api.repeat_last_event(Resource::Services);
    api.bookmark(Resource::Services);
    api.put_all(web("c", 3))?;
    followed.until("and the next", |s| services(s) == ["a", "b", "c"])
}

#[test]
fn a_silent_future_version_is_left_after_the_hub_has_ended_the_watch() -> Result<()> {
    // As a hub whose cache is older than the checkpoint.
    let settings = Settings {
        is_future_watch_silent: true,
        ..Settings::default()
    };
    let api = cluster_with(settings, &["a", "b"])?;
    let mut first = Followed::start(&[yurthub(&api)])?;
    first.until("both services", |s| services(s) == ["a", "b"])?;
    let mut checkpoint = first.checkpoint()?;
    for version in checkpoint.provenance.resource_versions.values_mut() {
        *version = "99999".to_owned();
    }
    drop(first);
    let mut followed = Followed::from(&[yurthub(&api)], Some(checkpoint))?;
    followed.all_the_while(Duration::from_secs(1), "both services stay", |s| {
        services(s) == ["a", "b"]
    })?;
    api.put_all(web("c", 3))?;
    api.expire_watches(Resource::Services);
    api.expire_watches(Resource::EndpointSlices);
    followed.until("the third one", |s| services(s) == ["a", "b", "c"])
}

/// As an apiserver does for minutes while it shuts down, and some proxies always.
#[test]
fn a_server_that_closes_each_connection_after_its_answer_is_watched_and_is_not_flooded()
-> Result<()> {
    let api = cluster(&["a"])?;
    api.http().fail_always(On::ANY, Fault::LastAnswer);
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the service", |s| services(s) == ["a"])?;
    followed.until_status("it is watched", |_| {
        api.http().open_watches(Resource::Services) == 1
    })?;
    api.put_all(web("b", 2))?;
    followed.until("the new one", |s| services(s) == ["a", "b"])?;
    // A watch that ends is made again, from where it was.
    api.end_all_watches();
    api.put_all(web("c", 3))?;
    followed.until("the next one", |s| services(s) == ["a", "b", "c"])?;
    let lists = api.http().requests_on(On::list(Resource::Services));
    // The first one, and before each watch the question how far the server has come.
    let lists = lists.iter().filter(|one| one.parameter("limit").is_empty());
    ensure!(lists.count() == 1);
    ensure!(api.http().connections() < 100);
    Ok(())
}
