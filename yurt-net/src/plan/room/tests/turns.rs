//! The order in which Services get room, and what clients get of those that have none.

use super::*;

#[test]
fn of_what_does_not_fit_the_apiserver_and_dns_come_first_then_namespaces_in_turns() {
    let capacity = Capacity {
        frontends4: 24,
        services: 64,
        slots4: 64,
        ..CAPACITY
    };
    let external: Vec<String> = (1..=5).map(|id| format!("198.51.100.{id}")).collect();
    let external: Vec<&str> = external.iter().map(String::as_str).collect();
    let at = |id: u8| format!("203.0.113.{id}");
    let mut services: Vec<_> = (0..30)
        .map(|port| {
            let mut greedy = ServiceEntry::clone(&in_namespace(
                "a-tenant",
                "s",
                &external,
                &["10.244.0.1:80"],
            ));
            greedy.key.port = format!("p{port:02}").into();
            greedy.frontends.iter_mut().for_each(|f| f.port += port);
            Arc::new(greedy)
        })
        .collect();
    for (id, (namespace, name)) in (1..).zip([
        ("default", "kubernetes"),
        ("kube-system", "kube-dns"),
        ("z-tenant", "a"),
        ("z-tenant", "b"),
    ]) {
        services.push(in_namespace(
            namespace,
            name,
            &[&at(id)],
            &["10.244.0.2:80"],
        ));
    }
    let mut maps = MemoryDataplane::new(capacity);
    let mut image = MapImage::empty(capacity);
    let planned = settle(
        &table(&services.iter().collect::<Vec<_>>()),
        &mut maps,
        &mut image,
    );
    // 24 rows: the self-test, four Services, and three of thirty ports with five addresses each.
    assert_eq!(planned.refused.len(), 27);
    let left_out: BTreeSet<String> = names(&planned.refused).into_iter().collect();
    assert_eq!(left_out, BTreeSet::from(["a-tenant/s".to_owned()]));
}

