use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::contents::RecordOf;
use super::*;
use crate::error::PathError;
use crate::host::disk::memory::Memory;
use crate::model::{Hints, NamespacedName, Placement, Protocol};
use crate::source::file::FileSource;
use crate::table::ServiceKey;

/// One object of each kind, with every field that the model has. It goes through the decoder, so that a new field
/// of the model shows in the bytes and not in this file.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  creationTimestamp: "2026-01-02T03:04:05Z"
  annotations: {openyurt.io/topologyKeys: openyurt.io/nodepool}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00::10"]
  externalIPs: [198.51.100.7]
  ports:
    - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
    - {name: dns, protocol: UDP, port: 65535, targetPort: dns}
status: {loadBalancer: {ingress: [{ip: 203.0.113.9}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports:
  - {name: http, port: 8080, protocol: TCP}
  - {name: dns, port: 5353, protocol: UDP}
endpoints:
  - {addresses: [10.244.1.2], nodeName: edge-a1, conditions: {ready: true}}
  - {addresses: [10.244.1.3], nodeName: edge-a1, conditions: {ready: false, serving: true, terminating: true}}
  - {addresses: [10.244.2.2], nodeName: edge-a2}
  - {addresses: [10.244.9.2]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ["fd00:1::2"], nodeName: edge-a1}]
---
apiVersion: v1
kind: Node
metadata: {name: edge-a1, labels: {apps.openyurt.io/nodepool: hangzhou, topology.kubernetes.io/zone: z1}}
spec: {podCIDRs: [10.244.1.0/24, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}, {type: ExternalIP, address: 203.0.113.11}]}
---
apiVersion: apps.openyurt.io/v1beta2
kind: NodePool
metadata: {name: hangzhou}
status: {nodes: [edge-a1, edge-a2]}
---
apiVersion: apps.openyurt.io/v1alpha1
kind: NodeBucket
metadata: {name: hangzhou-1, labels: {openyurt.io/pool-name: hangzhou}}
nodes: [{name: edge-a1}, {name: edge-a2}]
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, "fd00::/112"]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web-0, uid: 5f0c, annotations: {yurt-net.openyurt.io/extra-addresses: 10.0.0.9}}
spec: {nodeName: edge-a1}
"#;

pub(super) fn cluster() -> Snapshot {
    static CLUSTER_READ: LazyLock<Snapshot> = LazyLock::new(|| {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("cluster.yaml");
        fs::write(&path, CLUSTER).unwrap();
        let snapshot = FileSource::new(path).load().unwrap();
        assert_eq!(snapshot.rejections, []);
        snapshot
    });
    CLUSTER_READ.clone()
}

pub(super) fn provenance(step: u64) -> Provenance {
    Provenance {
        source: "kube:".to_owned(),
        synced_at: 1_800_000_000 + step,
        resource_versions: [
            ("endpointslices", 1000 + step),
            ("services", 900),
            ("nodes", 800),
        ]
        .map(|(resource, version)| (resource.to_owned(), version.to_string()))
        .into(),
        edition: (0..step).fold(Edition::first(7), |edition, _| edition.next()),
        left_out: Vec::new(),
    }
}

/// The state after so many changes.
fn state(step: u64) -> (Snapshot, Provenance) {
    let mut snapshot = cluster();
    if step >= 1 {
        change_slice(&mut snapshot, "web-x1", 1);
    }
    if step >= 2 {
        snapshot
            .slices
            .remove(&NamespacedName::new("shop", "web-x2"));
        snapshot.pools.clear();
    }
    (snapshot, provenance(step))
}

/// The slice has so many of its endpoints left.
fn change_slice(snapshot: &mut Snapshot, name: &str, endpoints: usize) {
    let slice = snapshot
        .slices
        .get_mut(&NamespacedName::new("shop", name))
        .unwrap();
    let slice = Arc::make_mut(slice);
    slice.endpoints.truncate(endpoints);
}

fn save<D: Disk>(saver: &mut Saver<D>, (snapshot, provenance): &(Snapshot, Provenance)) -> bool {
    saver
        .save(Contents::of(snapshot), provenance, Occasion::Changes)
        .unwrap()
}

