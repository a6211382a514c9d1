//! The cost of reading objects, keeping them and reporting on them.

use serde_json::{Value, json};

use super::{FLOOR, RATIO, processor_time};
use crate::host::disk::memory::Memory;
use crate::model::{Kind, NamespacedName, Rejection, Snapshot};
use crate::observe::metrics;
use crate::observe::status::Status;
use crate::policy::fixtures::World;
use crate::policy::pool_peers;
use crate::source::checkpoint::{Contents, Occasion, Provenance, Saver};
use crate::source::decode::{self, Names, Object};

/// Runs it for a size and for four times as much, several times over, and holds the least of each against the other.
fn four_times<T>(what: &str, size: usize, prepare: impl Fn(usize) -> T, work: impl Fn(&T)) {
    let [small, large] = [size, size * 4].map(|size| {
        let prepared = prepare(size);
        let times = (0..7).map(|_| {
            let started = processor_time();
            work(&prepared);
            processor_time() - started
        });
        times.min().unwrap()
    });
    assert!(
        large < small * RATIO + FLOOR,
        "{what}: {small:?} for {size}, {large:?} for four times as many"
    );
}

fn service(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut service = json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]},
    });
    edit(&mut service);
    service.to_string().into_bytes()
}

fn slice(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut slice = json!({
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.0.2"]}],
    });
    edit(&mut slice);
    slice.to_string().into_bytes()
}

fn many(count: usize, one: impl Fn(usize) -> Value) -> Value {
    (0..count).map(one).collect()
}

fn members(count: usize, value: &str) -> Value {
    let all = (0..count).map(|n| (format!("key-{n}"), json!(value)));
    Value::Object(all.collect())
}

fn item(json: &[u8], kind: &str) -> Option<Object> {
    let version = match kind {
        "Service" => "v1",
        _ => "discovery.k8s.io/v1",
    };
    decode::item(json, kind, version, &mut Names::default()).unwrap()
}

