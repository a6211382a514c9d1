use std::collections::BTreeSet;

use super::codec::{self, Flaw};
use super::store::{JOURNAL_BYTES, LedgerDirs, LedgerError, Store};
use super::*;
use crate::host::disk::memory::Memory;

pub(crate) fn key(name: &str) -> Key {
    Key {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        interface: "eth0".to_owned(),
    }
}

pub(crate) fn entry(address: &str, container: &str) -> Entry {
    Entry {
        addresses: vec![address.parse().unwrap()],
        promised: Vec::new(),
        promised_by: Assigner::Other,
        mac: None,
        host: None,
        asker: None,
        uid: "5f0c".to_owned(),
        container: container.to_owned(),
        network: "edge".to_owned(),
        assigner: Assigner::Ours,
        state: State::Active,
        since: 1_800_000_000,
        at: 100,
    }
}

fn put(name: &str, address: &str) -> Record {
    Record::Put {
        key: key(name),
        entry: entry(address, &format!("c-{name}")),
    }
}

fn boot(id: &str, up: u64, at: u64) -> Record {
    Record::Boot {
        id: id.to_owned(),
        up,
        at,
    }
}

fn of(records: &[Record]) -> Ledger {
    let mut ledger = Ledger::default();
    records
        .iter()
        .cloned()
        .for_each(|record| ledger.apply(record));
    ledger
}

fn clock(boot: &str, up: u64, wall: u64) -> Clock {
    Clock {
        boot: boot.to_owned(),
        up,
        wall,
    }
}

#[test]
fn time_goes_on_across_boots_and_does_not_jump_with_the_wall_clock() {
    let mut ledger = of(&[boot("one", 50, 0), put("web-0", "10.1.0.2")]);
    // 100 by the entry, and 60 s of this boot.
    assert_eq!(ledger.now(&clock("one", 210, 0)).at, 160);
    assert_eq!(ledger.now(&clock("one", 210, u64::MAX)).at, 160);
    // Never before what has been written.
    assert_eq!(ledger.now(&clock("one", 10, 0)).at, 100);
    // Off for any time, and the clock is in 1970: it stands.
    assert_eq!(ledger.now(&clock("two", 7, 0)).at, 100);
    ledger.apply(boot("two", 7, 100));
    assert_eq!(ledger.now(&clock("two", 17, 0)).at, 110);
}

#[test]
fn a_ledger_written_anew_says_the_same() {
    let ledger = of(&[
        boot("one", 50, 0),
        put("web-0", "10.1.0.2"),
        Record::Cursor {
            set: "10.1.0.1".parse().unwrap(),
            last: "10.1.0.2".parse().unwrap(),
        },
        Record::Adopted("edge".to_owned()),
        put("web-1", "fd00::2"),
        Record::Remove(key("web-1")),
    ]);
    let again = of(&ledger.records());
    assert_eq!(again.records(), ledger.records());
    for up in [0, 50, 400] {
        let clock = clock("one", up, 0);
        assert_eq!(again.now(&clock), ledger.now(&clock));
    }
}

#[test]
fn macs_are_read_as_they_are_printed_and_nothing_else_is() {
    let mac: Mac = "0a:58:0A:01:00:02".parse().unwrap();
    assert_eq!(mac.to_string(), "0a:58:0a:01:00:02");
    for bad in [
        "",
        "0a:58:0a:01:00",
        "0a:58:0a:01:00:02:03",
        "0a-58-0a-01-00-02",
        "a:58:0a:01:00:02",
        "+a:58:0a:01:00:02",
    ] {
        assert!(bad.parse::<Mac>().is_err(), "{bad}");
    }
}

/// The file that these tests damage: a state, and three changes.
fn file() -> (Vec<u8>, Vec<Record>) {
    let state = [
        boot("one", 50, 0),
        put("web-0", "10.1.0.2"),
        put("web-1", "10.1.0.3"),
    ];
    let changes = [
        Record::Remove(key("web-0")),
        put("web-2", "10.1.0.2"),
        put("web-3", "10.1.0.4"),
    ];
    let mut bytes = codec::whole(&of(&state), 7).unwrap();
    bytes.extend(codec::changes(7, &changes).unwrap());
    (bytes, [state.as_slice(), &changes].concat())
}