fn load(disk: &Memory) -> Found {
    Saver::on(disk.clone()).1
}

fn loaded(disk: &Memory) -> Option<(Snapshot, Provenance)> {
    let loaded = load(disk).loaded?;
    Some((loaded.snapshot, loaded.provenance))
}

/// A disk with a checkpoint of three states, and the lengths at which they end.
fn three_states() -> (Memory, Vec<usize>) {
    let disk = Memory::default();
    let (mut saver, _) = Saver::on(disk.clone());
    let mut ends = Vec::new();
    for step in 0..3 {
        assert!(save(&mut saver, &state(step)));
        ends.push(disk.get(CURRENT).unwrap().len());
    }
    assert_eq!(saver.stats().whole_writes, 1);
    (disk, ends)
}

#[test]
fn what_was_saved_is_loaded() {
    let disk = Memory::default();
    assert_eq!(loaded(&disk), None);
    let (mut saver, found) = Saver::on(disk.clone());
    assert!(found.loaded.is_none() && found.problems.is_empty());
    for step in 0..3 {
        assert!(save(&mut saver, &state(step)));
        assert_eq!(loaded(&disk), Some(state(step)));
        assert!(load(&disk).problems.is_empty());
    }
}

#[test]
fn a_checkpoint_that_goes_or_is_replaced_is_written_anew_although_nothing_has_changed() {
    let disk = Memory::default();
    let (mut saver, _) = Saver::on(disk.clone());
    assert!(!saver.has_lost(), "nothing was saved yet");
    assert!(save(&mut saver, &state(0)));
    assert!(!saver.has_lost());
    assert!(!save(&mut saver, &state(0)));
    disk.clone().remove(CURRENT).unwrap();
    assert!(saver.has_lost());
    assert!(save(&mut saver, &state(0)));
    assert_eq!(loaded(&disk), Some(state(0)));
    disk.put(CURRENT, b"something else");
    assert!(saver.has_lost());
    assert!(save(&mut saver, &state(0)));
    assert_eq!(loaded(&disk), Some(state(0)));
    // A disk that cannot be written to has lost nothing.
    disk.set_read_only(true);
    assert!(!saver.has_lost());
}

#[test]
fn the_shape_of_the_model_is_part_of_the_version() {
    let (snapshot, provenance) = state(0);
    let mut encoder = Encoder::begin(Vec::new()).unwrap();
    for record in Contents::of(&snapshot).records() {
        encoder.record(&record).unwrap();
    }
    let (bytes, _) = encoder.finish(&provenance).unwrap();
    // Packed bytes are the packer's affair.
    let records = lz4_flex::block::decompress_size_prepended(&bytes[24..]).unwrap();
    let shape = (VERSION, records.len(), crc32fast::hash(&records));
    assert_eq!(
        shape,
        (5, 737, 0x00c2_8b4e),
        "the model or a record has another shape than checkpoints of this version have: raise VERSION in codec.rs, \
         and only then write down the new shape here"
    );
}

#[test]
fn a_file_cut_at_any_byte_gives_the_last_state_before() {
    let (disk, ends) = three_states();
    let bytes = disk.get(CURRENT).unwrap();
    for length in 0..bytes.len() {
        disk.put(CURRENT, &bytes[..length]);
        let complete = ends.iter().filter(|end| **end <= length).count();
        let expected = complete.checked_sub(1).map(|last| state(last as u64));
        let found = load(&disk);
        let is_boundary = ends.contains(&length);
        assert_eq!(found.problems.is_empty(), is_boundary, "cut at {length}");
        if let [problem] = found.problems.as_slice() {
            assert!(matches!(problem, CheckpointError::Torn { .. }), "{problem}");
        }
        let loaded = found
            .loaded
            .map(|loaded| (loaded.snapshot, loaded.provenance));
        assert_eq!(loaded, expected, "cut at {length}");
    }
}

#[test]
fn a_file_with_any_bit_flipped_gives_the_last_state_before() {
    let (disk, ends) = three_states();
    let bytes = disk.get(CURRENT).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            disk.put(CURRENT, &flipped);
            let complete = ends.iter().filter(|end| **end <= at).count();
            let expected = complete.checked_sub(1).map(|last| state(last as u64));
            assert_eq!(load(&disk).problems.len(), 1, "bit {bit} of {at}");
            assert_eq!(loaded(&disk), expected, "bit {bit} of {at}");
        }
    }
}

