//! What saving and loading takes of disk and time.

use std::time::{Duration, Instant};

use super::*;
use crate::model::{Hints, Placement};

#[test]
fn nothing_is_written_at_rest() {
    let (disk, _) = three_states();
    let (mut saver, _) = Saver::on(disk.clone());
    let operations = disk.operations();
    // Also when every object was read anew, and the versions have moved on.
    let (snapshot, _) = state(2);
    for step in 3..10 {
        assert!(!save(&mut saver, &(snapshot.clone(), provenance(step))));
    }
    assert_eq!(disk.operations(), operations);
    assert_eq!(*saver.stats(), Stats::default());
    // Everything is, once.
    let contents = Contents::of(&snapshot);
    for is_new in [true, false] {
        let written = saver.save(contents.clone(), &provenance(10), Occasion::Everything);
        assert_eq!(written.unwrap(), is_new);
    }
    assert_eq!(loaded(&disk), Some((snapshot, provenance(10))));
}

#[test]
fn a_journal_that_outgrows_the_snapshot_is_written_anew() {
    let disk = Memory::default();
    let (mut saver, _) = Saver::on(disk.clone());
    let mut last = 0;
    for step in 0..10_000 {
        let mut state = state(step % 2);
        state.1 = provenance(step);
        assert!(save(&mut saver, &state));
        last = step;
        if saver.stats().whole_writes > 2 {
            break;
        }
    }
    assert!(
        last > 1000,
        "{last} saves for two journals of {JOURNAL_BYTES} bytes"
    );
    let longest = usize::try_from(JOURNAL_BYTES).unwrap() + 4096;
    assert!(disk.get(OLD).unwrap().len() < longest);
    assert!(disk.get(CURRENT).unwrap().len() < 4096);
}

fn address(base: u32, i: usize) -> std::net::IpAddr {
    let offset = u32::try_from(i & 0xffff).unwrap();
    std::net::Ipv4Addr::from_bits(base + offset).into()
}

/// So many Services, the i-th with so many endpoints on some of 40 nodes.
fn large(services: usize, endpoints: impl Fn(usize) -> usize) -> Snapshot {
    let mut snapshot = cluster();
    let service = Arc::clone(snapshot.services.first_key_value().unwrap().1);
    let slice = Arc::clone(snapshot.slices.first_key_value().unwrap().1);
    let nodes: Vec<Arc<Placement>> = (0..40)
        .map(|node| Some(format!("edge-node-{node:02}").into()))
        .filter_map(|node| Placement::new(node, Hints::default()))
        .map(Arc::new)
        .collect();
    for i in 0..services {
        let mut service = (*service).clone();
        service.name = NamespacedName::new(format!("team-{}", i % 50), format!("service-{i:05}"));
        service.cluster_ips = [address(0x0a60_0000, i)].into();
        service.external_ips = Box::from([]);
        service.load_balancer_ips = Box::from([]);
        service.ports = service.ports.iter().take(1).cloned().collect();
        let mut slice = (*slice).clone();
        let suffix = i.wrapping_mul(2_654_435_761) & 0xf_ffff;
        slice.name = NamespacedName::new(
            service.name.namespace.clone(),
            format!("{}-{suffix:05x}", service.name.name),
        );
        slice.service.clone_from(&service.name.name);
        slice.ports = slice.ports.iter().take(1).cloned().collect();
        let endpoint = slice.endpoints.get(0).unwrap();
        let endpoints = (0..endpoints(i)).map(|e| {
            let mut endpoint = endpoint.clone();
            let mix = (i * 10 + e).wrapping_mul(2_654_435_761) >> 7;
            endpoint.address = address(0x0af4_0000, mix);
            endpoint.placement = Some(Arc::clone(&nodes[mix % nodes.len()]));
            endpoint
        });
        slice.endpoints = endpoints.collect();
        let (name, slice_name) = (service.name.clone(), slice.name.clone());
        snapshot.services.insert(name, Arc::new(service));
        snapshot.slices.insert(slice_name, Arc::new(slice));
    }
    snapshot
}