#[test]
fn a_file_is_read_back() {
    let (bytes, records) = file();
    let replayed = codec::replay(&bytes);
    assert_eq!(replayed.flaw, None);
    assert_eq!(
        (replayed.sequence, replayed.length),
        (10, bytes.len() as u64)
    );
    assert_eq!(replayed.ledger.records(), of(&records).records());
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.lines().all(|line| line.as_bytes()[8] == b' '),
        "{text}"
    );
}

#[test]
fn what_a_file_looks_like_is_part_of_its_version() {
    let mut entry = entry("10.1.0.2", "c1");
    entry.mac = Some(Mac([10, 88, 10, 1, 0, 2]));
    entry.state = State::Retained;
    let put = Record::Put {
        key: key("web-0"),
        entry,
    };
    let lines = codec::changes(
        4,
        &[put, Record::Remove(key("web-1")), boot("one", 31, 900)],
    );
    let expected = concat!(
        r#"cdcbb63f 5 {"put":{"key":{"namespace":"shop","name":"web-0","interface":"eth0"},"entry":{"#,
        r#""addresses":["10.1.0.2"],"mac":"0a:58:0a:01:00:02","uid":"5f0c","container":"c1","network":"edge","#,
        r#""assigner":"ours","state":"retained","since":1800000000,"at":100}}}"#,
        "\n",
        r#"2db6d6d2 6 {"remove":{"namespace":"shop","name":"web-1","interface":"eth0"}}"#,
        "\n",
        r#"ac503af5 7 {"boot":{"id":"one","up":31,"at":900}}"#,
        "\n",
    );
    assert_eq!(String::from_utf8(lines.unwrap()).unwrap(), expected);
}

#[test]
fn cut_anywhere_a_file_says_what_was_written_up_to_there() {
    let (bytes, records) = file();
    let state = codec::whole(&of(&records[..3]), 7).unwrap().len();
    for length in 0..bytes.len() {
        let replayed = codec::replay(&bytes[..length]);
        let lines = bytes[..length]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        let is_whole_line = length > 0 && bytes[length - 1] == b'\n';
        if length < state {
            // It never gets its name so.
            assert!(replayed.flaw.is_some(), "{length}");
        } else {
            let flaw = (!is_whole_line).then_some(Flaw::Torn);
            assert_eq!(replayed.flaw, flaw, "{length}");
            let expected = of(&records[..lines - 1]);
            assert_eq!(replayed.ledger.records(), expected.records(), "{length}");
        }
    }
}

#[test]
fn a_damaged_line_costs_its_own_record_and_is_seen() {
    let (bytes, records) = file();
    let ends: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] == b'\n').collect();
    for index in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[index] ^= 0x11;
        let replayed = codec::replay(&damaged);
        let line = ends.partition_point(|&end| end < index);
        // The end alone cannot be told from an append that was not finished.
        let is_end = line == ends.len() - 1 || index == ends[ends.len() - 2];
        let flaw = if is_end { Flaw::Torn } else { Flaw::Damaged };
        assert_eq!(replayed.flaw, Some(flaw), "{index}");
        let mut seen = BTreeSet::new();
        for (key, entry) in replayed.ledger.entries() {
            let is_known = records.iter().any(|record| {
                matches!(record, Record::Put { key: k, entry: e } if k == key && e == entry)
            });
            assert!(is_known, "{index}: {key} {entry:?}");
            assert!(seen.insert(entry.addresses.clone()), "{index}: two owners");
        }
        let lost = of(&records).entries().len() - replayed.ledger.entries().len().min(3);
        assert!(lost <= 2, "{index}: {lost} lost");
    }
}

#[test]
fn what_is_no_ledger_or_of_another_version_is_told_apart() {
    assert_eq!(codec::replay(b"").flaw, Some(Flaw::Torn));
    assert_eq!(codec::replay(&[0; 100]).flaw, Some(Flaw::Torn));
    assert_eq!(codec::replay(b"{}\n{}\n").flaw, Some(Flaw::Foreign));
    let newer = br#"1 {"yurt-net":"ledger","version":2,"records":0}"#;
    let newer = [
        format!("{:08x} ", crc32fast::hash(newer)).as_bytes(),
        newer,
        b"\n",
    ]
    .concat();
    assert_eq!(codec::replay(&newer).flaw, Some(Flaw::Version(2)));
    let disk = Memory::default();
    disk.put("ledger", &newer);
    let error = Store::on(disk, Memory::default()).unwrap_err();
    assert!(
        matches!(error, LedgerError::Version { version: 2, .. }),
        "{error}"
    );
}

fn open(disk: &Memory, run: &Memory) -> Store<Memory> {
    Store::on(disk.clone(), run.clone()).unwrap()
}