/// Kind and object, as large as one likes.
type Grown = (&'static str, fn(usize) -> Vec<u8>);

const GROWN: [(&str, Grown); 10] = [
    (
        "managedFields",
        ("Service", |n| {
            service(|s| s["metadata"]["managedFields"] = many(n, |_| members(10, "")))
        }),
    ),
    (
        "labels",
        ("Service", |n| {
            service(|s| s["metadata"]["labels"] = members(n * 10, "x"))
        }),
    ),
    (
        "annotations",
        ("Service", |n| {
            service(|s| s["metadata"]["annotations"] = members(n * 10, "x"))
        }),
    ),
    (
        "one external IP again and again",
        ("Service", |n| {
            service(|s| s["spec"]["externalIPs"] = many(n * 10, |_| json!("192.0.2.1")))
        }),
    ),
    (
        "one source range again and again",
        ("Service", |n| {
            service(|s| {
                s["spec"]["loadBalancerSourceRanges"] = many(n * 10, |_| json!("192.0.2.0/24"))
            })
        }),
    ),
    (
        "source ranges",
        ("Service", |n| {
            let range = |n| json!(format!("10.{}.{}.0/24", n / 250 % 250, n % 250));
            service(|s| s["spec"]["loadBalancerSourceRanges"] = many(n * 10, range))
        }),
    ),
    (
        "one port again and again",
        ("Service", |n| {
            service(|s| s["spec"]["ports"] = many(n * 10, |_| json!({"name": "http", "port": 80})))
        }),
    ),
    (
        "one endpoint again and again",
        ("EndpointSlice", |n| {
            slice(|s| s["endpoints"] = many(n * 10, |_| json!({"addresses": ["10.1.0.2"]})))
        }),
    ),
    (
        "endpoints of other nodes and zones",
        ("EndpointSlice", |n| {
            let endpoint = |n| {
                json!({
                    "addresses": ["10.1.0.2"],
                    "nodeName": format!("node-{n}"),
                    "hints": {"forZones": [{"name": format!("zone-{n}")}]},
                })
            };
            slice(|s| s["endpoints"] = many(n * 10, endpoint))
        }),
    ),
    (
        "addresses of one endpoint",
        ("EndpointSlice", |n| {
            slice(|s| s["endpoints"][0]["addresses"] = many(n * 10, |_| json!("10.1.0.2")))
        }),
    ),
];

/// Their names would take as much as all else of them.
#[test]
fn names_of_nodes_that_nobody_else_has_cost_little_and_are_told() {
    let slices = |count: usize| -> Vec<Vec<u8>> {
        let endpoint = |n: usize| {
            json!({
                "addresses": [format!("10.{}.{}.{}", n / 62500, n / 250 % 250, n % 250 + 1)],
                "nodeName": format!("{n:07}{}", "n".repeat(246)),
            })
        };
        let part = |part: usize| {
            slice(|slice| slice["endpoints"] = many(500, |n| endpoint(part * 500 + n)))
        };
        (0..count).map(part).collect()
    };
    four_times("names of nodes", 30, slices, |slices| {
        let mut names = Names::default();
        let read = |json: &Vec<u8>| {
            decode::item(json, "EndpointSlice", "discovery.k8s.io/v1", &mut names).unwrap()
        };
        let all: Vec<Option<Object>> = slices.iter().map(read).collect();
        assert!(all.iter().all(Option::is_some));
    });
}

#[test]
fn an_object_four_times_as_large_is_not_sixteen_times_as_long_in_decoding() {
    for (what, (kind, grown)) in GROWN {
        four_times(what, 400, grown, |json| {
            let _object = item(json, kind);
        });
    }
}

#[test]
fn what_no_rule_reads_is_not_kept() {
    let plain = item(&service(|_| ()), "Service");
    for (what, (kind, grown)) in &GROWN[..3] {
        assert_eq!(item(&grown(1000), kind), plain, "{what}");
    }
    // Every value that means something is shorter.
    let long = service(|s| {
        s["metadata"]["annotations"]["openyurt.io/topologyKeys"] = json!("é".repeat(100_000));
    });
    let Some(Object::Service(long)) = item(&long, "Service") else {
        panic!("no Service");
    };
    assert!(long.topology_keys.as_deref().unwrap().len() <= 256);
}

/// A snapshot of so many Services of ten endpoints.
fn snapshot(services: usize) -> Snapshot {
    let mut world = World::new();
    for n in 0..services {
        let name = format!("web-{n}");
        world.service(&name, |_| ());
        let all: Vec<String> = (0..10)
            .map(|e| format!("10.{}.{}.{e}", n / 250, n % 250))
            .collect();
        let endpoints: Vec<_> = all.iter().map(|a| (&**a, Some("a2"))).collect();
        world.slice(&format!("{name}-1"), &name, &endpoints);
    }
    world.snapshot
}

fn save(saver: &mut Saver<Memory>, snapshot: &Snapshot) {
    let contents = Contents::of(snapshot);
    let provenance = Provenance::default();
    saver
        .save(contents, &provenance, Occasion::Everything)
        .unwrap();
}

#[test]
fn a_checkpoint_four_times_as_large_is_not_sixteen_times_as_long_in_writing_and_reading() {
    four_times("written", 200, snapshot, |snapshot| {
        save(&mut Saver::on(Memory::default()).0, snapshot);
    });
    let written = |services| {
        let disk = Memory::default();
        save(&mut Saver::on(disk.clone()).0, &snapshot(services));
        disk
    };
    four_times("read", 200, written, |disk| {
        let (_, found) = Saver::on(disk.clone());
        assert!(found.loaded.is_some());
    });
}

#[test]
fn a_node_with_many_addresses_is_a_peer_like_any_other() {
    let world = |addresses: usize| {
        let mut world = World::new();
        world.node("a2", Some("hangzhou"), |node| {
            node.internal_ips = (0..addresses).map(super::address).collect();
        });
        world
    };
    let peers = |world: &World| pool_peers(&world.snapshot, &world.config, &world.memory);
    let found = peers(&world(1000));
    assert_eq!(found[0].addresses.len(), 1000);
    four_times("addresses", 2000, world, |world| {
        let _peers = peers(world);
    });
}

#[test]
fn a_status_tells_of_as_many_rejections_however_many_there_are() {
    let rejections = |count: usize| -> Vec<Rejection> {
        let snapshot = Snapshot::default();
        let one = |n: usize| {
            let name = NamespacedName::new(format!("tenant-{}", n % 100), format!("web-{n}"));
            snapshot.reject(Kind::Service, &name, "x".repeat(300))
        };
        (0..count).map(one).collect()
    };
    let status = |rejections: &Vec<Rejection>| {
        let mut status = Status::default();
        status.set_rejections(rejections);
        status
    };
    four_times("told", 1000, rejections, |rejections| {
        let status = status(rejections);
        let _text = serde_json::to_string(&status).unwrap();
        let _metrics = metrics::render(&status);
    });
    let bytes = |count| {
        serde_json::to_string(&status(&rejections(count)))
            .unwrap()
            .len()
    };
    let (few, many) = (bytes(1000), bytes(20_000));
    assert!(many < few + 1000, "{many} bytes instead of {few}");
}