/// A change a second for so long.
fn churn(disk: impl Disk, seconds: u32) -> Stats {
    let (mut saver, _) = Saver::on(disk);
    let mut snapshot = large(10_000, |i| 2 + i % 9);
    let mut slices: Vec<_> = snapshot.slices.keys().cloned().collect();
    slices.retain(|slice| *slice.namespace != *"shop");
    let start = Instant::now();
    let mut pace = Pace::default();
    pace.changed(start);
    for second in 0..seconds {
        let now = start + Duration::from_secs(second.into());
        let name = &slices[second as usize * 7919 % slices.len()];
        let slice = snapshot.slices.get_mut(name).unwrap();
        // A Pod of it moves.
        let endpoints = &mut Arc::make_mut(slice).endpoints;
        endpoints.edit(|all| all[0].address = address(0x0af4_0000, second as usize * 7));
        pace.changed(now);
        if pace.begin(now) {
            let contents = Contents::of(&snapshot);
            saver
                .save(contents, &provenance(second.into()), Occasion::Changes)
                .unwrap();
            pace.saved();
        }
    }
    assert_eq!(saver.stats().errors, 0);
    saver.stats().clone()
}

#[test]
fn a_tenth_of_a_day_of_a_change_a_second_takes_less_than_a_tenth_of_100_mb() {
    // The first, whole write is in it, and a whole one for each time that the journal has grown to that size.
    let disk = Memory::default();
    let stats = churn(disk.clone(), 8640);
    assert!(stats.bytes_written < 10_000_000, "{stats:?}");
    let device_bytes = disk.device_bytes();
    assert!(device_bytes < 10_000_000, "{device_bytes}: {stats:?}");
}

#[test]
#[ignore = "a minute in a debug build: cargo test --release -p yurt-net checkpoint -- --ignored --nocapture"]
fn a_day_of_a_change_a_second_takes_less_than_100_mb() {
    let disk = Memory::default();
    let stats = churn(disk.clone(), 86_400);
    let device_bytes = disk.device_bytes();
    eprintln!("a day: {device_bytes} bytes on the medium, {stats:?}");
    assert!(device_bytes < 100_000_000);
    // The same on a real one, for whoever counts there.
    let directory = TempDir::new().unwrap();
    assert_eq!(churn(Directory::new(directory.path()), 86_400), stats);
}

#[test]
#[ignore = "measures: cargo test --release -p yurt-net checkpoint -- --ignored --nocapture"]
fn ten_thousand_services_of_ten_endpoints_are_saved_and_loaded_in_time() {
    let directory = TempDir::new().unwrap();
    let snapshot = large(10_000, |_| 10);
    let (mut saver, _) = Saver::open(directory.path());
    for round in 0..5u64 {
        let started = Instant::now();
        let contents = Contents::of(&snapshot);
        let taken = started.elapsed();
        saver.saved = None;
        saver
            .save(contents, &provenance(round), Occasion::Changes)
            .unwrap();
        let saved = started.elapsed();
        let bytes = fs::metadata(directory.path().join(CURRENT)).unwrap().len();
        let started = Instant::now();
        let (_, found) = Saver::open(directory.path());
        let loaded = started.elapsed();
        assert_eq!(found.loaded.unwrap().snapshot, snapshot);
        let started = Instant::now();
        let mut changed = snapshot.clone();
        change_slice(&mut changed, "web-x1", 1);
        let cloned = started.elapsed();
        let contents = Contents::of(&changed);
        saver
            .save(contents, &provenance(round), Occasion::Changes)
            .unwrap();
        eprintln!(
            "{bytes} bytes; contents {taken:?}, whole save {saved:?}, load {loaded:?}; clone of the snapshot \
             {cloned:?}, with one change saved {:?}",
            started.elapsed() - cloned
        );
    }
    // The longest journal.
    let mut changed = snapshot;
    let whole_writes = saver.stats().whole_writes;
    let slices: Vec<_> = changed.slices.keys().cloned().collect();
    for (round, slices) in (5..).zip(slices.chunks(60).cycle()) {
        for slice in slices {
            let slice = Arc::make_mut(changed.slices.get_mut(slice).unwrap());
            slice.endpoints.edit(|all| all.rotate_left(1));
        }
        let started = Instant::now();
        let (_, found) = Saver::open(directory.path());
        let loaded = started.elapsed();
        let bytes = fs::metadata(directory.path().join(CURRENT)).unwrap().len();
        drop(found);
        let started = Instant::now();
        let contents = Contents::of(&changed);
        saver
            .save(contents, &provenance(round), Occasion::Changes)
            .unwrap();
        if saver.stats().whole_writes > whole_writes {
            let saved = started.elapsed();
            eprintln!(
                "load of {bytes} bytes with the longest journal {loaded:?}; then saved in {saved:?}"
            );
            break;
        }
    }
}
