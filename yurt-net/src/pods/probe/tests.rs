use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::model::{EndpointPort, LocalPod};
use crate::policy::fixtures::World;

const SECOND: Duration = Duration::from_secs(1);

/// `default/web` with the Pods `web-0` and `web-1` on this node, and a third one elsewhere.
fn world() -> World {
    let mut world = World::new();
    world.service("web", |_| ());
    let endpoints = [
        ("10.1.0.2", Some("a1")),
        ("10.1.0.3", Some("a1")),
        ("10.1.1.2", Some("a2")),
    ];
    world.slice("web-1", "web", &endpoints);
    world.pods("web-1", &["web-0", "web-1"]);
    world
}

fn edit_slice(world: &mut World, edit: impl FnOnce(&mut EndpointSlice)) {
    let name = NamespacedName::new("default", "web-1");
    edit(Arc::make_mut(world.snapshot.slices.get_mut(&name).unwrap()));
}

fn set_readiness(world: &mut World, pod: &str, readiness: &[ReadinessProbe]) {
    let name = NamespacedName::new("default", pod);
    let pod = LocalPod {
        name: name.clone(),
        uid: "".into(),
        node_name: "a1".into(),
        annotations: BTreeMap::new(),
        readiness: readiness.into(),
    };
    world.snapshot.pods.insert(name, pod.into());
}

/// `pod at -> backends`.
fn found(world: &World) -> Vec<String> {
    checks(&world.snapshot, world.view.truth.as_deref())
        .checks
        .iter()
        .map(|(check, backends)| {
            let backends: Vec<_> = backends.iter().map(|(at, p)| format!("{at}/{p}")).collect();
            format!("{} {} -> {}", check.pod.name, check.at, backends.join(" "))
        })
        .collect()
}

#[test]
fn endpoints_of_this_node_are_asked_where_their_pods_are() {
    let mut world = world();
    assert_eq!(
        found(&world),
        [
            "web-0 10.1.0.2:8080 -> 10.1.0.2:8080/TCP",
            "web-1 10.1.0.3:8080 -> 10.1.0.3:8080/TCP"
        ]
    );
    world.ledger(&[("web-0", Some("10.1.0.7")), ("web-1", None)]);
    assert_eq!(found(&world), ["web-0 10.1.0.7:8080 -> 10.1.0.7:8080/TCP"]);
}

#[test]
fn a_pods_own_probes_speak_for_all_of_its_ports_and_udp_has_no_other() {
    let mut world = world();
    edit_slice(&mut world, |slice| {
        let udp = EndpointPort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: 53,
        };
        slice.ports = slice.ports.iter().cloned().chain([udp]).collect();
    });
    set_readiness(
        &mut world,
        "web-0",
        &[ReadinessProbe::connect(81), ReadinessProbe::connect(82)],
    );
    set_readiness(&mut world, "web-1", &[]);
    assert_eq!(
        found(&world),
        [
            "web-0 10.1.0.2:81 -> 10.1.0.2:53/UDP 10.1.0.2:8080/TCP",
            "web-0 10.1.0.2:82 -> 10.1.0.2:53/UDP 10.1.0.2:8080/TCP",
            "web-1 10.1.0.3:8080 -> 10.1.0.3:8080/TCP"
        ]
    );
}

#[test]
fn endpoints_that_take_no_traffic_are_not_asked() {
    for edit in [
        (|slice| slice.is_headless = true) as fn(&mut EndpointSlice),
        |slice| slice.pods = Box::default(),
        |slice| {
            slice.endpoints.edit(|all| all[0].is_ready = false);
            slice.endpoints.edit(|all| all[1].is_terminating = true);
        },
    ] {
        let mut world = world();
        edit_slice(&mut world, edit);
        assert_eq!(found(&world), [] as [&str; 0]);
    }
}

