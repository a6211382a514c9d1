//! Nothing is lost because of an error, and a list is whole or absent.

mod stripped;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use serde_json::{Value, json};

use super::*;
use crate::model::{Kind, Manifest};
use crate::table::MAX_ENDPOINTS;

const V1: &str = "v1";

fn live() -> ClusterState {
    ClusterState::new("edge-a1", Snapshot::default(), &BTreeMap::new(), false)
}

fn cache() -> ClusterState {
    ClusterState::new("edge-a1", Snapshot::default(), &BTreeMap::new(), true)
}

fn service(name: &str, port: i64) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "resourceVersion": "1"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]},
    })
}

fn list(state: &mut ClusterState, names: &[&str], at: u64) -> Listed {
    for name in names {
        let json = service(name, 80).to_string();
        state.item(Resource::Services, V1, json.as_bytes());
    }
    state.listed(Resource::Services, "5", Duration::from_secs(at))
}

fn put(state: &mut ClusterState, object: &Value) -> bool {
    state.put(Resource::Services, V1, object.to_string().as_bytes(), "6")
}

fn names(state: &ClusterState) -> Vec<&str> {
    let services = state.snapshot().services.keys();
    services.map(|name| &*name.name).collect()
}

#[test]
fn a_list_shows_when_it_is_whole_and_takes_away_what_it_does_not_have() {
    let mut state = live();
    list(&mut state, &["a", "b", "c"], 0);
    state.item(
        Resource::Services,
        V1,
        service("d", 80).to_string().as_bytes(),
    );
    assert_eq!(names(&state), ["a", "b", "c"]);
    state.abandon_list(Resource::Services);
    assert_eq!(
        list(&mut state, &["b"], 1),
        Listed::Used { has_changed: true }
    );
    assert_eq!(names(&state), ["b"]);
}

#[test]
fn an_equal_object_keeps_its_identity() {
    let mut state = live();
    list(&mut state, &["a", "b"], 0);
    let before = state.snapshot().services.values().next().cloned().unwrap();
    assert_eq!(
        list(&mut state, &["a", "b"], 1),
        Listed::Used { has_changed: false }
    );
    assert!(!put(&mut state, &service("a", 80)));
    let after = state.snapshot().services.values().next().unwrap();
    assert!(Arc::ptr_eq(&before, after));
}

#[test]
fn an_object_that_became_invalid_keeps_its_last_good_version() {
    let mut state = live();
    list(&mut state, &["a", "b"], 0);
    assert!(put(&mut state, &service("a", 99_999)));
    assert_eq!(names(&state), ["a", "b"]);
    let rejection = &state.snapshot().rejections[0];
    assert_eq!(
        (rejection.name.as_str(), rejection.source.as_str()),
        ("a", "")
    );
    assert!(
        rejection.reason.contains("the last good version is kept"),
        "{}",
        rejection.reason
    );
    // Also when it comes again in a list.
    state.item(
        Resource::Services,
        V1,
        service("a", 99_999).to_string().as_bytes(),
    );
    state.listed(Resource::Services, "7", Duration::ZERO);
    assert_eq!(names(&state), ["a"]);
    assert_eq!(state.snapshot().rejections.len(), 1);
    // And it is forgiven when it is mended, or gone.
    assert!(put(&mut state, &service("a", 81)));
    assert_eq!(state.snapshot().rejections, []);
}

#[test]
fn a_new_object_that_is_invalid_costs_only_itself() {
    let mut state = live();
    put(&mut state, &service("bad", 0));
    put(&mut state, &service("good", 80));
    assert_eq!(names(&state), ["good"]);
    assert_eq!(state.snapshot().rejections.len(), 1);
    let gone = service("bad", 0).to_string();
    assert!(state.delete(Resource::Services, gone.as_bytes(), "8"));
    assert_eq!(state.snapshot().rejections, []);
}