#[test]
fn a_full_or_read_only_disk_is_an_alarm_and_nothing_is_lost_before_the_next_boot() {
    for is_full in [true, false] {
        let (disk, run) = (Memory::default(), Memory::default());
        open(&disk, &run)
            .commit(vec![boot("one", 1, 0), put("web-0", "10.1.0.2")])
            .unwrap();
        let set = |is_bad: bool| {
            if is_full {
                disk.set_room(is_bad.then_some(disk.get("ledger").unwrap().len()));
            } else {
                disk.set_read_only(is_bad);
            }
        };
        set(true);
        let mut store = open(&disk, &run);
        store.commit(vec![put("web-1", "10.1.0.3")]).unwrap();
        assert_eq!(store.alarms().len(), 1, "{:?}", store.alarms());
        assert_eq!(open(&disk, &run).ledger().entries().len(), 2);
        // A boot now would know the first alone.
        assert_eq!(open(&disk, &Memory::default()).ledger().entries().len(), 1);
        set(false);
        let mut store = open(&disk, &run);
        store.commit(vec![Record::Remove(key("web-0"))]).unwrap();
        assert_eq!(store.alarms().len(), 0);
        let after_boot = open(&disk.after_power_cut(3), &Memory::default());
        assert_eq!(after_boot.ledger().records(), store.ledger().records());
    }
}

#[test]
fn memory_that_cannot_be_written_is_an_alarm_too_and_both_together_are_an_error() {
    let (disk, run) = (Memory::default(), Memory::default());
    run.set_read_only(true);
    let mut store = open(&disk, &run);
    store.commit(vec![put("web-0", "10.1.0.2")]).unwrap();
    assert_eq!(store.alarms().len(), 1);
    disk.set_read_only(true);
    let error = open(&disk, &run)
        .commit(vec![put("web-1", "10.1.0.3")])
        .unwrap_err();
    assert!(matches!(error, LedgerError::Nowhere { .. }), "{error}");
}

#[test]
fn a_damaged_journal_on_disk_is_mended_from_memory_and_kept_for_people() {
    let (disk, run) = (Memory::default(), Memory::default());
    let mut store = open(&disk, &run);
    store
        .commit(vec![put("web-0", "10.1.0.2"), put("web-1", "10.1.0.3")])
        .unwrap();
    let mut bytes = disk.get("ledger").unwrap();
    bytes[90] ^= 1;
    disk.put("ledger", &bytes);
    let mut store = open(&disk, &run);
    assert_eq!(store.ledger().entries().len(), 2);
    assert!(matches!(store.alarms(), [LedgerError::Damaged { .. }]));
    store.commit(vec![put("web-2", "10.1.0.4")]).unwrap();
    assert_eq!(disk.get("ledger.damaged").unwrap(), bytes);
    let store = open(&disk, &Memory::default());
    assert_eq!(
        (store.alarms().len(), store.ledger().entries().len()),
        (0, 3)
    );
}

#[test]
fn only_what_a_name_gets_again_waits_for_the_medium() {
    let (disk, run) = (Memory::default(), Memory::default());
    let mut store = open(&disk, &run);
    let mut waits = |state: State, address: &str, mac: Option<Mac>| {
        let mut entry = entry(address, "c2");
        (entry.state, entry.mac) = (state, mac);
        let key = key("web-0");
        let written = disk.device_bytes();
        store.commit(vec![Record::Put { key, entry }]).unwrap();
        disk.device_bytes() > written
    };
    let mac = Some(Mac([2; 6]));
    assert!(waits(State::Active, "10.1.0.2", None));
    assert!(!waits(State::Retained, "10.1.0.2", None));
    assert!(!waits(State::Active, "10.1.0.2", None));
    assert!(waits(State::Active, "10.1.0.3", None));
    assert!(waits(State::Active, "10.1.0.3", mac));
    assert!(!waits(State::Released, "10.1.0.3", mac));
    assert!(waits(State::Active, "10.1.0.3", mac));
    assert!(!waits(State::Active, "10.1.0.3", mac));
}

#[test]
fn a_journal_that_has_outgrown_its_state_is_written_anew() {
    let (disk, run) = (Memory::default(), Memory::default());
    let mut longest = 0;
    let mut store = open(&disk, &run);
    for _ in 0..100 {
        store.commit(vec![put("web-0", "10.1.0.2")]).unwrap();
        longest = longest.max(disk.get("ledger").unwrap().len());
    }
    assert!(
        (JOURNAL_BYTES..JOURNAL_BYTES + 500).contains(&longest.try_into().unwrap()),
        "{longest}"
    );
}