fn check(port: u16, failure_threshold: u32, success_threshold: u32) -> Check {
    Check {
        pod: NamespacedName::new("default", "web-0"),
        at: SocketAddr::from(([10, 1, 0, 2], port)),
        probe: ReadinessProbe {
            failure_threshold,
            success_threshold,
            ..ReadinessProbe::connect(port)
        },
    }
}

fn prober(checks: &[Check]) -> Prober {
    let mut prober = Prober::default();
    set(&mut prober, checks);
    prober
}

fn set(prober: &mut Prober, checks: &[Check]) {
    let wanted = checks
        .iter()
        .map(|check| (check.clone(), [(check.at, Protocol::Tcp)].into()));
    prober.set(wanted.collect(), Duration::ZERO, |_| Duration::ZERO);
}

#[test]
fn it_takes_as_many_outcomes_in_a_row_as_the_thresholds_say() {
    let check = check(80, 3, 2);
    let mut prober = prober(std::slice::from_ref(&check));
    let (no, yes) = (Err("no"), Ok(()));
    for (outcome, is_failing) in [
        (no, false),
        (no, false),
        (yes, false),
        (no, false),
        (no, false),
        (no, true),
        (yes, true),
        (no, true),
        (yes, true),
        (yes, false),
        (no, false),
    ] {
        let was_failing = !prober.failing().is_empty();
        let is_other = prober.tell(&check, outcome);
        assert_eq!(!prober.failing().is_empty(), is_failing);
        assert_eq!(is_other, was_failing != is_failing);
    }
}

#[test]
fn a_failure_is_told_as_it_was_first() {
    let check = check(80, 1, 1);
    let mut prober = prober(std::slice::from_ref(&check));
    prober.tell(&check, Err("refused"));
    prober.tell(&check, Err("no answer"));
    let told: Vec<_> = prober.failing().into_values().collect();
    let expected = "a TCP connect to Pod default/web-0 at 10.1.0.2:80: refused";
    assert_eq!(told, [expected.into()]);
}

#[test]
fn each_is_asked_once_a_period_and_never_twice_at_a_time() {
    let (one, two) = (check(80, 1, 1), check(81, 1, 1));
    let mut prober = Prober::default();
    let mut spread = [SECOND * 2, SECOND].into_iter();
    let wanted = [&one, &two].map(|check| (check.clone(), BTreeSet::new()));
    prober.set(wanted.into(), Duration::ZERO, |_| spread.next().unwrap());
    assert_eq!(prober.next_due(), Some(SECOND));
    assert_eq!(prober.take_due(Duration::ZERO), None);
    assert_eq!(prober.take_due(SECOND * 3), Some(two.clone()));
    assert_eq!(prober.take_due(SECOND * 3), Some(one.clone()));
    // Not before its outcome, however long that takes.
    assert_eq!(prober.take_due(SECOND * 60), None);
    assert_eq!(prober.next_due(), None);
    prober.tell(&one, Ok(()));
    assert_eq!(prober.next_due(), Some(SECOND * 13));
    assert_eq!(prober.take_due(SECOND * 12), None);
    assert_eq!(prober.take_due(SECOND * 13), Some(one));
}

#[test]
fn what_is_still_asked_keeps_its_course_and_what_is_asked_anew_begins_with_trust() {
    let (one, two) = (check(80, 1, 1), check(81, 1, 1));
    let mut prober = prober(&[one.clone(), two.clone()]);
    prober.tell(&one, Err("no"));
    prober.tell(&two, Err("no"));
    set(&mut prober, std::slice::from_ref(&one));
    assert_eq!(prober.failing().len(), 1);
    set(&mut prober, &[one.clone(), two.clone()]);
    assert_eq!(prober.failing().len(), 1);
    assert!(prober.failing().contains_key(&(one.at, Protocol::Tcp)));
    // Of what is not asked, no outcome counts.
    assert!(!prober.tell(&check(82, 1, 1), Err("no")));
}