#[test]
fn an_empty_list_from_a_cache_is_held_until_the_next_one_says_the_same() {
    let mut state = cache();
    list(&mut state, &["a", "b", "c"], 0);
    assert_eq!(list(&mut state, &[], 100), Listed::Held);
    assert_eq!(names(&state), ["a", "b", "c"]);
    assert_eq!(
        state.held().collect::<Vec<_>>(),
        [HeldList {
            resource: "services",
            have: 3,
            offered: 0,
            is_of_no_cluster: false,
        }]
    );
    assert_eq!(
        list(&mut state, &[], 110),
        Listed::Used { has_changed: true }
    );
    assert_eq!(names(&state), [""; 0]);
}

#[test]
fn a_cache_that_says_the_same_twice_in_a_moment_confirms_nothing() {
    let mut state = cache();
    list(&mut state, &["a", "b", "c"], 0);
    assert_eq!(list(&mut state, &[], 100), Listed::Held);
    assert_eq!(list(&mut state, &[], 101), Listed::Held);
    // Something else in between: the ten seconds begin anew.
    assert_eq!(list(&mut state, &["a"], 105), Listed::Held);
    assert_eq!(list(&mut state, &[], 111), Listed::Held);
    assert_eq!(names(&state), ["a", "b", "c"]);
    assert_eq!(
        list(&mut state, &[], 121),
        Listed::Used { has_changed: true }
    );
}

#[test]
fn a_list_from_a_cache_that_is_under_half_is_held_and_a_half_one_is_not() {
    let mut state = cache();
    list(&mut state, &["a", "b", "c", "d"], 0);
    assert_eq!(
        list(&mut state, &["a", "b"], 1),
        Listed::Used { has_changed: true }
    );
    let mut state = cache();
    list(&mut state, &["a", "b", "c"], 0);
    assert_eq!(list(&mut state, &["a"], 1), Listed::Held);
    // A list that is whole again wins at once.
    assert_eq!(
        list(&mut state, &["a", "b", "c"], 2),
        Listed::Used { has_changed: false }
    );
    assert_eq!(state.held().count(), 0);
}

#[test]
fn a_list_that_a_cache_was_not_believed_is_not_confirmed_by_an_apiserver_that_takes_its_place() {
    let mut state = cache();
    list(&mut state, &["a", "b", "c"], 0);
    assert_eq!(list(&mut state, &["a"], 1), Listed::Held);
    state.set_cache(false);
    assert_eq!(state.held().count(), 0);
    // It goes on from what was in force.
    state.watching(Resource::Services);
    put(&mut state, &service("d", 80));
    assert_eq!(names(&state), ["a", "b", "c", "d"]);
    assert!(!state.release(LONGEST_HOLD * 2));
    assert_eq!(names(&state), ["a", "b", "c", "d"]);
}

#[test]
fn lists_of_a_cache_that_differ_are_held_for_a_minute_at_most() {
    let mut state = cache();
    list(&mut state, &["a", "b", "c", "d", "e"], 0);
    assert_eq!(list(&mut state, &["a"], 10), Listed::Held);
    assert_eq!(list(&mut state, &["b"], 20), Listed::Held);
    assert_eq!(state.release_at(), Some(Duration::from_secs(70)));
    assert!(!state.release(Duration::from_secs(69)));
    assert!(state.release(Duration::from_secs(70)));
    assert_eq!(names(&state), ["b"]);
    assert_eq!(state.release_at(), None);
}

#[test]
fn an_event_confirms_a_list_that_is_held() {
    let mut state = cache();
    list(&mut state, &["a", "b", "c"], 0);
    assert_eq!(list(&mut state, &["a"], 1), Listed::Held);
    assert!(put(&mut state, &service("z", 80)));
    assert_eq!(names(&state), ["a", "z"]);
}

#[test]
fn a_live_list_is_believed_at_once() {
    let mut state = live();
    list(&mut state, &["a", "b", "c"], 0);
    assert_eq!(list(&mut state, &[], 1), Listed::Used { has_changed: true });
    assert_eq!(names(&state), [""; 0]);
}

#[test]
fn the_first_list_of_another_pool_is_believed() {
    let mut state = cache();
    list(&mut state, &["a", "b", "c"], 0);
    state.renew(Resource::Services);
    assert_eq!(state.version(Resource::Services), None);
    assert_eq!(list(&mut state, &[], 1), Listed::Used { has_changed: true });
}

