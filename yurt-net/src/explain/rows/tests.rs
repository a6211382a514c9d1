//! What `plan` prints, to the letter.

use super::{Paint, plan_json, plan_table};
use crate::model::{Protocol, ServiceType, TrafficPolicy};
use crate::policy::fixtures::{World, ip, port};

fn world() -> World {
    let mut world = World::web(Some("openyurt.io/nodepool"));
    world.pool("hangzhou", &["a1", "a2"]);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = [port("http", 80, 30080)].into();
    });
    world.service("idle", |service| {
        service.cluster_ips = [ip("fd00:96::20")].into();
        service.ports = [port("", 53, 0)].into();
        service.topology_keys = Some("rack".into());
    });
    world
}

fn json(world: &mut World) -> String {
    let table = world.compile();
    serde_json::to_string(&plan_json(&table, &world.reasons())).unwrap()
}

fn value(world: &mut World) -> serde_json::Value {
    serde_json::from_str(&json(world)).unwrap()
}

fn text(world: &mut World, paint: Paint) -> String {
    let table = world.compile();
    plan_table(&table, &world.reasons(), paint)
}

#[test]
fn json_is_the_contract() {
    let mut world = World::web(Some("openyurt.io/nodepool"));
    world.pool("hangzhou", &["a1"]);
    world.slice(
        "web-1",
        "web",
        &[("10.1.0.2", Some("a1")), ("10.2.0.2", Some("b1"))],
    );
    let dropped =
        r#"[{"endpoint":"10.2.0.2:8080","reason":"closure: node b1 is not in pool hangzhou"}]"#;
    let row = |scope, masquerade, path| {
        format!(
            r#"{{"kind":"ClusterIP","address":"10.96.0.10","port":80,"scope":"{scope}","verdict":"forward","endpoints":["10.1.0.2:8080"],"masquerade":{masquerade},"path":"{path}","sourceRanges":[],"dropped":{dropped}}}"#
        )
    };
    let internal = row("internal", false, "socket");
    let external = row("external", true, "packet");
    assert_eq!(
        json(&mut world),
        format!(
            r#"{{"node":"a1","pool":"hangzhou","zone":"","services":[{{"namespace":"default","name":"web","port":"http","protocol":"TCP","closure":"pool","affinitySeconds":0,"frontends":[{internal},{external}]}}],"rejections":[],"seesInterfaces":false}}"#
        )
    );
}

#[test]
fn refuse_has_no_endpoints_and_addresses_have_no_brackets() {
    let mut world = world();
    let json = value(&mut world);
    let row = &json["services"][0]["frontends"][0];
    assert_eq!(row["address"], "fd00:96::20");
    assert_eq!(row["verdict"], "refuse");
    assert_eq!(row["endpoints"], serde_json::json!([]));
    let rejection = &json["rejections"][0];
    let keys: Vec<_> = rejection.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 5);
    assert_eq!(rejection["kind"], "Service");
}

#[test]
fn the_table_reads_well() {
    let mut world = world();
    let text = text(&mut world, Paint::Plain);
    let expected = "\
node a1   pool hangzhou   zone none   service ports 2   rejections 1

default/idle   TCP   closure none
  ClusterIP     [fd00:96::20]:53  internal, external*   refuse
  no endpoint: no EndpointSlice in namespace default has the label kubernetes.io/service-name=idle

default/web:http   TCP   closure pool
  ClusterIP     10.96.0.10:80     internal, external*   forward -> 10.1.0.2:8080, 10.1.1.2:8080
  NodePort      192.0.2.11:30080  internal, external*   forward -> 10.1.0.2:8080, 10.1.1.2:8080
  dropped 10.2.0.2:8080: closure: node b1 is not in pool hangzhou

* only the packet path would serve these clients, and it is off (--packet-path)
the interfaces of node a1 are not known here: on it, a ClusterIP that one of them has is left alone, and NodePorts follow them

rejections
  Service default/idle: annotation openyurt.io/topologyKeys: unknown value \"rack\"";
    assert!(text.starts_with(expected), "{text}");
    assert!(!text.contains('\x1b'));
    assert!(self::text(&mut world, Paint::Ansi).contains("\x1b[2mdropped"));
}