proptest! {
    /// The last outcomes decide: whoever has just had as many answers as the threshold passes, and likewise for
    /// failures.
    #[test]
    fn the_latest_run_decides(
        failure_threshold in 1_u32..4,
        success_threshold in 1_u32..4,
        outcomes in prop::collection::vec(any::<bool>(), 0..30),
    ) {
        let check = check(80, failure_threshold, success_threshold);
        let mut prober = prober(std::slice::from_ref(&check));
        let mut last: VecDeque<bool> = VecDeque::new();
        for is_ok in outcomes {
            prober.tell(&check, if is_ok { Ok(()) } else { Err("no") });
            last.push_front(is_ok);
            let run = last.iter().take_while(|other| **other == is_ok).count();
            let threshold = if is_ok { success_threshold } else { failure_threshold };
            if run >= usize::try_from(threshold).unwrap() {
                prop_assert_eq!(prober.failing().is_empty(), is_ok);
            }
        }
    }
}

/// A slice of this many Pods of this node, and of this many ports.
fn many(world: &mut World, namespace: &str, pods: u16, ports: u16) {
    let address = |n: u16| format!("10.2.{}.{}", n / 250, n % 250 + 1);
    let endpoints: Vec<String> = (0..pods).map(address).collect();
    let endpoints: Vec<_> = endpoints.iter().map(|one| (&**one, Some("a1"))).collect();
    let names: Vec<String> = (0..pods).map(|n| format!("many-{n}")).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    world.slice_with("many", "many", &endpoints, |slice| {
        let port = |n: u16| EndpointPort {
            name: n.to_string().into(),
            protocol: Protocol::Tcp,
            port: n,
        };
        slice.ports = (1..=ports).map(port).collect();
    });
    world.pods("many", &names);
    let of_default = NamespacedName::new("default", "many");
    let mut slice = world.snapshot.slices.remove(&of_default).unwrap();
    Arc::make_mut(&mut slice).name = NamespacedName::new(namespace, "many");
    world.snapshot.slices.insert(slice.name.clone(), slice);
}

#[test]
fn a_tenant_with_many_endpoints_is_asked_for_some_and_keeps_no_other_from_being_asked() {
    let mut world = world();
    let of = |world: &World, namespace: &str| {
        let wanted = checks(&world.snapshot, None);
        let checks = wanted.checks.iter();
        let checks = checks.filter(|(check, _)| &*check.pod.namespace == namespace);
        let count: usize = checks.map(|(_, backends)| backends.len()).sum();
        (count, wanted.has_more)
    };
    many(&mut world, "tenant", 1, 1000);
    assert_eq!(of(&world, "tenant"), (MOST_OF_POD, true));
    many(&mut world, "tenant", 1000, 1000);
    assert!(of(&world, "tenant").0 <= MOST / 2);
    assert_eq!(of(&world, "default"), (2, true));
    many(&mut world, "tenant", 100, 2);
    assert_eq!(of(&world, "tenant"), (200, false));
}

#[test]
fn pods_that_let_the_agent_wait_keep_no_other_namespace_from_being_asked() {
    let mut world = world();
    many(&mut world, "tenant", 100, 1);
    let mut prober = Prober::default();
    let wanted = checks(&world.snapshot, None);
    // Those of the tenant are due first.
    prober.set(wanted.checks, Duration::ZERO, |_| Duration::ZERO);
    let asked: Vec<Check> = std::iter::from_fn(|| prober.take_due(SECOND)).collect();
    let of = |namespace: &str| {
        let of = |check: &&Check| &*check.pod.namespace == namespace;
        asked.iter().filter(of).count()
    };
    assert_eq!((of("tenant"), of("default")), (MOST_OPEN, 2));
    assert_eq!(prober.next_due(), None);
    prober.tell(
        asked
            .iter()
            .find(|c| &*c.pod.namespace == "tenant")
            .unwrap(),
        Ok(()),
    );
    assert_eq!(prober.next_due(), Some(Duration::ZERO));
}