#[test]
fn what_an_earlier_agent_knew_is_there_until_a_list_says_otherwise() {
    let mut earlier = live();
    list(&mut earlier, &["a", "b"], 0);
    let seed = earlier.snapshot().clone();
    let mut state = ClusterState::new("edge-a1", seed, &earlier.versions(), false);
    assert_eq!(names(&state), ["a", "b"]);
    assert_eq!(state.version(Resource::Services).as_deref(), Some("5"));
    assert_eq!(state.version(Resource::Nodes), None);
    assert!(!state.is_confirmed(Resource::Services));
    state.failed(Resource::Services, "no answer".to_owned(), false);
    assert_eq!(names(&state), ["a", "b"]);
    state.watching(Resource::Services);
    assert!(state.is_confirmed(Resource::Services));
    assert_eq!(state.failures().count(), 0);
}

#[test]
fn what_another_source_found_of_its_input_is_not_said_of_this_one() {
    let mut seed = live().snapshot().clone();
    let name = std::ffi::OsString::from("web.yaml");
    let manifest = Manifest::new(name.clone(), Vec::new());
    seed.manifests.insert(name, manifest.into());
    let wrong = NamespacedName::new("default", "web");
    let rejection = seed.reject(Kind::Service, &wrong, "is wrong".to_owned());
    seed.rejections.push(rejection);
    let mut state = ClusterState::new("edge-a1", seed, &BTreeMap::new(), false);
    list(&mut state, &["a"], 1);
    assert_eq!(state.snapshot().rejections, []);
    assert!(state.snapshot().manifests.is_empty());
}

#[test]
fn a_slice_that_loses_its_service_is_gone() {
    let mut state = live();
    let mut slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"namespace": "default", "name": "a-1", "labels": {"kubernetes.io/service-name": "a"}},
        "addressType": "IPv4", "endpoints": [], "ports": [],
    });
    let version = "discovery.k8s.io/v1";
    let resource = Resource::EndpointSlices;
    assert!(state.put(resource, version, slice.to_string().as_bytes(), "1"));
    assert_eq!(state.count(resource), 1);
    slice["metadata"]["labels"] = json!({});
    assert!(state.put(resource, version, slice.to_string().as_bytes(), "2"));
    assert_eq!(state.count(resource), 0);
}

/// One thing that a source hears.
#[derive(Clone, Debug)]
enum Heard {
    /// A slice, its Service (`None`: it has lost it), and the last part of its endpoint's address (over 255: no
    /// address).
    Slice(u8, Option<u8>, u16),
    SliceGone(u8),
    SliceList(Vec<u8>),
    Service(u8, u16),
    Release,
}

fn heard() -> impl Strategy<Value = Heard> {
    prop_oneof![
        6 => (0u8..5, of(0u8..3), 250u16..258).prop_map(|(id, of, ip)| Heard::Slice(id, of, ip)),
        2 => (0u8..5).prop_map(Heard::SliceGone),
        1 => vec(0u8..5, 0..5).prop_map(Heard::SliceList),
        1 => (0u8..3, 80u16..82).prop_map(|(id, port)| Heard::Service(id, port)),
        1 => Just(Heard::Release),
    ]
}

