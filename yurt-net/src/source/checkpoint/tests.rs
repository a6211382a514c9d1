//! What is saved is what is loaded; in `tests/` what damages it, what older agents wrote, what disks do, and what it
//! costs.

use std::fs;
use std::sync::{Arc, LazyLock};

use tempfile::TempDir;

use super::*;
use crate::host::disk::memory::Memory;
use crate::model::{NamespacedName, Protocol};
use crate::source::file::FileSource;
use crate::table::ServiceKey;

mod costs;
mod damage;
mod disks;
mod versions;

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
  healthCheckNodePort: 30999
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

fn sum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// What a frame holds, without its length and its sum.
fn unpacked(frame: &[u8]) -> Vec<u8> {
    lz4_flex::block::decompress_size_prepended(frame).unwrap()
}

/// The file of a first save.
fn file_of(state: &(Snapshot, Provenance)) -> Vec<u8> {
    let disk = Memory::default();
    assert!(save(&mut Saver::on(disk.clone()).0, state));
    disk.get(CURRENT).unwrap()
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

fn provenance_edition(step: u64) -> Edition {
    provenance(step).edition
}

#[test]
fn of_several_spares_the_newest_is_used_whatever_the_clock_said_when_they_were_written() {
    let disk = Memory::default();
    for (name, step, clock) in [(OLD, 2, 17), ("checkpoint.v3", 1, 1_800_000_000)] {
        let (snapshot, mut provenance) = state(step);
        provenance.synced_at = clock;
        disk.put(name, &file_of(&(snapshot, provenance)));
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
    for (name, step) in [(OLD, 1), ("checkpoint.v6", 2)] {
        disk.put(name, &file_of(&state(step)));
    }
    assert_eq!(loaded(&disk), Some(state(2)));
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
