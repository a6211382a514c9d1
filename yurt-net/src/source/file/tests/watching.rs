//! What `changed` sees, on a real file system.

use super::*;

#[tokio::test]
async fn the_swap_of_a_config_map_is_seen_as_a_whole() {
    let mut lab = Lab::new(&[]);
    let version = |port: u16| {
        [
            ("a.yaml", service("a", port)),
            ("b.yaml", service("b", port)),
        ]
    };
    mount_version(&lab, "2024_1", &version(1));
    let snapshot = lab.load();
    assert_eq!(services(&snapshot), [("a", 1), ("b", 1)]);
    assert_eq!(
        rejections(&snapshot),
        NO_REJECTIONS,
        "read through the visible links only"
    );
    lab.stays_quiet(Duration::from_millis(300)).await;
    for port in 2..5 {
        mount_version(&lab, &format!("2024_{port}"), &version(port));
        fs::remove_dir_all(lab.path(&format!("..2024_{}", port - 1))).unwrap();
        lab.changes().await;
        let snapshot = lab.load();
        assert_eq!(services(&snapshot), [("a", port), ("b", port)]);
        assert_eq!(rejections(&snapshot), NO_REJECTIONS);
    }
}

#[tokio::test]
async fn a_wait_that_is_cancelled_again_and_again_still_sees_a_change() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.load();
    lab.stays_quiet(Duration::from_millis(150)).await;
    lab.never_polls();
    lab.rename("a.yaml", &service("a", 2));
    let is_seen = async {
        while timeout(Duration::from_millis(10), lab.source.changed())
            .await
            .is_err()
        {}
    };
    let within = timeout(PATIENCE, is_seen).await;
    assert!(within.is_ok(), "every cancelled wait began anew");
}

/// What happened, and how.
type Change = (&'static str, fn(&Lab));

#[tokio::test]
async fn every_way_to_change_a_tree_is_seen() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.load();
    lab.never_polls();
    let changes: [Change; 8] = [
        ("rename over", |lab| lab.rename("a.yaml", &service("a", 2))),
        ("write in place", |lab| {
            lab.write("a.yaml", &service("a", 3))
        }),
        ("new file", |lab| lab.write("b.yaml", &service("b", 1))),
        ("new directory", |lab| {
            lab.write("sub/dir/c.yaml", &service("c", 1))
        }),
        ("file in the new directory", |lab| {
            lab.write("sub/dir/d.yaml", &service("d", 1))
        }),
        ("link", |lab| symlink("b.yaml", lab.path("z.yaml")).unwrap()),
        ("delete", |lab| lab.remove("b.yaml")),
        ("move away", |lab| {
            fs::rename(lab.path("sub"), lab.directory.path().join("sub")).unwrap()
        }),
    ];
    for (what, change) in changes {
        let before = lab.load();
        lab.stays_quiet(Duration::from_millis(150)).await;
        change(&lab);
        lab.changes().await;
        assert_ne!(lab.load(), before, "{what}");
    }
}

#[tokio::test]
async fn a_file_outside_that_a_link_leads_to_is_followed() {
    let mut lab = Lab::new(&[]);
    let outside = lab.directory.path().join("outside.yaml");
    fs::write(&outside, service("a", 1)).unwrap();
    symlink(&outside, lab.path("a.yaml")).unwrap();
    lab.load();
    lab.stays_quiet(Duration::from_millis(150)).await;
    fs::write(&outside, service("a", 2)).unwrap();
    lab.changes().await;
    assert_eq!(services(&lab.load()), [("a", 2)]);
}

#[tokio::test]
async fn a_writer_is_waited_for() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.load();
    lab.stays_quiet(Duration::from_millis(150)).await;
    let mut file = File::create(lab.path("a.yaml")).unwrap();
    file.write_all(b"# half a").unwrap();
    lab.stays_quiet(Duration::from_millis(500)).await;
    // A change of another file does not make the half one good.
    lab.rename("b.yaml", &service("b", 1));
    lab.stays_quiet(Duration::from_millis(500)).await;
    file.write_all(format!("\n{}", service("a", 2)).as_bytes())
        .unwrap();
    drop(file);
    lab.changes().await;
    assert_eq!(services(&lab.load()), [("a", 2), ("b", 1)]);
}

#[tokio::test]
async fn a_source_that_is_deleted_and_made_anew_is_followed_again() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.load();
    lab.stays_quiet(Duration::from_millis(150)).await;
    fs::remove_dir_all(lab.path("")).unwrap();
    lab.changes().await;
    assert!(lab.source.load().is_err());
    lab.stays_quiet(Duration::from_millis(150)).await;
    lab.write("a.yaml", &service("a", 2));
    lab.changes().await;
    assert_eq!(services(&lab.load()), [("a", 2)]);
    lab.stays_quiet(Duration::from_millis(150)).await;
    lab.write("a.yaml", &service("a", 3));
    lab.changes().await;
    assert_eq!(services(&lab.load()), [("a", 3)]);
}

#[tokio::test]
async fn a_change_outlives_the_cancelling_of_its_wait() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.load();
    lab.stays_quiet(Duration::from_millis(150)).await;
    lab.rename("a.yaml", &service("a", 2));
    // Not as long as settling takes, as a rule; on a busy machine one of them may see the change.
    for _ in 0..5 {
        let _cancelled = timeout(Duration::from_millis(10), lab.source.changed()).await;
    }
    lab.never_polls();
    lab.changes().await;
    lab.changes().await;
}

#[tokio::test]
async fn without_inotify_polling_sees_the_change() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.load();
    lab.source.watch = Watching::Impossible;
    lab.rename("a.yaml", &service("a", 2));
    lab.changes().await;
    assert_eq!(services(&lab.load()), [("a", 2)]);
}

#[tokio::test]
async fn nothing_is_reported_twice_once_it_is_loaded() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.changes().await;
    lab.load();
    // A file written a moment ago is read once more; here its time has passed.
    assert!(lab.source.is_unsettled);
    lab.source.is_unsettled = false;
    lab.stays_quiet(POLL_EVERY + Duration::from_millis(300))
        .await;
}