fn slice(id: u8, of: Option<u8>, ip: u16) -> String {
    let labels = of.map(|of| json!({"kubernetes.io/service-name": format!("s{of}")}));
    json!({
        "metadata": {"namespace": "default", "name": format!("slice-{id}"), "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [format!("10.0.0.{ip}")]}],
    })
    .to_string()
}

fn hear(state: &mut ClusterState, heard: &Heard, now: Duration) {
    const SLICES: Resource = Resource::EndpointSlices;
    let api_version = SLICES.api_versions()[0];
    match heard {
        Heard::Slice(id, of, ip) => {
            state.put(SLICES, api_version, slice(*id, *of, *ip).as_bytes(), "7");
        }
        Heard::SliceGone(id) => {
            state.delete(SLICES, slice(*id, Some(0), 1).as_bytes(), "8");
        }
        Heard::SliceList(ids) => {
            for id in ids {
                state.item(SLICES, api_version, slice(*id, Some(0), 1).as_bytes());
            }
            state.listed(SLICES, "9", now);
        }
        Heard::Service(id, port) => {
            put(state, &service(&format!("s{id}"), i64::from(*port)));
        }
        Heard::Release => {
            state.release(now);
        }
    }
}

proptest! {
    /// What the compiler is told must never be less than what differs: it looks at nothing else.
    #[test]
    fn whatever_differs_was_touched(
        is_cache in any::<bool>(), batches in vec(vec(heard(), 1..4), 1..30)
    ) {
        let mut state = if is_cache { cache() } else { live() };
        prop_assert_eq!(state.take_touched(), Touched::Anything);
        for (second, batch) in (0u64..).step_by(20).zip(&batches) {
            let before = state.snapshot().clone();
            for heard in batch {
                hear(&mut state, heard, Duration::from_secs(second));
            }
            let Touched::Slices(touched) = state.take_touched() else {
                continue;
            };
            let after = state.snapshot();
            prop_assert_eq!(&before.services, &after.services);
            let names = before.slices.keys().chain(after.slices.keys());
            for name in names.filter(|name| !touched.contains(name)) {
                let [old, new] = [&before, after].map(|snapshot| snapshot.slices.get(name));
                let is_same = matches!((old, new), (Some(old), Some(new)) if Arc::ptr_eq(old, new));
                prop_assert!(is_same, "{name} differs and was not touched");
            }
        }
    }
}

#[test]
fn thousands_of_objects_that_cannot_be_read_are_copied_when_they_are_taken_up_and_not_at_each_event()
 {
    let mut state = live();
    let bad = |namespace: &str, n: usize| {
        json!({
            "metadata": {"namespace": namespace, "name": format!("s{n}"), "resourceVersion": "1"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 0}]},
        })
    };
    let mut copies = 0;
    for n in 0..3000 {
        let before = state.snapshot.rejections.len();
        let json = bad("a", n).to_string();
        assert!(state.put(Resource::Services, V1, json.as_bytes(), "2"));
        copies += usize::from(state.snapshot.rejections.len() != before);
    }
    assert_eq!(copies, SHOWN_REJECTIONS);
    state.put(
        Resource::Services,
        V1,
        bad("b", 1).to_string().as_bytes(),
        "2",
    );
    state.take_touched();
    let told = &state.snapshot().rejections;
    assert_eq!(told.len(), SHOWN_REJECTIONS + 1);
    assert!(told.iter().any(|rejection| rejection.namespace == "b"));
    assert!(
        told.iter()
            .any(|rejection| rejection.reason.starts_with("more objects"))
    );
    for n in 0..3000 {
        let json = bad("a", n).to_string();
        assert!(state.delete(Resource::Services, json.as_bytes(), "3"));
    }
    state.take_touched();
    let told = &state.snapshot().rejections;
    assert_eq!(told.len(), 1, "{told:?}");
}

/// A slice of `crowd` with so many endpoints.
fn crowd(name: usize, endpoints: usize) -> Vec<u8> {
    let endpoint =
        |n: usize| json!({"addresses": [format!("10.{}.{}.{}", name % 200, n / 250, n % 250)]});
    let slice = json!({
        "metadata": {
            "namespace": "default",
            "name": format!("crowd-{name:03}"),
            "labels": {"kubernetes.io/service-name": "crowd"},
        },
        "addressType": "IPv4",
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    });
    slice.to_string().into_bytes()
}

fn endpoints(state: &ClusterState) -> usize {
    let slices = state.snapshot().slices.values();
    slices.map(|slice| slice.endpoints.len()).sum()
}

