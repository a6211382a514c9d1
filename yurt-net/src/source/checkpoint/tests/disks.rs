//! Disks that are full, read-only, absent, or somebody else's, too.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::error::PathError;

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