#[test]
fn a_frame_counts_only_behind_what_it_was_written_behind() {
    let (disk, ends) = three_states();
    let bytes = disk.get(CURRENT).unwrap();
    // The same snapshot as a base, but of another time, and the journal of the first file.
    let other = Memory::default();
    let (mut saver, _) = Saver::on(other.clone());
    let (snapshot, _) = state(0);
    save(&mut saver, &(snapshot.clone(), provenance(7)));
    let mut mixed = other.get(CURRENT).unwrap();
    mixed.extend(&bytes[ends[0]..]);
    disk.put(CURRENT, &mixed);
    assert_eq!(loaded(&disk), Some((snapshot, provenance(7))));
    // A journal without its first part.
    disk.put(CURRENT, &[&bytes[..ends[0]], &bytes[ends[1]..]].concat());
    assert_eq!(loaded(&disk), Some(state(0)));
    // And with the first part twice.
    disk.put(CURRENT, &[&bytes[..ends[1]], &bytes[ends[0]..]].concat());
    assert_eq!(loaded(&disk), Some(state(1)));
}

#[test]
fn after_a_torn_end_everything_is_written_anew() {
    let (disk, ends) = three_states();
    let bytes = disk.get(CURRENT).unwrap();
    disk.put(CURRENT, &bytes[..ends[2] - 1]);
    let (mut saver, found) = Saver::on(disk.clone());
    let error = found.problems[0].to_string();
    assert_eq!(
        error,
        format!("memory/checkpoint ends unfinished after byte {}", ends[1])
    );
    assert!(found.loaded.is_some());
    assert!(save(&mut saver, &state(1)));
    assert_eq!(saver.stats().whole_writes, 1);
    assert_eq!(loaded(&disk), Some(state(1)));
}

#[test]
fn a_damaged_snapshot_is_set_aside_and_the_one_before_it_is_used() {
    let (disk, _) = three_states();
    let good = disk.get(CURRENT).unwrap();
    let mut damaged = good.clone();
    damaged[40] ^= 1;
    disk.put(CURRENT, &damaged);
    disk.put(OLD, &good);
    let (mut saver, found) = Saver::on(disk.clone());
    assert!(matches!(
        found.problems.as_slice(),
        [CheckpointError::Damaged { kept: 0, .. }]
    ));
    let spare = found.loaded.unwrap();
    assert_eq!((spare.snapshot, spare.provenance), state(2));
    // Reading has changed nothing.
    assert_eq!(disk.get(CURRENT), Some(damaged.clone()));
    assert!(save(&mut saver, &state(1)));
    assert_eq!(disk.get("checkpoint.damaged"), Some(damaged));
    assert_eq!(disk.get(OLD), Some(good));
    assert_eq!(loaded(&disk), Some(state(1)));
}

#[test]
fn a_file_of_something_else_is_set_aside() {
    let disk = Memory::default();
    for foreign in [
        b"{}".as_slice(),
        b"YURT-net and more",
        b"\0\0\0\0\0\0\0\0\x01",
    ] {
        disk.put(CURRENT, foreign);
        let (mut saver, found) = Saver::on(disk.clone());
        let is_foreign = matches!(found.problems.as_slice(), [CheckpointError::Foreign { .. }]);
        assert_eq!(is_foreign, foreign[0] != 0);
        assert!(found.loaded.is_none());
        assert!(save(&mut saver, &state(0)));
        let name = if is_foreign {
            "checkpoint.foreign"
        } else {
            "checkpoint.damaged"
        };
        assert_eq!(disk.get(name).as_deref(), Some(foreign));
        assert_eq!(loaded(&disk), Some(state(0)));
    }
}