#[test]
fn a_service_of_a_million_endpoints_is_kept_up_to_its_limit_and_says_so() {
    const SLICES: Resource = Resource::EndpointSlices;
    const DISCOVERY: &str = "discovery.k8s.io/v1";
    let listed = |state: &mut ClusterState| {
        for name in 0..80 {
            state.item(SLICES, DISCOVERY, &crowd(name, 1000));
        }
        state.listed(SLICES, "5", Duration::ZERO)
    };
    let told = |state: &mut ClusterState| {
        let _touched = state.take_touched();
        let all = state.snapshot().rejections.iter();
        all.filter(|r| r.reason.contains("more than 65536 endpoints"))
            .count()
    };
    let mut state = live();
    listed(&mut state);
    assert_eq!(endpoints(&state), MAX_ENDPOINTS);
    assert_eq!(told(&mut state), 80 - 65);
    // A list that says the same is the same, and is no second Service.
    let before: Vec<_> = state.snapshot().slices.values().cloned().collect();
    listed(&mut state);
    let after = state.snapshot().slices.values();
    assert!(after.zip(&before).all(|(new, old)| Arc::ptr_eq(new, old)));
    // An event is cut as a list is.
    assert!(!state.put(SLICES, DISCOVERY, &crowd(70, 1000), "6"));
    assert_eq!((endpoints(&state), told(&mut state)), (MAX_ENDPOINTS, 15));
    // Those that go make room for what is read next.
    for name in 0..20 {
        state.delete(SLICES, &crowd(name, 1), "7");
    }
    assert_eq!(endpoints(&state), MAX_ENDPOINTS - 20_000);
    assert!(state.put(SLICES, DISCOVERY, &crowd(70, 1000), "8"));
    assert_eq!(endpoints(&state), MAX_ENDPOINTS - 19_000);
    assert_eq!(told(&mut state), 14);
}

#[test]
fn a_cache_that_lists_far_less_than_is_in_force_is_held_although_nobody_says_what_that_is() {
    let mut state = cache();
    state.expect(4);
    assert_eq!(list(&mut state, &["a"], 0), Listed::Held);
    let held: Vec<_> = state.held().map(|held| (held.have, held.offered)).collect();
    assert_eq!(held, [(4, 1)]);
    let all = list(&mut state, &["a", "b", "c"], 1);
    assert_eq!(all, Listed::Used { has_changed: true });
    // From now on it is known what is in force.
    let fewer = list(&mut state, &["a", "b"], 2);
    assert_eq!(fewer, Listed::Used { has_changed: true });
}

#[test]
fn a_list_of_a_cache_without_what_every_cluster_has_is_true_by_no_repetition_and_no_time() {
    let mut known = cache();
    list(&mut known, &["a", "b", "kubernetes"], 0);
    let mut adopted = cache();
    adopted.expect(3);
    for mut state in [known, adopted] {
        for at in [10, 20, 30, 3600] {
            assert_eq!(list(&mut state, &[], at), Listed::Held);
            assert_eq!(state.release_at(), None);
            assert!(!state.release(Duration::from_secs(at)));
            // Others are asked for it after a while, however often a watch is accepted.
            state.watching(Resource::Services);
            assert_eq!(state.has_failed(Resource::Services), at == 3600);
        }
        assert!(state.held().all(|held| held.is_of_no_cluster));
        // What has it is of a cluster, be that one small.
        assert_eq!(list(&mut state, &["kubernetes"], 4000), Listed::Held);
        let used = list(&mut state, &["kubernetes"], 4010);
        assert_eq!(used, Listed::Used { has_changed: true });
        assert_eq!(names(&state), ["kubernetes"]);
        assert!(!state.has_failed(Resource::Services));
    }
}

#[test]
fn a_cache_that_is_filled_by_events_takes_nothing_away_before_it_is_of_a_cluster() {
    let mut known = cache();
    list(&mut known, &["a", "b", "c", "d", "kubernetes"], 0);
    assert_eq!(list(&mut known, &[], 1), Listed::Held);
    assert!(put(&mut known, &service("z", 80)));
    assert_eq!(names(&known), ["a", "b", "c", "d", "kubernetes", "z"]);
    put(&mut known, &service("kubernetes", 80));
    assert_eq!(names(&known), ["kubernetes", "z"]);
    // What is adopted is counted, and not named: it is enough that half of it is there again.
    let mut adopted = cache();
    adopted.expect(4);
    assert_eq!(list(&mut adopted, &[], 1), Listed::Held);
    put(&mut adopted, &service("a", 80));
    assert!(!adopted.is_confirmed(Resource::Services));
    put(&mut adopted, &service("b", 80));
    assert!(adopted.is_confirmed(Resource::Services));
    assert_eq!(names(&adopted), ["a", "b"]);
}

