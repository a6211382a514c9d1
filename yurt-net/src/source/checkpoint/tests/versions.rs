//! What agents of other versions wrote.

use serde::Serialize;

use super::super::codec::OLDEST;
use super::super::contents::RecordOf;
use super::*;

/// What another version has in common with this one.
fn of_version(version: u32) -> Vec<u8> {
    let mut bytes = b"YURT-NET".to_vec();
    bytes.extend(version.to_le_bytes());
    let crc = sum(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(b"what it looks like only that version knows");
    bytes
}

#[test]
fn every_version_finds_its_own_checkpoint_again() {
    let (disk, _) = three_states();
    let ours = disk.get(CURRENT).unwrap();
    // A newer agent has done what this one does with others.
    disk.put("checkpoint.v6", &ours);
    disk.put(CURRENT, &of_version(7));
    let (mut saver, found) = Saver::on(disk.clone());
    let [problem @ CheckpointError::Newer { version: 7, .. }] = found.problems.as_slice() else {
        panic!("{:?}", found.problems);
    };
    assert_eq!(
        problem.to_string(),
        "memory/checkpoint is of version 7, after 6"
    );
    let spare = found.loaded.unwrap();
    assert_eq!((spare.snapshot, spare.provenance), state(2));
    assert!(save(&mut saver, &state(1)));
    assert_eq!(disk.get("checkpoint.v7"), Some(of_version(7)));
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

/// What an agent of this version could know of a state: before 6 no health check, before 5 not when a Service was made,
/// before 3 no manifests and no edition, before 2 no Pods.
fn known_to(
    version: u32,
    (mut snapshot, mut provenance): (Snapshot, Provenance),
) -> (Snapshot, Provenance) {
    for service in snapshot.services.values_mut().filter(|_| version < 6) {
        Arc::make_mut(service).health_check_node_port = 0;
    }
    if version < 5 {
        for service in snapshot.services.values_mut() {
            Arc::make_mut(service).created_at = 0;
        }
    }
    if version < 3 {
        snapshot.manifests.clear();
        provenance.edition = Edition::default();
    }
    if version < 2 {
        snapshot.pods.clear();
    }
    (snapshot, provenance)
}

/// The file that an agent of this version wrote of a state.
fn written_as(version: u32, (snapshot, provenance): &(Snapshot, Provenance)) -> Vec<u8> {
    let mut encoder = Encoder::begin_as(version, Vec::new()).unwrap();
    let synced = Record::Synced(provenance.clone());
    for record in Contents::of(snapshot).records().chain([synced]) {
        let added = match version {
            1 => v1::Record::of(record).map(|record| encoder.record(&record)),
            2 if matches!(record, Record::Manifest(_)) => None,
            2 => Some(add::<v2::Provenance>(&mut encoder, record)),
            3 => Some(add::<v3::Provenance>(&mut encoder, record)),
            4 => Some(add::<Provenance>(&mut encoder, record)),
            5 => {
                let record: RecordOf<Provenance, v5::Service> = record.converted();
                Some(encoder.record(&record))
            }
            _ => Some(encoder.record(&record)),
        };
        added.transpose().unwrap();
    }
    encoder.end().unwrap().0
}

fn add<P>(encoder: &mut Encoder<Vec<u8>>, record: Record) -> io::Result<()>
where
    P: From<Provenance> + Serialize,
{
    let record: RecordOf<P, v4::Service> = record.converted();
    encoder.record(&record)
}

/// As they were written down while each version was the newest: whatever becomes of the model, an older one stays what
/// it was.
#[test]
fn the_shape_of_the_model_is_part_of_the_version() {
    for shape in [
        (1, 534, 0xd750_b663),
        (2, 609, 0xdb50_eab5),
        (3, 731, 0x466e_2c62),
        (4, 732, 0x71f8_81d5),
        (5, 737, 0x00c2_8b4e),
        (VERSION, 740, 0xbe62_4bfc),
    ] {
        let bytes = written_as(shape.0, &state(0));
        // Packed bytes are the packer's affair.
        let records = unpacked(&bytes[24..]);
        let found = (shape.0, records.len(), sum(&records));
        assert_eq!(
            found, shape,
            "the model or a record has another shape than checkpoints of this version have: keep the old shape in a module of \
             its version, raise VERSION in codec.rs, and only then write down the new shape here"
        );
    }
}

#[test]
fn a_checkpoint_of_an_older_version_is_read_and_written_anew() {
    for version in OLDEST..VERSION {
        let bytes = written_as(version, &state(2));
        let disk = Memory::default();
        disk.put(CURRENT, &bytes);
        let (mut saver, found) = Saver::on(disk.clone());
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        let loaded = found.loaded.unwrap();
        let loaded = (loaded.snapshot, loaded.provenance);
        assert_eq!(loaded, known_to(version, state(2)), "version {version}");
        if version < 3 {
            assert_eq!(saver.edition(), None);
        }
        assert!(save(&mut saver, &state(1)));
        assert_eq!(saver.edition(), Some(provenance_edition(1)));
        assert_eq!(saver.stats().whole_writes, 1);
        // The agent that wrote it finds it, if it comes back.
        assert_eq!(disk.get(OLD), Some(bytes));
    }
}

#[test]
fn of_a_file_of_any_version_that_is_cut_or_flipped_nothing_is_believed() {
    for version in OLDEST..=VERSION {
        let bytes = written_as(version, &state(2));
        let disk = Memory::default();
        let nothing_is_said = |bytes: &[u8], what: &str| {
            disk.put(CURRENT, bytes);
            let found = load(&disk);
            assert!(found.loaded.is_none(), "version {version}, {what}");
            assert_eq!(found.problems.len(), 1, "version {version}, {what}");
        };
        for at in 0..bytes.len() {
            nothing_is_said(&bytes[..at], &format!("cut at {at}"));
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            nothing_is_said(&flipped, &format!("flipped at {at}"));
        }
        // Bytes of another state behind it are not its next one.
        disk.put(CURRENT, &[&*bytes, &bytes[16..]].concat());
        let found = load(&disk);
        let loaded = found
            .loaded
            .map(|loaded| (loaded.snapshot, loaded.provenance));
        assert_eq!(loaded, Some(known_to(version, state(2))));
        assert_eq!(found.problems.len(), 1, "version {version}");
    }
}

/// A header is well-formed whatever version it names, and what follows would be read as something else.
#[test]
fn a_file_that_claims_to_be_of_another_version_is_damaged() {
    for version in OLDEST..=VERSION {
        for claimed in (OLDEST..=VERSION).filter(|claimed| *claimed != version) {
            let disk = Memory::default();
            let mut bytes = written_as(version, &state(2));
            bytes[..16].copy_from_slice(&of_version(claimed)[..16]);
            disk.put(CURRENT, &bytes);
            let found = load(&disk);
            assert!(found.loaded.is_none(), "{version} as {claimed}");
            let problems = found.problems.as_slice();
            assert!(
                matches!(problems, [CheckpointError::Damaged { kept: 0, .. }]),
                "{problems:?}"
            );
        }
    }
}