#[test]
fn of_a_journal_that_a_crash_has_made_long_the_good_beginning_counts_and_it_is_made_small_again() {
    let directory = tempfile::tempdir().unwrap();
    let dirs = LedgerDirs {
        state_dir: directory.path().join("state"),
        run_dir: directory.path().join("run"),
    };
    let mut store = Store::open(&dirs).unwrap();
    let first = vec![put("web-0", "10.1.0.2"), put("web-1", "10.1.0.3")];
    store.commit(first).unwrap();
    let journals = [dirs.state_dir.join("ledger"), dirs.in_memory()].map(|it| it.join("ledger"));
    for journal in &journals {
        let file = std::fs::OpenOptions::new().write(true).open(journal);
        // More than this machine has memory for.
        file.unwrap().set_len(1 << 40).unwrap();
    }
    let mut store = Store::open(&dirs).unwrap();
    assert_eq!(store.ledger().entries().len(), 2);
    let [
        error @ LedgerError::TooLong { path },
        LedgerError::TooLong { .. },
    ] = store.alarms()
    else {
        panic!("{:?}", store.alarms());
    };
    assert_eq!(path, &journals[0]);
    assert!(
        error.to_string().contains("longer than 16777216 bytes"),
        "{error}"
    );
    store.commit(vec![put("web-2", "10.1.0.4")]).unwrap();
    for journal in &journals {
        assert!(std::fs::metadata(journal).unwrap().len() < JOURNAL_BYTES);
    }
    let store = Store::open(&dirs).unwrap();
    assert_eq!(
        (store.alarms().len(), store.ledger().entries().len()),
        (0, 3)
    );
}

#[test]
fn one_process_at_a_time_writes() {
    let directory = tempfile::TempDir::new().unwrap();
    let dirs = LedgerDirs {
        state_dir: directory.path().join("state"),
        run_dir: directory.path().join("run"),
    };
    let patience = std::time::Duration::from_millis(20);
    let lock = store::Lock::take(&dirs, patience).unwrap();
    let error = store::Lock::take(&dirs, patience).unwrap_err();
    assert!(
        error.to_string().contains("held by another process"),
        "{error}"
    );
    drop(lock);
    store::Lock::take(&dirs, patience).unwrap();
    // Another ledger is another matter.
    let other = LedgerDirs {
        state_dir: directory.path().join("other"),
        ..dirs.clone()
    };
    let _lock = store::Lock::take(&dirs, patience).unwrap();
    store::Lock::take(&other, patience).unwrap();
}

#[test]
fn a_pipe_in_the_locks_place_is_refused_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let dirs = LedgerDirs {
        state_dir: directory.path().join("state"),
        run_dir: directory.path().join("run"),
    };
    let lock = dirs.in_memory().join("lock");
    std::fs::create_dir_all(dirs.in_memory()).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&lock).status();
    assert!(made.unwrap().success());
    let error = store::Lock::take(&dirs, std::time::Duration::ZERO).map(drop);
    assert!(matches!(error, Err(LedgerError::Io(_))), "{error:?}");
}

