//! The tables of `services`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::explain::rows::FlowVerdict;
use crate::explain::services::{ExpectedFrontend, LeftOut, Named};
use crate::model::{AddressFamily, Protocol};
use crate::plan::{
    Capacity, FrontendKey, FrontendRow, KeyPort, MapImage, Observed, Outside, ServedSet,
    ServiceImage, Terms,
};
use crate::table::{Closure, Scope};

const CAPACITY: Capacity = Capacity {
    frontends4: 16,
    frontends6: 16,
    services: 16,
    slots4: 64,
    slots6: 16,
};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The maps of a node: a Service with six endpoints for all clients, one that drops clients outside, one that
/// refuses, and one with a damaged set.
fn table() -> TableInForce {
    let row = |service, outside| FrontendRow {
        service,
        outside,
        ..FrontendRow::default()
    };
    let key = |scope, to: &str| {
        let to = at(to);
        let port = KeyPort::Port(scope, Protocol::Tcp, to.port());
        FrontendKey {
            address: to.ip(),
            port,
        }
    };
    let known = FrontendKey {
        address: at("10.96.0.10:0").ip(),
        port: KeyPort::Any,
    };
    let set = |backends: std::ops::Range<u8>, terms| {
        let backends = backends.map(|host| at(&format!("10.244.1.{host}:8080")));
        ServedSet::new(backends.collect(), terms)
    };
    let image = |base, set| ServiceImage {
        family: AddressFamily::V4,
        base,
        set,
    };
    let terms = Terms {
        ranges: vec!["192.0.2.0/24".parse().unwrap()],
        affinity_seconds: 60,
        ..Terms::default()
    };
    let drop = Terms {
        is_drop: true,
        ..Terms::default()
    };
    let observed = Observed {
        frontends: BTreeMap::from([
            (known, FrontendRow::default()),
            (key(Scope::Internal, "10.96.0.10:80"), row(1, Outside::Same)),
            (
                key(Scope::Internal, "192.0.2.1:30080"),
                row(1, Outside::Apart),
            ),
            (key(Scope::External, "192.0.2.1:30080"), row(2, Outside::No)),
            (key(Scope::Internal, "10.96.0.9:80"), row(3, Outside::No)),
            (key(Scope::Internal, "10.96.0.8:80"), row(4, Outside::No)),
        ]),
        services: BTreeMap::from([
            (1, image(0, Some(set(1..7, terms)))),
            (2, image(0, Some(set(0..0, drop)))),
            (3, image(0, Some(set(0..0, Terms::default())))),
            (4, image(60, None)),
        ]),
        ..Observed::default()
    };
    TableInForce {
        image: MapImage::observed(CAPACITY, observed),
        is_attached: true,
    }
}

fn names() -> Names {
    let of = |to: &str, name: &str| {
        let named = Named {
            service: name.to_owned(),
            closure: (!name.contains("api")).then_some(Closure::Pool),
        };
        ((at(to), Protocol::Tcp), named)
    };
    Names {
        known: BTreeMap::from([
            of("10.96.0.10:80", "shop/web:http"),
            of("192.0.2.1:30080", "shop/web:http"),
            of("10.96.0.9:80", "shop/api\u{1b}"),
        ]),
        ..Names::default()
    }
}

fn listing(table: &TableInForce, wanted: Option<&str>) -> Listing {
    Listing::new(table, rows(&table.image), names(), wanted)
}

#[test]
fn each_frontend_is_shown_with_whom_it_is_for_and_what_becomes_of_them() {
    let mut table = table();
    let expected = "\
SERVICE         PROTOCOL  CLOSURE  FRONTEND         CLIENTS  VERDICT  ENDPOINTS
shop/api\\u{1b}  TCP       -        10.96.0.9:80     node     refuse   -
shop/web:http   TCP       pool     10.96.0.10:80    all      forward  10.244.1.1:8080, 10.244.1.2:8080, 10.244.1.3:8080, 10.244.1.4:8080, 2 more
shop/web:http   TCP       pool     192.0.2.1:30080  node     forward  10.244.1.1:8080, 10.244.1.2:8080, 10.244.1.3:8080, 10.244.1.4:8080, 2 more
shop/web:http   TCP       pool     192.0.2.1:30080  outside  drop     -
-               TCP       -        10.96.0.8:80     node     unknown  -
";
    assert_eq!(listing(&table, None).table(Form::Table), expected);
    table.is_attached = false;
    let told = listing(&table, Some("shop/api\u{1b}")).table(Form::Table);
    assert!(told.contains("nothing of this is in force"), "{told}");
    assert_eq!(told.lines().count(), 3, "{told}");
}