#[test]
fn an_apiserver_is_believed_whatever_it_lists() {
    let mut state = live();
    list(&mut state, &["a", "kubernetes"], 0);
    let used = list(&mut state, &[], 1);
    assert_eq!(used, Listed::Used { has_changed: true });
}

/// As whatever stands between strips objects, and keeps the list: of their names, of their labels, or of all.
#[test]
fn items_that_nobody_can_read_take_nothing_away_that_they_may_be() {
    let slice = |name: &str| slice_of(name, true);
    let stripped = [
        json!({}),
        json!({"metadata": {}}),
        json!({"metadata": {"namespace": "default"}, "spec": {}}),
    ];
    for is_cache in [false, true] {
        for item in &stripped {
            let mut state =
                ClusterState::new("edge-a1", Snapshot::default(), &BTreeMap::new(), is_cache);
            list(&mut state, &["a", "b", "c"], 0);
            // None of three has its name; then one of two.
            for (good, at) in [(&[][..], 1), (&["b"][..], 2)] {
                for _ in good.len()..3 {
                    state.item(Resource::Services, V1, item.to_string().as_bytes());
                }
                let listed = list(&mut state, good, at);
                assert!(matches!(listed, Listed::Used { .. }), "{item}");
                assert_eq!(names(&state), ["a", "b", "c"], "{item}");
                let told = &state.snapshot().rejections;
                assert!(
                    told.iter().any(|told| told.reason.contains("is kept of")),
                    "{told:?}"
                );
            }
            // One that can be read is believed.
            list(&mut state, &["a", "b"], 3);
            assert_eq!(names(&state), ["a", "b"]);
            assert_eq!(state.snapshot().rejections, []);
        }
    }
    // Where all that it names is wrong and new, it says nothing of the others; where that is in force, it does.
    let mut state = live();
    list(&mut state, &["a", "b"], 0);
    for (name, left) in [("c", &["a", "b"][..]), ("b", &["b"])] {
        let wrong = service(name, 99_999).to_string();
        state.item(Resource::Services, V1, wrong.as_bytes());
        list(&mut state, &[], 1);
        assert_eq!(names(&state), left);
    }
    let mut state = live();
    let slices = |state: &mut ClusterState, items: &[Value]| {
        for item in items {
            state.item(
                Resource::EndpointSlices,
                "discovery.k8s.io/v1",
                item.to_string().as_bytes(),
            );
        }
        state.listed(Resource::EndpointSlices, "5", Duration::ZERO);
        state.snapshot().slices.len()
    };
    assert_eq!(slices(&mut state, &[slice("a"), slice("b")]), 2);
    // Without its label a slice is of no Service: all of them at once are not.
    assert_eq!(
        slices(&mut state, &[slice_of("a", false), slice_of("b", false)]),
        2
    );
    assert_eq!(slices(&mut state, &[slice_of("a", false), slice("b")]), 1);
    assert_eq!(slices(&mut state, &[]), 0);
}

fn slice_of(name: &str, has_label: bool) -> Value {
    let labels = match has_label {
        true => json!({"kubernetes.io/service-name": "web"}),
        false => json!({}),
    };
    json!({
        "metadata": {"namespace": "default", "name": name, "labels": labels},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.2"]}],
    })
}

#[test]
fn a_list_that_nobody_can_read_does_not_empty_the_maps_that_an_earlier_agent_left() {
    let mut state = live();
    state.expect(3);
    state.item(Resource::Services, V1, b"{}");
    assert_eq!(list(&mut state, &[], 0), Listed::Held);
    assert!(!state.is_confirmed(Resource::Services));
    let why: Vec<_> = state.failures().map(|(_, why)| why).collect();
    assert_eq!(why, ["none of the 1 items of the list can be read"]);
    let all = list(&mut state, &["a"], 1);
    assert_eq!(all, Listed::Used { has_changed: true });
    assert_eq!(state.failures().count(), 0);
}