#[test]
fn a_ledger_directory_that_is_a_link_to_another_disk_can_be_locked_and_written() {
    let directory = tempfile::tempdir().unwrap();
    let dirs = LedgerDirs {
        state_dir: directory.path().join("state"),
        run_dir: directory.path().join("run"),
    };
    let elsewhere = directory.path().join("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::fs::create_dir_all(&dirs.state_dir).unwrap();
    let on_disk = dirs.state_dir.join("ledger");
    std::os::unix::fs::symlink(&elsewhere, &on_disk).unwrap();
    let patience = std::time::Duration::from_millis(20);
    let lock = store::Lock::take(&dirs, patience).unwrap();
    let mut store = Store::open(&dirs).unwrap();
    let put = Record::Put {
        key: key("web"),
        entry: entry("10.1.0.2", "c1"),
    };
    store.commit(vec![put]).unwrap();
    lock.check().unwrap();
    assert!(store::Lock::take(&dirs, patience).is_err(), "it is a lock");
    // It leads somewhere else by now: the other half still holds.
    std::fs::remove_file(&on_disk).unwrap();
    lock.check().unwrap();
    std::fs::remove_dir_all(&dirs.run_dir).unwrap();
    lock.check().unwrap_err();
    assert!(elsewhere.read_dir().unwrap().next().is_some());
}

/// Each change depends on all before it: a lock that is not one shows as two that made the same.
fn race(
    dirs: &LedgerDirs,
    workers: usize,
    turns: usize,
    away: impl Fn() + Sync,
) -> BTreeSet<usize> {
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let taken = std::sync::Mutex::new(Vec::new());
    let change = |name: &str| -> Result<usize, LedgerError> {
        let lock = store::Lock::take(dirs, std::time::Duration::from_secs(600))?;
        let mut store = Store::open(dirs)?;
        let next = store.ledger().entries().len();
        store.commit(vec![put(name, &format!("10.1.0.{}", next + 2))])?;
        lock.check()?;
        Ok(next)
    };
    std::thread::scope(|scope| {
        let vandal = scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                away();
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        let work = |worker: usize| {
            for turn in 0..turns {
                // Whoever is told to try again does, with what its failed try may have left.
                while let Err(error) = change(&format!("w{worker}-{turn}")).map(|next| {
                    taken.lock().unwrap().push(next);
                }) {
                    let is_passing =
                        matches!(error, LedgerError::LockLost { .. } | LedgerError::Io(_));
                    assert!(is_passing, "{error}");
                }
            }
        };
        let workers: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        vandal.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
    });
    let taken = taken.into_inner().unwrap();
    let different: BTreeSet<usize> = taken.iter().copied().collect();
    assert_eq!(different.len(), taken.len(), "{taken:?}");
    different
}

#[test]
fn one_process_at_a_time_writes_while_somebody_removes_the_directory_in_memory() {
    let directory = tempfile::TempDir::new().unwrap();
    let dirs = LedgerDirs {
        state_dir: directory.path().join("state"),
        run_dir: directory.path().join("run"),
    };
    // A node that has had a Pod.
    let mut store = Store::open(&dirs).unwrap();
    store.commit(vec![put("first", "10.1.0.1")]).unwrap();
    let done = race(&dirs, 4, 25, || {
        let _ = std::fs::remove_dir_all(&dirs.run_dir);
    });
    assert_eq!(done.len(), 100);
}

#[test]
fn whoever_loses_both_locks_is_told_and_nobody_acts_on_what_it_wrote() {
    let directory = tempfile::TempDir::new().unwrap();
    let dirs = LedgerDirs {
        state_dir: directory.path().join("state"),
        run_dir: directory.path().join("run"),
    };
    let patience = std::time::Duration::from_millis(20);
    let mut store = Store::open(&dirs).unwrap();
    store.commit(vec![put("first", "10.1.0.1")]).unwrap();
    let lock = store::Lock::take(&dirs, patience).unwrap();
    std::fs::remove_dir_all(&dirs.run_dir).unwrap();
    lock.check().unwrap();
    assert!(
        store::Lock::take(&dirs, patience).is_err(),
        "the other holds"
    );
    std::fs::remove_dir_all(&dirs.state_dir).unwrap();
    assert!(matches!(lock.check(), Err(LedgerError::LockLost { .. })));
    store::Lock::take(&dirs, patience).unwrap();
}

#[test]
fn a_state_directory_has_one_lock_however_it_is_spelled_and_never_anothers() {
    let directory = tempfile::TempDir::new().unwrap();
    let patience = std::time::Duration::ZERO;
    let lock = |state_dir: &str| {
        let dirs = LedgerDirs {
            state_dir: state_dir.into(),
            run_dir: directory.path().join("run"),
        };
        store::Lock::take(&dirs, patience)
    };
    let _lock = lock("/var/lib/yurt-net").unwrap();
    for same in [
        "/var/lib//yurt-net",
        "/var/./lib/yurt-net/",
        "//var/lib/yurt-net/.",
    ] {
        assert!(lock(same).is_err(), "{same}");
    }
    let others = [
        "/var/lib-yurt/net",
        "/var-lib/yurt-net",
        "/var/lib/yurt/net",
        "/var/lib/yurt%2dnet",
        "/var/lib/yurt--net",
        "/var/lib/yurt-/net",
        "/var/lib/yurt/-net",
        "/var/lib/..",
        "/..",
        "/%2e%2e",
    ];
    let held = others.map(|other| lock(other).unwrap_or_else(|error| panic!("{other}: {error}")));
    assert_eq!(
        held.len(),
        std::fs::read_dir(directory.path().join("run"))
            .unwrap()
            .count()
            - 1
    );
}
