//! What a source that starts anew knows of what it said before.

use super::*;

impl Lab {
    /// The same source in another process, which has nothing but the checkpoint of this one.
    fn restart(&mut self, last: &Snapshot) {
        self.source = FileSource::new(self.path(""));
        self.source.remember(last);
    }

    fn stale(&self) -> Vec<String> {
        self.source.stale().collect()
    }
}

fn two_files() -> Lab {
    let web = format!("{}---\n{}", service("a", 1), service("b", 2));
    Lab::new(&[("web.yaml", &web), ("deep/other.yaml", &service("c", 3))])
}

/// Every way in which `web.yaml`, or a part of it, can become unreadable.
fn break_web(lab: &Lab, way: usize) {
    lab.remove("web.yaml");
    match way {
        0 => lab.write("web.yaml", "x: ["),
        1 => lab.write("web.yaml", &format!("{}---\nx: [", service("a", 1))),
        2 => lab.write(
            "web.yaml",
            &format!(
                "{}---\n{}",
                service("a", 1),
                service("b", 2).replace('2', "two")
            ),
        ),
        3 => symlink("/nowhere", lab.path("web.yaml")).unwrap(),
        _ => {
            let status = std::process::Command::new("mkfifo")
                .arg(lab.path("web.yaml"))
                .status();
            assert!(status.unwrap().success());
        }
    }
}

#[test]
fn what_cannot_be_read_after_a_restart_says_what_it_said_before() {
    for way in 0..5 {
        let mut lab = two_files();
        let mut last = lab.load();
        assert_eq!(lab.stale(), NO_REJECTIONS);
        break_web(&lab, way);
        // Also when it is restarted more than once meanwhile.
        for _ in 0..3 {
            lab.restart(&last);
            last = lab.load();
            assert_eq!(services(&last), [("a", 1), ("b", 2), ("c", 3)], "way {way}");
            assert!(!last.rejections.is_empty());
            let stale = lab.stale();
            assert!(
                stale.len() == 1 && stale[0].starts_with("web.yaml: "),
                "{stale:?}"
            );
        }
        lab.rename("web.yaml", &service("b", 4));
        assert_eq!(services(&lab.load()), [("b", 4), ("c", 3)], "way {way}");
        assert_eq!(lab.stale(), NO_REJECTIONS);
    }
}

#[test]
fn what_is_absent_after_a_restart_is_gone_even_where_another_file_cannot_be_read() {
    let mut lab = two_files();
    let last = lab.load();
    lab.write("web.yaml", "x: [");
    lab.remove("deep/other.yaml");
    lab.restart(&last);
    let last = lab.load();
    assert_eq!(services(&last), [("a", 1), ("b", 2)]);
    lab.remove("web.yaml");
    lab.restart(&last);
    assert_eq!(services(&lab.load()), []);
    assert_eq!(lab.stale(), NO_REJECTIONS);
}

#[test]
fn a_directory_that_cannot_be_listed_after_a_restart_keeps_what_is_below_it() {
    let mut lab = two_files();
    let last = lab.load();
    fs::remove_dir_all(lab.path("deep")).unwrap();
    symlink("/nowhere", lab.path("deep")).unwrap();
    lab.restart(&last);
    assert_eq!(services(&lab.load()), [("a", 1), ("b", 2), ("c", 3)]);
    assert!(lab.stale()[0].starts_with("deep: "), "{:?}", lab.stale());
}

#[test]
fn an_absent_source_remembers_across_its_errors() {
    let mut lab = two_files();
    let last = lab.load();
    let away = lab.directory.path().join("away");
    fs::rename(lab.path(""), &away).unwrap();
    lab.restart(&last);
    assert!(lab.source.load().is_err());
    fs::rename(&away, lab.path("")).unwrap();
    lab.write("web.yaml", "x: [");
    assert_eq!(services(&lab.load()), [("a", 1), ("b", 2), ("c", 3)]);
}