#[test]
fn the_wide_table_and_json_have_all_endpoints_and_the_terms() {
    let listing = listing(&table(), Some("shop/web:http"));
    let wide = listing.table(Form::Wide);
    assert!(
        wide.contains("60s       192.0.2.0/24  10.244.1.1:8080, "),
        "{wide}"
    );
    assert!(wide.contains(", 10.244.1.6:8080\n"), "{wide}");
    let json: serde_json::Value = serde_json::from_str(&text::json(&listing).unwrap()).unwrap();
    assert_eq!(json["services"][0]["service"], "shop/web:http");
    assert_eq!(
        json["services"][0]["endpoints"].as_array().map(Vec::len),
        Some(6)
    );
    assert_eq!(json["services"][0]["affinitySeconds"], 60);
    assert_eq!(json["services"][2]["clients"], "outside");
    assert_eq!(json["services"][2]["verdict"], "drop");
    assert_eq!(json["services"].as_array().map(Vec::len), Some(3));
}

fn expected() -> Expected {
    let one = |to: &str, scope, verdict, endpoints| ExpectedFrontend {
        frontend: at(to),
        protocol: Protocol::Tcp,
        scope,
        is_node_port: false,
        verdict,
        endpoints,
    };
    let forward = FlowVerdict::Forward;
    Expected {
        frontends: vec![
            one("10.96.0.10:80", Scope::Internal, forward, 6),
            one("10.96.0.10:80", Scope::External, forward, 6),
            one("192.0.2.1:30080", Scope::Internal, forward, 6),
            one("192.0.2.1:30080", Scope::External, FlowVerdict::Drop, 0),
        ],
        left_out: vec![LeftOut {
            service: "shop/web:http".to_owned(),
            protocol: Protocol::Tcp,
            endpoint: at("10.244.2.9:8080"),
            reason: "closure: node b\u{1b}1 is not in pool a".to_owned(),
        }],
        more_left_out: 3,
        idle: Vec::new(),
    }
}

#[test]
fn of_a_service_that_is_asked_for_the_endpoints_that_take_nothing_are_told_with_the_reason() {
    let mut listing = listing(&table(), Some("shop/web"));
    listing.expect(expected());
    let shown = listing.table(Form::Table);
    let end = "192.0.2.1:30080  outside  drop     -
left out 10.244.2.9:8080/TCP of port http: closure: node b\\u{1b}1 is not in pool a
and 3 more are left out
";
    assert!(shown.ends_with(end), "{shown}");
    let json = listing.text(Form::Json).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["leftOut"][0]["endpoint"], "10.244.2.9:8080");
    assert_eq!(json["moreLeftOut"], 3);
    assert_eq!(json["differences"].as_array().map(Vec::len), Some(0));
    assert_eq!(json["services"][0]["closure"], "pool");
}

#[test]
fn where_the_kernel_has_something_else_than_it_should_that_is_told() {
    let mut listing = listing(&table(), Some("shop/web"));
    let mut expected = expected();
    expected.frontends[0].endpoints = 7;
    expected.frontends[2].frontend = at("192.0.2.2:30080");
    listing.expect(expected);
    let told = listing
        .asked
        .map(|asked| asked.differences)
        .unwrap_or_default();
    assert_eq!(
        told,
        [
            "the kernel has 10.96.0.10:80/TCP for clients all to forward to 6 endpoints, and it should forward to 7 endpoints",
            "the kernel has 192.0.2.1:30080/TCP for clients node, and it should have no such frontend",
            "the kernel has no 192.0.2.2:30080/TCP for internal clients, and it should forward to 6 endpoints",
        ]
    );
}
