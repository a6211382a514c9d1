//! What goes wrong on request.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use yurt_net_tests::apiserver::FakeApiserver;
use yurt_net_tests::apiserver::Fault;
use yurt_net_tests::apiserver::On;
use yurt_net_tests::apiserver::Resource;
use yurt_net_tests::apiserver::Verb;

use crate::client::ask;
use crate::client::ask_within;
use crate::client::json;
use crate::client::watch;
use crate::service;

const SERVICES: &str = "/api/v1/services";

fn three() -> Result<FakeApiserver> {
    let api = FakeApiserver::start()?;
    api.put_all(["a", "b", "c"].map(|name| service(name, "web")))?;
    Ok(api)
}

#[test]
fn errors_come_in_order_and_then_no_more() -> Result<()> {
    let api = three()?;
    let codes = [429, 500, 502, 503, 504, 401, 403, 404, 400, 410];
    let lists = On::list(Resource::Services);
    api.http().fail_next(lists, codes.map(Fault::Status));
    for code in codes {
        assert_eq!(json(api.http(), "/api/v1/nodes")?.0, 200);
        let (status, error) = json(api.http(), SERVICES)?;
        assert_eq!(status, code);
        assert_eq!(error["code"], code);
        assert_eq!(error["kind"], "Status");
    }
    assert_eq!(api.http().pending_faults(), 0);
    assert_eq!(json(api.http(), SERVICES)?.0, 200);
    let statuses = api.http().requests_on(lists);
    let statuses: Vec<_> = statuses.iter().filter_map(|e| e.status).collect();
    assert_eq!(statuses[..10], codes);
    Ok(())
}

#[test]
fn what_always_happens_does_until_it_is_cleared() -> Result<()> {
    let api = three()?;
    api.http()
        .fail_always(On::verb(Verb::List), Fault::RetryAfter(429, 7));
    for _ in 0..3 {
        let answer = ask(api.http(), SERVICES, &[])?;
        assert_eq!((answer.status, answer.header("retry-after")), (429, "7"));
    }
    api.http().clear_faults();
    assert_eq!(ask(api.http(), SERVICES, &[])?.status, 200);
    Ok(())
}

#[test]
fn connections_are_reset_closed_and_refused() -> Result<()> {
    let api = three()?;
    api.http().fail_next(On::ANY, [Fault::Reset, Fault::Close]);
    let error = ask(api.http(), SERVICES, &[]).unwrap_err();
    let kind = error.downcast_ref::<std::io::Error>().map(|e| e.kind());
    assert_eq!(kind, Some(ErrorKind::ConnectionReset), "{error:#}");
    let error = ask(api.http(), SERVICES, &[]).unwrap_err();
    assert!(error.to_string().contains("closed before"), "{error:#}");
    let mut events = watch(api.http(), &format!("{SERVICES}?resourceVersion=1003"))?;
    api.http().stop();
    assert!(events.part().is_err());
    let refused = TcpStream::connect(api.http().address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    api.http().restart()?;
    assert_eq!(ask(api.http(), SERVICES, &[])?.status, 200);
    Ok(())
}

#[test]
fn silence_before_and_after_the_head() -> Result<()> {
    let api = three()?;
    let faults = [Fault::StallBody, Fault::StallAfter(20), Fault::Stall];
    api.http().fail_next(On::ANY, faults);
    let mut answer = ask(api.http(), SERVICES, &[])?;
    assert_eq!(answer.status, 200);
    assert!(answer.is_silent()?);
    let mut answer = ask(api.http(), SERVICES, &[])?;
    assert_eq!(answer.part()?.map(|part| part.len()), Some(20));
    assert!(answer.is_silent()?);
    assert!(ask_within(Duration::from_millis(150), api.http(), SERVICES).is_err());
    let last = api.http().requests().pop();
    assert_eq!(last.and_then(|exchange| exchange.status), None);
    Ok(())
}

#[test]
fn bodies_are_cut_and_dripped() -> Result<()> {
    let api = three()?;
    let whole = ask(api.http(), SERVICES, &[])?.body()?;
    let pause = Duration::from_millis(5);
    let faults = [
        Fault::Cut(100),
        Fault::Cut(usize::MAX),
        Fault::Drip(40, pause),
        Fault::Delay(pause),
    ];
    api.http().fail_next(On::list(Resource::Services), faults);
    let (body, is_whole) = ask(api.http(), SERVICES, &[])?.body_and_end();
    assert_eq!((&body[..], is_whole), (&whole[..100], false));
    let (body, is_whole) = ask(api.http(), SERVICES, &[])?.body_and_end();
    assert_eq!((body, is_whole), (whole.clone(), false));
    let start = Instant::now();
    assert_eq!(ask(api.http(), SERVICES, &[])?.body()?, whole);
    assert!(start.elapsed() > 5 * pause);
    assert_eq!(ask(api.http(), SERVICES, &[])?.body()?, whole);

    let watches = On::watch(Resource::Services);
    api.http().fail_next(watches, [Fault::Cut(50)]);
    let mut events = watch(api.http(), SERVICES)?;
    let (line, is_whole) = events.body_and_end();
    assert_eq!((line.len(), is_whole), (50, false));
    Ok(())
}

#[test]
fn lists_that_are_not_true() -> Result<()> {
    let api = three()?;
    let faults = [
        Fault::EmptyList,
        Fault::PartOfList(2),
        Fault::ListVersion(7),
        Fault::None,
    ];
    api.http().fail_next(On::list(Resource::Services), faults);
    for (items, version) in [(0, "1003"), (2, "1003"), (3, "7"), (3, "1003")] {
        let (_status, list) = json(api.http(), SERVICES)?;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(items));
        assert_eq!(list["metadata"]["resourceVersion"], version);
    }
    let html = Fault::Body("text/html", b"<html>log in</html>".to_vec());
    api.http().fail_next(On::ANY, [html]);
    let mut answer = ask(api.http(), SERVICES, &[])?;
    assert_eq!(answer.header("content-type"), "text/html");
    assert!(answer.body()?.starts_with(b"<html>"));
    Ok(())
}

#[test]
fn requests_are_written_down() -> Result<()> {
    let api = three()?;
    let path = format!("{SERVICES}?resourceVersion=0&labelSelector=app%3Dweb");
    ask(api.http(), &path, &[("user-agent", "yurt-net/0.1")])?.body()?;
    let [request] = &api.http().requests()[..] else {
        panic!("one request");
    };
    assert_eq!(request.header("user-agent"), "yurt-net/0.1");
    assert_eq!(request.parameter("labelSelector"), "app=web");
    assert_eq!(
        (request.method.as_str(), request.status),
        ("GET", Some(200))
    );
    assert_eq!(request.resource, Some(Resource::Services));
    assert_eq!(
        request.body_bytes,
        api.http().bytes_sent(Resource::Services)
    );
    assert!(request.body_bytes > 300);
    Ok(())
}

#[test]
fn a_task_can_use_it_too() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let api = three()?;
        let stream = tokio::net::TcpStream::connect(api.http().address()).await?;
        stream.writable().await?;
        stream.try_write(b"GET /readyz HTTP/1.1\r\nhost: fake\r\n\r\n")?;
        let patience = Duration::from_secs(60);
        let is_answered = |e: &yurt_net_tests::apiserver::Exchange| e.status == Some(200);
        api.http()
            .until(patience, |http| http.requests().iter().any(is_answered))
            .await
    })
}