#[test]
fn a_cluster_ip_on_an_interface_of_the_node_passes_and_is_not_said_to_be_forwarded() {
    let mut world = world();
    world.view.local_addresses = Some([ip("10.96.0.10"), ip("192.0.2.11")].into());
    let json = value(&mut world);
    assert_eq!(json["seesInterfaces"], true);
    for row in json["services"][1]["frontends"].as_array().unwrap() {
        let is_left_alone = row["kind"] == "ClusterIP";
        let expected = if is_left_alone { "pass" } else { "forward" };
        assert_eq!(row["verdict"], expected, "{row}");
        assert_eq!(row["endpoints"] == serde_json::json!([]), is_left_alone);
        assert!(row["masquerade"] == false || !is_left_alone, "{row}");
    }
    let text = text(&mut world, Paint::Plain);
    for expected in [
        "10.96.0.10:80     internal, external*   pass   an interface of the node has it: left to what listens there\n",
        "192.0.2.11:30080  internal, external*   forward -> 10.1.0.2:8080, 10.1.1.2:8080\n",
        "\ninterfaces are those of this machine, which has an address of node a1\n",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn long_endpoint_lists_are_cut_in_the_table_and_whole_in_json() {
    let mut world = World::web(None);
    let addresses: Vec<String> = (1..=10).map(|n| format!("10.1.0.{n}")).collect();
    let endpoints: Vec<_> = addresses.iter().map(|a| (a.as_str(), Some("a1"))).collect();
    world.slice("web-1", "web", &endpoints);
    assert!(text(&mut world, Paint::Plain).contains("10.1.0.4:8080, 6 more\n"));
    let json = value(&mut world);
    let listed = &json["services"][0]["frontends"][0]["endpoints"];
    assert_eq!(listed.as_array().map(Vec::len), Some(10));
}

/// Two policies, affinity, source ranges, and an endpoint on this node and on another one.
fn local() -> World {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip("203.0.113.9")].into();
        service.source_ranges = ["198.51.100.0/24".parse().unwrap()].into();
        service.internal_policy = TrafficPolicy::Local;
        service.external_policy = TrafficPolicy::Local;
        service.affinity_seconds = 10_800;
        service.ports = [port("http", 80, 30080)].into();
    });
    world.slice("web-1", "web", &[("10.1.1.2", Some("a2"))]);
    world
}