/// What another version has in common with this one.
fn of_version(version: u32) -> Vec<u8> {
    let mut bytes = b"YURT-NET".to_vec();
    bytes.extend(version.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(b"what it looks like only that version knows");
    bytes
}

#[test]
fn every_version_finds_its_own_checkpoint_again() {
    let (disk, _) = three_states();
    let ours = disk.get(CURRENT).unwrap();
    // A newer agent has done what this one does with others.
    disk.put("checkpoint.v5", &ours);
    disk.put(CURRENT, &of_version(6));
    let (mut saver, found) = Saver::on(disk.clone());
    let [problem @ CheckpointError::Newer { version: 6, .. }] = found.problems.as_slice() else {
        panic!("{:?}", found.problems);
    };
    assert_eq!(
        problem.to_string(),
        "memory/checkpoint is of version 6, after 5"
    );
    let spare = found.loaded.unwrap();
    assert_eq!((spare.snapshot, spare.provenance), state(2));
    assert!(save(&mut saver, &state(1)));
    assert_eq!(disk.get("checkpoint.v6"), Some(of_version(6)));
    assert_eq!(loaded(&disk), Some(state(1)));

    disk.put(CURRENT, &of_version(0));
    let (mut saver, found) = Saver::on(disk.clone());
    assert!(matches!(
        found.problems.as_slice(),
        [CheckpointError::Older { version: 0, .. }]
    ));
    assert!(save(&mut saver, &state(0)));
    assert_eq!(disk.get("checkpoint.v0"), Some(of_version(0)));
}

/// The cluster as versions before 5 knew it: nothing says when a Service was made.
fn undated_state() -> (Snapshot, Provenance) {
    let (mut snapshot, provenance) = state(2);
    for service in snapshot.services.values_mut() {
        Arc::make_mut(service).created_at = 0;
    }
    (snapshot, provenance)
}

/// The file that an agent of `version`, 2 to 4, wrote.
fn written_as<P>(version: u32, snapshot: &Snapshot, provenance: &Provenance) -> Vec<u8>
where
    P: From<Provenance> + Serialize,
{
    let mut encoder = Encoder::begin_as(version, Vec::new()).unwrap();
    let synced = Record::Synced(provenance.clone());
    for record in Contents::of(snapshot).records().chain([synced]) {
        let record: RecordOf<P, v4::Service> = record.converted();
        encoder.record(&record).unwrap();
    }
    encoder.end().unwrap().0
}

#[test]
fn a_checkpoint_of_version_1_is_read_and_written_anew() {
    let (mut snapshot, provenance) = undated_state();
    snapshot.pods.clear();
    snapshot.manifests.clear();
    let mut encoder = Encoder::begin_as(1, Vec::new()).unwrap();
    let synced = Record::Synced(provenance.clone());
    for record in Contents::of(&snapshot).records().chain([synced]) {
        encoder.record(&v1::Record::of(record).unwrap()).unwrap();
    }
    let (bytes, _) = encoder.end().unwrap();
    is_read_and_written_anew(&bytes, snapshot, provenance);
}

#[test]
fn a_checkpoint_of_version_2_is_read_and_written_anew() {
    let (mut snapshot, provenance) = undated_state();
    snapshot.manifests.clear();
    let bytes = written_as::<v2::Provenance>(2, &snapshot, &provenance);
    is_read_and_written_anew(&bytes, snapshot, provenance);
}

#[test]
fn a_checkpoint_of_version_3_or_4_is_read_and_written_anew() {
    let (snapshot, provenance) = undated_state();
    for bytes in [
        written_as::<v3::Provenance>(3, &snapshot, &provenance),
        written_as::<Provenance>(4, &snapshot, &provenance),
    ] {
        let disk = Memory::default();
        disk.put(CURRENT, &bytes);
        let (mut saver, found) = Saver::on(disk.clone());
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        let loaded = found.loaded.unwrap();
        assert_eq!(loaded.snapshot, snapshot);
        assert_eq!(loaded.provenance, provenance);
        assert!(save(&mut saver, &state(1)));
        assert_eq!(saver.stats().whole_writes, 1);
    }
}

#[test]
fn who_had_no_room_is_saved_when_that_changes_and_forgotten_with_it() {
    let disk = Memory::default();
    let (mut saver, _) = Saver::on(disk.clone());
    let (snapshot, mut provenance) = state(0);
    assert!(save(&mut saver, &(snapshot.clone(), provenance.clone())));
    provenance.left_out = vec![ServiceKey {
        namespace: "shop".into(),
        name: "web".into(),
        port: "http".into(),
        protocol: Protocol::Tcp,
    }];
    let full = (snapshot, provenance);
    assert!(save(&mut saver, &full));
    assert!(!save(&mut saver, &full));
    assert_eq!(loaded(&disk), Some(full));
    assert!(save(&mut saver, &state(0)));
    assert_eq!(loaded(&disk), Some(state(0)));
}

/// This file of an agent before this one says all but the edition.
fn is_read_and_written_anew(bytes: &[u8], snapshot: Snapshot, provenance: Provenance) {
    let disk = Memory::default();
    disk.put(CURRENT, bytes);
    let (mut saver, found) = Saver::on(disk.clone());
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    let loaded = found.loaded.unwrap();
    let expected = Provenance {
        edition: Edition::default(),
        ..provenance
    };
    assert_eq!((loaded.snapshot, loaded.provenance), (snapshot, expected));
    assert_eq!(saver.edition(), None);
    assert!(save(&mut saver, &state(1)));
    assert_eq!(saver.edition(), Some(provenance_edition(1)));
    assert_eq!(saver.stats().whole_writes, 1);
    // The agent that wrote it finds it, if it comes back.
    assert_eq!(disk.get(OLD), Some(bytes.to_vec()));
}

fn provenance_edition(step: u64) -> Edition {
    provenance(step).edition
}

#[test]
fn of_several_spares_the_newest_is_used_whatever_the_clock_said_when_they_were_written() {
    let disk = Memory::default();
    for (name, step, clock) in [(OLD, 2, 17), ("checkpoint.v3", 1, 1_800_000_000)] {
        let other = Memory::default();
        let (snapshot, mut provenance) = state(step);
        provenance.synced_at = clock;
        save(&mut Saver::on(other.clone()).0, &(snapshot, provenance));
        disk.put(name, &other.get(CURRENT).unwrap());
    }
    assert_eq!(loaded(&disk).unwrap().0, state(2).0);
}

#[test]
fn a_state_that_says_the_same_is_of_the_edition_that_is_on_disk() {
    let (disk, _) = three_states();
    let (mut saver, _) = Saver::on(disk);
    let (snapshot, _) = state(2);
    assert!(!save(&mut saver, &(snapshot, provenance(5))));
    assert_eq!(saver.edition(), Some(provenance_edition(2)));
}

#[test]
fn the_newest_of_several_spares_is_used() {
    let disk = Memory::default();
    for (name, step) in [(OLD, 1), ("checkpoint.v5", 2)] {
        let other = Memory::default();
        save(&mut Saver::on(other.clone()).0, &state(step));
        disk.put(name, &other.get(CURRENT).unwrap());
    }
    assert_eq!(loaded(&disk), Some(state(2)));
}

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
fn a_full_disk_is_an_error_and_the_next_attempt_writes_everything() {
    let (disk, ends) = three_states();
    let (mut saver, _) = Saver::on(disk.clone());
    disk.set_room(Some(ends[2] + 20));
    for attempt in 1..3 {
        let (snapshot, provenance) = state(0);
        let result = saver.save(Contents::of(&snapshot), &provenance, Occasion::Changes);
        let error = result.unwrap_err();
        assert!(
            matches!(
                error,
                CheckpointError::Io(PathError {
                    operation: "write",
                    ..
                })
            ),
            "{error}"
        );
        assert_eq!(saver.stats().errors, attempt);
        let last_error = saver.stats().last_error.clone().unwrap();
        assert!(last_error.contains("no storage space"), "{last_error}");
        // What was good still is, and the attempt takes no room.
        assert_eq!(loaded(&disk), Some(state(2)));
        assert_eq!(disk.get(NEW), None);
    }
    disk.set_room(None);
    assert!(save(&mut saver, &state(0)));
    assert_eq!(saver.stats().last_error, None);
    assert_eq!(saver.stats().whole_writes, 1);
    assert_eq!(loaded(&disk), Some(state(0)));
    assert!(load(&disk).problems.is_empty());
}

#[test]
fn a_disk_that_became_read_only_is_an_error_and_costs_nothing() {
    let (disk, _) = three_states();
    disk.set_read_only(true);
    let (mut saver, found) = Saver::on(disk.clone());
    assert!(found.loaded.is_some() && found.problems.is_empty());
    let (snapshot, provenance) = state(0);
    let contents = Contents::of(&snapshot);
    let result = saver.save(contents.clone(), &provenance, Occasion::Changes);
    assert_eq!(
        result.unwrap_err().to_string(),
        "append to memory/checkpoint"
    );
    let result = saver.save(contents, &provenance, Occasion::Changes);
    assert_eq!(
        result.unwrap_err().to_string(),
        "create memory/checkpoint.new"
    );
    assert_eq!(saver.stats().bytes_written, 0);
    disk.set_read_only(false);
    assert!(save(&mut saver, &(snapshot, provenance)));
    assert_eq!(loaded(&disk), Some(state(0)));
}

#[test]
fn a_checkpoint_that_somebody_removed_is_written_anew() {
    let (mut disk, _) = three_states();
    let (mut saver, _) = Saver::on(disk.clone());
    disk.remove(CURRENT).unwrap();
    assert!(save(&mut saver, &state(1)));
    assert_eq!(loaded(&disk), Some(state(1)));
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

#[test]
fn endpoints_share_the_names_of_their_nodes() {
    let disk = Memory::default();
    save(&mut Saver::on(disk.clone()).0, &state(0));
    let (snapshot, _) = loaded(&disk).unwrap();
    let names: Vec<_> = snapshot
        .slices
        .values()
        .flat_map(|slice| slice.endpoints.placements())
        .filter_map(|placement| placement.node_name.as_ref())
        .filter(|name| ***name == *"edge-a1")
        .collect();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|name| Arc::ptr_eq(name, names[0])));
}