#[test]
fn who_has_less_comes_before_who_has_more_when_there_is_room_again() {
    let capacity = Capacity {
        frontends4: 5,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let one = |namespace, name, id: u8| {
        in_namespace(
            namespace,
            name,
            &[&format!("203.0.113.{id}")],
            &["10.244.0.1:80"],
        )
    };
    let rich: Vec<_> = [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
        .map(|(name, id)| one("rich", name, id))
        .into();
    settle(
        &table(&rich.iter().collect::<Vec<_>>()),
        &mut maps,
        &mut image,
    );
    // The namespace that has all of the room asks for more, by a name before the poor one's, and gives one back.
    let (more, poor) = (one("rich", "aa", 5), one("sober", "s", 6));
    let wanted = [&rich[0], &more, &rich[1], &rich[2], &poor];
    let planned = settle(&table(&wanted), &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["rich/aa"]);
}

#[test]
fn who_was_in_a_full_map_is_in_it_after_a_reboot() {
    let capacity = Capacity {
        frontends4: 5,
        ..CAPACITY
    };
    let one = |namespace, id: u8| {
        let at = format!("203.0.113.{id}");
        in_namespace(namespace, &id.to_string(), &[&at], &["10.244.0.1:80"])
    };
    let rich: Vec<_> = (1..=4).map(|id| one("rich", id)).collect();
    let poor = one("a-poor", 5);
    let before = table(&rich.iter().collect::<Vec<_>>());
    let all = table(&rich.iter().chain([&poor]).collect::<Vec<_>>());
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    settle(&before, &mut maps, &mut image);
    let planned = settle(&all, &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["a-poor/5"]);
    let left_out: Vec<_> = image.left_out().cloned().collect();
    assert_eq!(left_out, std::slice::from_ref(&poor.key));

    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    image.remember(rich.iter().map(|entry| entry.key.clone()).collect());
    let planned = settle(&all, &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["a-poor/5"]);
    // It is of the maps of then: from the next plan on, what is in the maps counts.
    let gone = table(&[&rich[0], &rich[1], &poor]);
    settle(&gone, &mut maps, &mut image);
    let planned = settle(&all, &mut maps, &mut image);
    assert_eq!(planned.refused.len(), 1);
    assert_ne!(names(&planned.refused), ["a-poor/5"]);

    // Where nothing is remembered, turns decide.
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let planned = settle(&all, &mut maps, &mut image);
    assert_ne!(names(&planned.refused), ["a-poor/5"]);
}

#[test]
fn a_port_that_did_not_fit_in_one_family_gets_the_other_when_that_has_room() {
    let capacity = Capacity {
        frontends4: 2,
        frontends6: 2,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let four = in_namespace("a", "four", &["203.0.113.1"], &["10.244.0.1:80"]);
    let six = in_namespace("a", "six", &["2001:db8::1"], &["[fd00::1]:80"]);
    let both = in_namespace(
        "a",
        "web",
        &["203.0.113.2", "2001:db8::2"],
        &["10.244.0.1:80", "[fd00::1]:80"],
    );
    let planned = settle(&table(&[&four, &six, &both]), &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["a/web"]);
    assert!(!planned.refused[0].has_some);
    let planned = settle(&table(&[&four, &both]), &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["a/web"]);
    assert!(planned.refused[0].has_some);
    let rows = image.frontends().keys();
    let addresses: BTreeSet<IpAddr> = rows.map(|key| key.address).collect();
    assert!(addresses.contains(&"2001:db8::2".parse().unwrap()));
}

#[test]
fn rows_that_a_service_gives_back_are_given_to_who_was_left_out() {
    let capacity = Capacity {
        frontends4: 3,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let two = in_namespace(
        "a",
        "a",
        &["203.0.113.1", "203.0.113.2"],
        &["10.244.0.1:80"],
    );
    let waiting = in_namespace("b", "b", &["203.0.113.3"], &["10.244.0.1:80"]);
    settle(&table(&[&two]), &mut maps, &mut image);
    let planned = settle(&table(&[&two, &waiting]), &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["b/b"]);
    let one = in_namespace("a", "a", &["203.0.113.1"], &["10.244.0.1:80"]);
    let planned = settle(&table(&[&one, &waiting]), &mut maps, &mut image);
    assert_eq!(planned.refused, []);
}

#[test]
fn to_change_does_not_bring_a_service_that_was_left_out_ahead_of_others() {
    let capacity = Capacity {
        frontends4: 3,
        ..CAPACITY
    };
    let mut image = MapImage::empty(capacity);
    let two = in_namespace(
        "x",
        "x",
        &["203.0.113.1", "203.0.113.2"],
        &["10.244.0.1:80"],
    );
    let tenant = |backend| in_namespace("x", "a", &["203.0.113.3"], &[backend]);
    let restless = tenant("10.244.0.1:80");
    let other = in_namespace("z", "z", &["203.0.113.4"], &["10.244.0.1:80"]);
    assert_eq!(plan(&table(&[&two]), &mut image).refused, []);
    let all = table(&[&restless, &two, &other]);
    assert_eq!(names(&plan(&all, &mut image).refused), ["x/a", "z/z"]);
    // One row is free, and nobody has planned since.
    let one = in_namespace("x", "x", &["203.0.113.1"], &["10.244.0.1:80"]);
    plan(&table(&[&restless, &one, &other]), &mut image);
    let changed = tenant("10.244.0.2:80");
    let planned = plan(&table(&[&changed, &one, &other]), &mut image);
    assert_eq!(names(&planned.refused), ["x/a"]);
}

#[test]
fn what_is_in_force_at_an_address_is_what_a_client_gets_there() {
    let capacity = Capacity {
        frontends4: 3,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let two = ["203.0.113.1", "10.96.0.9"];
    let one = in_namespace("a", "a", &two, &["10.244.0.1:80"]);
    let late = in_namespace("b", "b", &["203.0.113.2", "10.96.0.10"], &["10.244.0.2:80"]);
    settle(&table(&[&one, &late]), &mut maps, &mut image);
    let at = |to: &str| image.in_force(to.parse().unwrap(), Protocol::Tcp, Scope::Internal);
    for to in two {
        let backends = one.v4.cluster.clone();
        assert_eq!(at(&format!("{to}:80")), InForce::Forward(backends));
    }
    // Inside the ServiceCIDR, and outside of it.
    assert_eq!(at("10.96.0.10:80"), InForce::Refuse);
    assert_eq!(at("203.0.113.2:80"), InForce::Pass);
}

#[test]
fn clients_outside_whose_rows_have_no_room_are_refused_and_never_led_to_the_set_of_this_node() {
    let local = |external_policy| {
        let one = in_namespace(
            "a",
            "a",
            &["203.0.113.1"],
            &["10.244.0.1:80", "10.244.0.2:80"],
        );
        let mut one = ServiceEntry::clone(&one);
        one.external_policy = external_policy;
        one.v4.local = one.v4.cluster.iter().take(1).collect();
        let services = table(&[&Arc::new(one)]);
        ServiceTable {
            serves_packets: true,
            ..services
        }
    };
    // The self-test's row, and one more, or two.
    for (frontends4, has_room) in [(2, false), (3, true)] {
        let capacity = Capacity {
            frontends4,
            ..CAPACITY
        };
        let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
        settle(&local(TrafficPolicy::Cluster), &mut maps, &mut image);
        let at = |image: &MapImage, scope| {
            let to = "203.0.113.1:80".parse().unwrap();
            match image.in_force(to, Protocol::Tcp, scope) {
                InForce::Forward(backends) => backends.len(),
                InForce::Refuse => 0,
                InForce::Pass => panic!("{scope} passes"),
            }
        };
        assert_eq!(at(&image, Scope::External), 2);
        let planned = settle(&local(TrafficPolicy::Local), &mut maps, &mut image);
        assert_eq!(planned.refused.is_empty(), has_room);
        assert_eq!(at(&image, Scope::External), usize::from(has_room));
        assert_eq!(at(&image, Scope::Internal), 2);
        settle(&local(TrafficPolicy::Cluster), &mut maps, &mut image);
        assert_eq!(at(&image, Scope::External), 2);
    }
}

#[test]
fn a_service_whose_new_addresses_have_no_room_does_not_go_on_with_an_old_policy_outside() {
    let capacity = Capacity {
        frontends4: 3,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let of = |addresses: &[&str], external_policy| {
        let one = in_namespace("a", "a", addresses, &["10.244.0.1:80"]);
        let one = ServiceEntry {
            external_policy,
            ..ServiceEntry::clone(&one)
        };
        ServiceTable {
            serves_packets: true,
            ..table(&[&Arc::new(one)])
        }
    };
    settle(
        &of(&["203.0.113.1"], TrafficPolicy::Cluster),
        &mut maps,
        &mut image,
    );
    let more = ["203.0.113.1", "203.0.113.2", "203.0.113.3"];
    settle(&of(&more, TrafficPolicy::Local), &mut maps, &mut image);
    let to = "203.0.113.1:80".parse().unwrap();
    let outside = image.in_force(to, Protocol::Tcp, Scope::External);
    assert_eq!(outside, InForce::Refuse);
    assert_ne!(
        image.in_force(to, Protocol::Tcp, Scope::Internal),
        InForce::Refuse
    );
}
