//! What holds for every cluster and every order of events.

mod edits;
mod filter;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::established::lost;
use super::fixtures::{World, ip};
use super::{ClosureFailure, Memo, compile};
use crate::model::{EndpointSlice, NamespacedName, ServiceType, Snapshot, Touched};
use crate::table::{FrontendKind, Scope, ServiceEntry, ServiceTable};
use edits::{Edit, POOLS, SERVICES, apply, aside, edit, set_aside, touched};
use filter::Filter;

/// What an operator chooses: `--closure-failure`, `--nodepool`, `--compat-drop-service` and `--compat-all-vips`.
type Start = (ClosureFailure, Option<&'static str>, [bool; 2]);

fn start() -> impl Strategy<Value = Start> {
    use ClosureFailure::{Closed, LastKnown, Open};
    (
        select(&[LastKnown, Open, Closed][..]),
        prop::option::weighted(0.2, select(&POOLS[..])),
        [prop::bool::weighted(0.2), prop::bool::weighted(0.2)],
    )
}

fn world((failure, flag, compat): Start) -> World {
    let mut world = World::new().fail(failure);
    world.config.nodepool = flag.map(str::to_owned);
    [
        world.config.compat_drop_service,
        world.config.compat_all_vips,
    ] = compat;
    world
}

fn table_of(world: &World, snapshot: &Snapshot) -> ServiceTable {
    let World {
        config,
        view,
        memory,
        ..
    } = world;
    let mut memo = Memo::default();
    compile(
        snapshot,
        &Touched::Anything,
        config,
        view,
        memory,
        &mut memo,
    )
    .table
    .clone()
}

proptest! {
    #[test]
    fn every_endpoint_is_selected_or_dropped_for_a_reason(
        start in start(), edits in vec(edit(), 1..30)
    ) {
        let mut world = world(start);
        for edit in &edits {
            apply(&mut world, edit);
            let table = world.compile();
            let reasons = world.reasons();
            for entry in &table.services {
                let slices = world.snapshot.slices.values();
                let all: BTreeSet<SocketAddr> = slices
                    .filter(|slice| slice.service == entry.key.name)
                    .flat_map(|slice| slice.endpoints.iter().map(|e| (e, slice.ports[0].port)))
                    .map(|(endpoint, port)| SocketAddr::new(endpoint.address, port))
                    .collect();
                for frontend in &entry.frontends {
                    for scope in [Scope::Internal, Scope::External] {
                        let why = reasons.why(entry, frontend, scope);
                        let selected = entry.endpoints(frontend, scope).to_vec();
                        prop_assert!(selected.is_sorted_by(|a, b| a < b));
                        prop_assert!(why.dropped.is_sorted_by(|a, b| a.endpoint < b.endpoint));
                        prop_assert_eq!(why.kept.is_empty(), selected.is_empty());
                        let mut named: Vec<SocketAddr> = why.dropped.iter().map(|d| d.endpoint).collect();
                        named.extend(&selected);
                        named.sort();
                        let of_family = all.iter().filter(|at| at.is_ipv4() == frontend.address.is_ipv4());
                        prop_assert!(of_family.eq(&named), "{:?} {:?}", all, named);
                    }
                }
            }
        }
    }

    #[test]
    fn slice_order_and_slicing_do_not_matter(
        start in start(), edits in vec(edit(), 1..30), salt in any::<u64>()
    ) {
        let mut world = world(start);
        edits.iter().for_each(|edit| apply(&mut world, edit));
        let mut sliced = world.snapshot.clone();
        sliced.slices.clear();
        let mut number = salt;
        for slice in world.snapshot.slices.values() {
            for endpoint in slice.endpoints.iter() {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let name = NamespacedName::new("default", format!("{number:020}"));
                let alone = EndpointSlice {
                    pods: Box::default(),
                    name: name.clone(),
                    endpoints: vec![endpoint].into(),
                    ..EndpointSlice::clone(slice)
                };
                sliced.slices.insert(name, Arc::new(alone));
            }
        }
        prop_assert_eq!(table_of(&world, &world.snapshot), table_of(&world, &sliced));
    }

    #[test]
    fn one_bad_object_changes_only_its_own_service(
        start in start(), edits in vec(edit(), 1..30), victim in select(&SERVICES[..])
    ) {
        let mut world = world(start);
        edits.iter().for_each(|edit| apply(&mut world, edit));
        let before = world.compile();
        world.service("zulu", |service| {
            service.cluster_ips = [ip("10.96.0.99")].into();
            service.external_ips = [ip("127.0.0.1"), ip("10.96.0.1")].into();
            service.topology_keys = Some("rack".into());
        });
        let name = NamespacedName::new("default", victim);
        if world.snapshot.services.contains_key(&name) {
            world.service(victim, |service| {
                service.topology_keys = Some("a,b".into());
                service.external_ips = service.external_ips.iter().copied().chain([ip("::1")]).collect();
                service.ports = service.ports.iter().chain(service.ports.first()).cloned().collect();
            });
        }
        let after = world.compile();
        let is_other = |entry: &&Arc<ServiceEntry>| ![victim, "zulu"].contains(&&*entry.key.name);
        let before = before.services.iter().filter(is_other);
        let after = after.services.iter().filter(is_other);
        prop_assert!(before.eq(after));
    }

    #[test]
    fn memoised_compile_equals_fresh_compile(
        start in start(), batches in vec((vec(edit(), 1..4), of(aside())), 1..30)
    ) {
        let mut world = world(start);
        let mut last = ServiceTable::default();
        for (edits, aside) in &batches {
            edits.iter().for_each(|edit| apply(&mut world, edit));
            if let Some(aside) = aside {
                set_aside(&mut world, aside);
            }
            let touched = touched(edits, aside.as_ref());
            let fresh = table_of(&world, &world.snapshot);
            let World { snapshot, config, view, memory, memo, .. } = &mut world;
            let compiled = compile(snapshot, &touched, config, view, memory, memo);
            prop_assert_eq!(&fresh, compiled.table);
            let new = fresh.rejections.iter().filter(|r| !last.rejections.contains(r));
            prop_assert!(new.eq(&compiled.new_rejections));
            prop_assert_eq!(lost(&last.services, &compiled.table.services), compiled.lost);
            for entry in &compiled.table.services {
                let old = last.services.iter().find(|old| *old == entry);
                prop_assert!(old.is_none_or(|old| Arc::ptr_eq(old, entry)));
            }
            *memory = compiled.memory;
            last = fresh;
            last.services.clone_from(&world.memo.table().services);
        }
    }

    #[test]
    fn a_ledger_that_says_what_the_slices_say_changes_nothing_and_one_that_says_more_leads_only_to_the_living(
        start in start(), edits in vec(edit(), 1..30), gone in vec(0u8..6, 0..3),
    ) {
        let mut world = world(start);
        edits.iter().for_each(|edit| apply(&mut world, edit));
        let pods: Vec<(String, String)> = (0..6)
            .map(|n| (format!("pod-{n}"), format!("10.1.0.{n}")))
            .collect();
        let mut ledger: Vec<(&str, Option<&str>)> = pods
            .iter()
            .map(|(name, at)| (name.as_str(), Some(at.as_str())))
            .collect();
        // The ledger knows one family of them; slices of the other would lose theirs.
        let is_v4 = |slice: &Arc<EndpointSlice>| slice.family == crate::model::AddressFamily::V4;
        world.snapshot.slices.retain(|_, slice| is_v4(slice));
        let believed = world.compile();
        world.ledger(&ledger);
        prop_assert_eq!(world.compile(), believed);
        for n in &gone {
            ledger[usize::from(*n)].1 = None;
        }
        world.ledger(&ledger);
        let table = world.compile();
        let elsewhere: BTreeSet<IpAddr> = world
            .snapshot
            .slices
            .values()
            .flat_map(|slice| slice.endpoints.iter())
            .filter(|endpoint| endpoint.node_name().map(|node| &**node) != Some("a1"))
            .map(|endpoint| endpoint.address)
            .collect();
        for entry in &table.services {
            for backend in entry.v4.cluster.iter().chain(entry.v4.local.iter()) {
                let is_gone = gone.iter().any(|n| backend.ip() == ip(&format!("10.1.0.{n}")));
                prop_assert!(!is_gone || elsewhere.contains(&backend.ip()));
            }
        }
    }

    #[test]
    fn kube_proxy_behind_openyurts_filter_put_right_does_the_same(
        start in start(), edits in vec(edit(), 1..40)
    ) {
        let mut world = world(start);
        let mut past = vec![];
        for edit in &edits {
            apply(&mut world, edit);
            past.push(world.snapshot.clone());
            let filter = Filter { past: &past, failure: start.0, flag: start.1 };
            for entry in &world.compile().services {
                let name = NamespacedName::new("default", entry.key.name.clone());
                let service = &world.snapshot.services[&name];
                for frontend in &entry.frontends {
                    for scope in [Scope::Internal, Scope::External] {
                        let row = (
                            entry.verdict(frontend, scope),
                            entry.endpoints(frontend, scope).to_vec(),
                            entry.is_masqueraded(frontend.kind, scope),
                        );
                        prop_assert_eq!(filter.row(service, frontend, scope), row);
                    }
                }
            }
        }
    }

    #[test]
    fn frontends_are_those_that_the_service_its_pool_and_its_annotations_give(
        start in start(), edits in vec(edit(), 1..30)
    ) {
        let mut world = world(start);
        edits.iter().for_each(|edit| apply(&mut world, edit));
        let table = world.compile();
        let [is_dropping, has_all_vips] = start.2;
        for service in world.snapshot.services.values() {
            let own = table.services.iter().filter(|entry| entry.key.name == service.name.name);
            let kinds = |wanted| own.clone().flat_map(|e| &e.frontends).filter(move |f| f.kind == wanted);
            let is_isolated = match (service.listen.as_deref(), &*table.pool) {
                (None | Some("*"), _) | (_, "") => false,
                (Some("-hangzhou,*"), pool) => pool == "hangzhou",
                (Some(listed), pool) => listed != pool,
            };
            let is_balanced = service.service_type == ServiceType::LoadBalancer;
            let is_discarded = is_balanced && service.is_discarded;
            prop_assert_eq!(own.clone().count() == 0, is_dropping && (is_isolated || is_discarded));
            if is_isolated {
                prop_assert_eq!(kinds(FrontendKind::NodePort).count(), 0);
            }
            if is_isolated || is_discarded || !is_balanced {
                prop_assert_eq!(kinds(FrontendKind::LoadBalancer).count(), 0);
            }
            let shared_out: Vec<_> = world
                .snapshot
                .pool_services
                .values()
                .filter(|object| object.service == service.name.name)
                .collect();
            for frontend in kinds(FrontendKind::LoadBalancer) {
                let is_ours = shared_out.iter().any(|object| {
                    *object.pool == *table.pool && object.load_balancer_ips.contains(&frontend.address)
                });
                let is_plain = service.load_balancer_ips.contains(&frontend.address)
                    && (shared_out.is_empty() || has_all_vips);
                prop_assert!(is_plain || (is_ours && !has_all_vips));
            }
        }
    }

    #[test]
    fn the_order_of_events_does_not_matter(
        start in start(), edits in vec(edit(), 1..30).prop_flat_map(|edits| {
            // Of several edits of one object only the last one counts in any order.
            let mut last = BTreeMap::new();
            for edit in edits {
                let object = match &edit {
                    Edit::Service(name, _) => format!("service {name}"),
                    Edit::Slice(id, _) => format!("slice {id}"),
                    Edit::Node(name, _) => format!("node {name}"),
                    Edit::Pool(name, _) => format!("pool {name}"),
                    Edit::Bucket(id, _) => format!("bucket {id}"),
                    Edit::PoolService(service, pool, _) => format!("{service} in {pool}"),
                };
                last.insert(object, edit);
            }
            let edits: Vec<Edit> = last.into_values().collect();
            (Just(edits.clone()), Just(edits).prop_shuffle())
        })
    ) {
        // What was last known depends on the order by its nature.
        let failure = match start.0 {
            ClosureFailure::LastKnown => ClosureFailure::Closed,
            other => other,
        };
        let tables = [&edits.0, &edits.1].map(|edits| {
            let mut world = world((failure, start.1, start.2));
            for edit in edits {
                apply(&mut world, edit);
                world.compile();
            }
            world.compile()
        });
        prop_assert_eq!(&tables[0], &tables[1]);
    }

    #[test]
    fn each_frontend_has_one_owner(start in start(), edits in vec(edit(), 1..30)) {
        let mut world = world(start);
        for edit in &edits {
            apply(&mut world, edit);
        }
        let table = world.compile();
        let mut owners = BTreeMap::new();
        for entry in &table.services {
            for frontend in &entry.frontends {
                let claim = (frontend.address, frontend.port, entry.key.protocol);
                let owner = owners.entry(claim).or_insert(&entry.key);
                prop_assert_eq!(*owner, &entry.key);
            }
        }
    }

    #[test]
    fn prefixes_cover_every_cluster_ip_and_are_few(
        last in vec((0u8..4, 0u8..4, any::<u8>(), any::<u8>()), 0..80),
        cidrs in vec((any::<u8>(), 8u8..33), 0..20),
    ) {
        let mut world = World::new();
        for (n, (a, b, c, d)) in last.iter().enumerate() {
            world.service(&format!("s{n}"), |service| {
                service.cluster_ips = [ip(&format!("10.{a}.{}.{d}", u16::from(*b) * 60 + u16::from(c / 250)))].into();
            });
        }
        for (n, (a, length)) in cidrs.iter().enumerate() {
            world.service_cidr(&format!("c{n:02}"), &[&format!("10.{a}.0.0/{length}")]);
        }
        let table = world.compile();
        let found = &table.cluster_prefixes;
        prop_assert!(found.prefixes.len() <= crate::table::MAX_PREFIXES);
        prop_assert!(found.prefixes.is_sorted());
        for entry in &table.services {
            for frontend in &entry.frontends {
                prop_assert!(found.prefixes.iter().any(|p| p.contains(frontend.address)));
            }
        }
        if found.are_service_cidrs {
            // Nothing is refused that is neither given nor a known ClusterIP.
            let given: Vec<ipnetwork::IpNetwork> = world.snapshot.service_cidrs.values()
                .flat_map(|cidr| cidr.cidrs.clone()).collect();
            let is_owned = |address| {
                let mut frontends = table.services.iter().flat_map(|entry| &entry.frontends);
                given.iter().any(|cidr| cidr.contains(address))
                    || frontends.any(|frontend| frontend.address == address)
            };
            for prefix in &found.prefixes {
                prop_assert!(is_owned(prefix.network()) && is_owned(prefix.broadcast()));
            }
        }
    }
}