#[test]
fn on_a_file_system_the_files_are_for_root_only() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("state/snapshot");
    let (mut saver, found) = Saver::open(&path);
    assert!(found.loaded.is_none() && found.problems.is_empty());
    // Two files, and then one that is appended to.
    for step in [0, 1, 2] {
        assert!(save(&mut saver, &state(step)));
        if step == 0 {
            saver = Saver::open(&path).0;
        }
    }
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(CURRENT)), 0o600);
    let names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [CURRENT]);
    let (_, found) = Saver::open(&path);
    let loaded = found.loaded.unwrap();
    assert_eq!((loaded.snapshot, loaded.provenance), state(2));
}

#[test]
fn on_a_file_system_links_are_not_followed() {
    let directory = TempDir::new().unwrap();
    let victim = directory.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let path = directory.path().join("snapshot");
    fs::create_dir(&path).unwrap();
    for name in [CURRENT, NEW] {
        symlink(&victim, path.join(name)).unwrap();
    }
    let (mut saver, found) = Saver::open(&path);
    assert!(matches!(
        found.problems.as_slice(),
        [CheckpointError::Io(PathError {
            operation: "read",
            ..
        })]
    ));
    assert!(save(&mut saver, &state(0)));
    assert!(save(&mut saver, &state(1)));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    let found = Saver::open(&path).1;
    assert!(found.problems.is_empty());
    assert_eq!(found.loaded.unwrap().snapshot, state(1).0);
}

#[test]
fn on_a_file_system_a_directory_that_cannot_be_made_is_an_error_until_it_can() {
    let directory = TempDir::new().unwrap();
    let blocker = directory.path().join("state");
    fs::write(&blocker, "").unwrap();
    let (mut saver, found) = Saver::open(blocker.join("snapshot"));
    let is_read = |problem: &_| {
        matches!(
            problem,
            CheckpointError::Io(PathError {
                operation: "read",
                ..
            })
        )
    };
    assert!(found.loaded.is_none() && found.problems.iter().all(is_read));
    let (snapshot, provenance) = state(0);
    let result = saver.save(Contents::of(&snapshot), &provenance, Occasion::Changes);
    assert!(matches!(
        result,
        Err(CheckpointError::Io(PathError {
            operation: "create",
            ..
        }))
    ));
    fs::remove_file(&blocker).unwrap();
    assert!(save(&mut saver, &(snapshot, provenance)));
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
