//! Files that are cut, flipped, mixed, or something else.

use super::*;

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
    let (snapshot, _) = state(0);
    let mut mixed = file_of(&(snapshot.clone(), provenance(7)));
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