#[test]
fn policies_affinity_and_source_ranges_are_in_the_table() {
    let text = text(&mut local(), Paint::Plain);
    let expected = "\
default/web:http   TCP   closure none   internal policy Local   external policy Local   affinity 10800 s
  ClusterIP     10.96.0.10:80     internal, external*   drop
  LoadBalancer  203.0.113.9:80    internal              forward -> 10.1.1.2:8080   only from 198.51.100.0/24
  LoadBalancer  203.0.113.9:80    external*             drop   only from 198.51.100.0/24
  NodePort      192.0.2.11:30080  internal              forward -> 10.1.1.2:8080
  NodePort      192.0.2.11:30080  external*             drop
  dropped 10.1.1.2:8080: traffic policy Local: node a2 is not this node

* only the packet path would serve these clients, and it is off (--packet-path)
the interfaces of node a1 are not known here: on it, a ClusterIP that one of them has is left alone, and NodePorts follow them
";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn each_row_has_its_own_verdict_path_ranges_and_dropped_endpoints() {
    let json = json(&mut local());
    assert!(json.contains(r#""affinitySeconds":10800,"#), "{json}");
    assert_eq!(json.matches(r#"{"kind":"#).count(), 6);
    for row in [
        r#"{"kind":"LoadBalancer","address":"203.0.113.9","port":80,"scope":"internal","verdict":"forward","endpoints":["10.1.1.2:8080"],"masquerade":false,"path":"socket","sourceRanges":["198.51.100.0/24"],"dropped":[]}"#,
        r#"{"kind":"NodePort","address":"192.0.2.11","port":30080,"scope":"external","verdict":"drop","endpoints":[],"masquerade":false,"path":"packet","sourceRanges":[],"dropped":[{"endpoint":"10.1.1.2:8080","reason":"traffic policy Local: node a2 is not this node"}]}"#,
    ] {
        assert!(json.contains(row), "{json}");
    }
}

#[test]
fn with_a_packet_path_rows_for_clients_outside_are_not_marked_and_say_what_they_get() {
    let mut world = local();
    let without = json(&mut world);
    world.config.serves_packets = true;
    let text = text(&mut world, Paint::Plain);
    let expected = "\
  ClusterIP     10.96.0.10:80     internal, external    drop
  LoadBalancer  203.0.113.9:80    internal              forward -> 10.1.1.2:8080   only from 198.51.100.0/24
  LoadBalancer  203.0.113.9:80    external              drop   only from 198.51.100.0/24
  NodePort      192.0.2.11:30080  internal              forward -> 10.1.1.2:8080
  NodePort      192.0.2.11:30080  external              drop
  dropped 10.1.1.2:8080: traffic policy Local: node a2 is not this node

the interfaces of node a1 are not known here: on it, a ClusterIP that one of them has is left alone, and NodePorts follow them
";
    assert!(text.ends_with(expected), "{text}");
    assert!(!text.contains('*'), "{text}");
    // The contract is what the table says, whoever enforces it.
    assert_eq!(json(&mut world), without);
    world.service("web", |service| service.ports[0].protocol = Protocol::Sctp);
    let text = self::text(&mut world, Paint::Plain);
    assert!(text.contains("  internal*, external*  refuse"), "{text}");
    assert!(
        text.contains("\n* SCTP is listed only: nothing serves it\n"),
        "{text}"
    );
}

#[test]
fn rows_that_no_hook_of_a_socket_serves_are_marked() {
    let mut world = World::web(None);
    world.service("web", |service| service.ports[0].protocol = Protocol::Sctp);
    world.slice_with("web-1", "web", &[("10.1.0.2", Some("a1"))], |slice| {
        std::sync::Arc::make_mut(&mut slice.ports)[0].protocol = Protocol::Sctp;
    });
    let text = text(&mut world, Paint::Plain);
    assert!(text.contains("  internal*, external*  forward"), "{text}");
    assert!(text.contains("\n* only the packet path"), "{text}");
    // In JSON it is the field `path`; and where there is no row, nothing is explained.
    assert!(!self::text(&mut World::new(), Paint::Plain).contains('*'));
}

/// What a tenant writes who wants the reader to see something else.
const EVIL: &str = "x\nrejections\x1b[2J\u{202e}\u{200b}\r";

#[test]
fn names_of_objects_neither_add_lines_nor_move_the_cursor() {
    let mut world = World::web(Some("openyurt.io/nodepool"));
    world.pool("hangzhou", &["a1"]);
    world.slice("web-1", "web", &[("10.1.0.2", Some(EVIL))]);
    world.service("other", |service| {
        service.cluster_ips = [ip("fd00:96::20")].into();
        service.ports = [port(EVIL, 53, 0), port(EVIL, 54, 0)].into();
        service.topology_keys = Some(EVIL.into());
    });
    let plain = text(&mut world, Paint::Plain);
    assert!(
        plain
            .lines()
            .all(|line| line.chars().all(crate::text::is_plain)),
        "{plain}"
    );
    assert_eq!(
        plain
            .lines()
            .filter(|line| line.starts_with("rejections"))
            .count(),
        1,
        "{plain}"
    );
    let painted = text(&mut world, Paint::Ansi);
    let colours = ["\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"];
    let unpainted = colours
        .iter()
        .fold(painted, |text, code| text.replace(code, ""));
    assert_eq!(unpainted, plain);
    let table = world.compile();
    let json = crate::text::json(&plan_json(&table, &world.reasons())).unwrap();
    assert!(json.chars().all(crate::text::is_plain), "{json}");
}

#[test]
fn a_value_of_a_megabyte_is_not_said_again_for_each_endpoint() {
    let mut world = World::web(Some("openyurt.io/nodepool"));
    world.pool("hangzhou", &["a1"]);
    let long = "n".repeat(1 << 20);
    let addresses: Vec<String> = (1..=50).map(|n| format!("10.1.0.{n}")).collect();
    let endpoints: Vec<_> = addresses.iter().map(|a| (&**a, Some(&*long))).collect();
    world.slice("web-1", "web", &endpoints);
    world.service("other", |service| {
        service.topology_keys = Some((&*long).into())
    });
    assert!(text(&mut world, Paint::Plain).len() < 100_000);
    assert!(json(&mut world).len() < 100_000);
}
