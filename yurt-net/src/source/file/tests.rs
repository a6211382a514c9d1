use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::model::{NamespacedName, Rejection, Service};
use crate::source::decode::Object;
use crate::table::MAX_ENDPOINTS;
use std::sync::Arc;

mod restarting;
mod watching;

/// Only what hangs takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A source on a directory of its own.
struct Lab {
    directory: TempDir,
    source: FileSource,
}

impl Lab {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        let source = FileSource::new(directory.path().join("src"));
        let lab = Self { directory, source };
        fs::create_dir(lab.path("")).unwrap();
        for (name, text) in files {
            lab.write(name, text);
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("src").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Atomically, as the manual says.
    fn rename(&self, name: &str, text: &str) {
        let staged = self.directory.path().join("staged");
        fs::write(&staged, text).unwrap();
        fs::rename(staged, self.path(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn load(&mut self) -> Snapshot {
        self.source.load().unwrap()
    }

    async fn changes(&mut self) {
        timeout(PATIENCE, self.source.changed())
            .await
            .expect("no change was seen");
    }

    /// From now on what is seen is seen by events.
    fn never_polls(&mut self) {
        self.source.next_poll = Some(Instant::now() + Duration::from_secs(86_400));
    }

    async fn stays_quiet(&mut self, during: Duration) {
        timeout(during, self.source.changed())
            .await
            .expect_err("a change was seen");
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

fn get<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<Service> {
    &snapshot.services[&NamespacedName::new("default", name)]
}

/// Names and ports.
fn services(snapshot: &Snapshot) -> Vec<(&str, u16)> {
    snapshot
        .services
        .values()
        .map(|service| (&*service.name.name, service.ports[0].port))
        .collect()
}

/// `name source: reason`.
fn rejections(snapshot: &Snapshot) -> Vec<String> {
    let line = |r: &Rejection| format!("{} {}: {}", r.name, r.source, r.reason);
    snapshot.rejections.iter().map(line).collect()
}

const NO_REJECTIONS: [&str; 0] = [];

#[test]
fn manifests_are_read_recursively_and_nothing_else_is() {
    let mut lab = Lab::new(&[
        ("a.yaml", &service("a", 1)),
        ("b.yml", &service("b", 2)),
        (
            "deep/er/c.json",
            r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c"}}"#,
        ),
        (".hidden.yaml", &service("x", 9)),
        (".git/d.yaml", &service("x", 9)),
        ("e.yaml.bak", &service("x", 9)),
        ("yaml", &service("x", 9)),
        ("deep/bad.yaml", "kind: Service\n---\nx: [\n"),
    ]);
    symlink(lab.path(""), lab.path("deep/loop")).unwrap();
    let snapshot = lab.load();
    assert_eq!(services(&snapshot), [("a", 1), ("b", 2)]);
    assert!(snapshot.nodes.keys().map(|name| &**name).eq(["c"]));
    let sources: Vec<_> = snapshot
        .rejections
        .iter()
        .map(|r| r.source.as_str())
        .collect();
    assert_eq!(sources, ["deep/bad.yaml#2", "deep/bad.yaml#1"]);
}

#[test]
fn an_empty_directory_is_a_valid_source_and_an_absent_one_is_none() {
    let mut lab = Lab::new(&[]);
    assert_eq!(lab.load(), Snapshot::default());
    fs::remove_dir(lab.path("")).unwrap();
    assert!(matches!(
        lab.source.load(),
        Err(SourceError::Examine { .. })
    ));
}

#[test]
fn an_absent_source_changes_nothing_and_is_forgotten_by_nobody() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.load();
    let away = lab.directory.path().join("away");
    fs::rename(lab.path(""), &away).unwrap();
    assert!(lab.source.load().is_err());
    fs::rename(&away, lab.path("")).unwrap();
    lab.write("a.yaml", "x: [");
    assert_eq!(services(&lab.load()), [("a", 1)]);
}

#[test]
fn a_single_file_is_a_source_by_any_name() {
    let mut lab = Lab::new(&[
        ("manifest", &service("a", 1)),
        ("other.yaml", &service("b", 1)),
    ]);
    lab.source = FileSource::new(lab.path("manifest"));
    assert_eq!(services(&lab.load()), [("a", 1)]);
    lab.rename("manifest", "x: [");
    let snapshot = lab.load();
    assert_eq!(services(&snapshot), [("a", 1)]);
    assert_eq!(snapshot.rejections[0].source, "manifest#1");
    lab.remove("manifest");
    assert!(lab.source.load().is_err());
}

#[test]
fn what_says_the_same_as_before_stays_the_same_object() {
    let mut lab = Lab::new(&[
        ("a.yaml", &service("a", 1)),
        (
            "b.yaml",
            &format!("{}---\n{}", service("b", 1), service("c", 1)),
        ),
    ]);
    let first = lab.load();
    lab.write(
        "b.yaml",
        &format!("# moved\n{}---\n{}", service("c", 1), service("b", 2)),
    );
    lab.remove("a.yaml");
    lab.write("z.yaml", &service("a", 1));
    let second = lab.load();
    assert_eq!(services(&second), [("a", 1), ("b", 2), ("c", 1)]);
    assert!(Arc::ptr_eq(get(&first, "a"), get(&second, "a")));
    assert!(Arc::ptr_eq(get(&first, "c"), get(&second, "c")));
    assert!(!Arc::ptr_eq(get(&first, "b"), get(&second, "b")));
}

#[test]
fn unchanged_files_are_not_read_again() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    let hour_ago = File::open(lab.path("a.yaml"))
        .unwrap()
        .metadata()
        .unwrap()
        .modified()
        .unwrap()
        - Duration::from_secs(3600);
    File::options()
        .write(true)
        .open(lab.path("a.yaml"))
        .unwrap()
        .set_modified(hour_ago)
        .unwrap();
    lab.load();
    let name = OsString::from("a.yaml");
    // Just written: another write could look the same, so this one load does not count.
    assert!(lab.source.files[&name].is_provisional);
    lab.source.files.get_mut(&name).unwrap().is_provisional = false;
    lab.source.files.get_mut(&name).unwrap().objects.clear();
    assert_eq!(services(&lab.load()), [], "the cached decoding was used");
    lab.write("a.yaml", &service("a", 2));
    assert_eq!(services(&lab.load()), [("a", 2)]);
}

#[test]
fn a_file_that_says_the_same_bytes_is_not_decoded_again() {
    let mut lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    lab.load();
    let name = OsString::from("a.yaml");
    lab.source.files.get_mut(&name).unwrap().objects.clear();
    // It was just written, so it is looked at again whatever its stamp says.
    assert_eq!(services(&lab.load()), [], "the first decoding was used");
    lab.rename("a.yaml", &service("a", 1));
    assert_eq!(services(&lab.load()), [], "the first decoding was used");
    // Of the same length.
    lab.rename("a.yaml", &service("a", 2));
    assert_eq!(services(&lab.load()), [("a", 2)]);
}

#[test]
fn the_first_of_two_equal_objects_in_bytewise_path_order_wins() {
    // '-' and '.' sort before '/': the order is that of the bytes of the whole path.
    let mut lab = Lab::new(&[
        ("a/1.yaml", &service("a", 3)),
        ("a.yaml", &service("a", 2)),
        (
            "a-1.yaml",
            &format!("{}---\n{}", service("a", 1), service("a", 4)),
        ),
    ]);
    let snapshot = lab.load();
    assert_eq!(services(&snapshot), [("a", 1)]);
    let reason =
        "the same object is in a-1.yaml#1, which comes first and is used: remove one of them";
    assert_eq!(
        rejections(&snapshot),
        [
            format!("a a-1.yaml#2: {reason}"),
            format!("a a.yaml#1: {reason}"),
            format!("a a/1.yaml#1: {reason}")
        ]
    );
    lab.remove("a-1.yaml");
    assert_eq!(services(&lab.load()), [("a", 2)]);
}

#[test]
fn on_a_cold_start_what_is_broken_is_left_out() {
    let mut lab = Lab::new(&[(
        "a.yaml",
        &format!(
            "x: [\n---\n{}---\n{}",
            service("a", 1),
            service("b", 1).replace("port: 1", "port: 0")
        ),
    )]);
    let snapshot = lab.load();
    assert_eq!(services(&snapshot), [("a", 1)]);
    assert_eq!(snapshot.rejections.len(), 2);
    assert!(
        rejections(&snapshot)
            .iter()
            .all(|line| !line.contains("kept")),
        "{:?}",
        snapshot.rejections
    );
}

#[test]
fn an_object_that_becomes_invalid_keeps_its_last_good_version_until_it_is_repaired_or_removed() {
    let both = |b: &str| format!("{}---\n{b}", service("a", 1));
    let mut lab = Lab::new(&[("web.yaml", &both(&service("b", 1)))]);
    let good = lab.load();
    let bad = service("b", 1).replace("port: 1", "port: 70000");
    lab.write("web.yaml", &both(&bad));
    for _ in 0..3 {
        let snapshot = lab.load();
        assert!(Arc::ptr_eq(get(&good, "b"), get(&snapshot, "b")));
        assert_eq!(
            rejections(&snapshot),
            [
                "b web.yaml#2: spec.ports[0].port: expected a port up to 65535, found 70000; the last good version is kept"
            ]
        );
    }
    // Moved to another file, still invalid.
    lab.write("web.yaml", &service("a", 1));
    lab.write("moved.yaml", &bad);
    assert_eq!(services(&lab.load()), [("a", 1), ("b", 1)]);
    assert_eq!(services(&lab.load()), [("a", 1), ("b", 1)]);
    lab.write("moved.yaml", &service("b", 2));
    let repaired = lab.load();
    assert_eq!(services(&repaired), [("a", 1), ("b", 2)]);
    assert_eq!(rejections(&repaired), NO_REJECTIONS);
    lab.write("moved.yaml", &bad);
    lab.load();
    lab.remove("moved.yaml");
    assert_eq!(services(&lab.load()), [("a", 1)]);
}

#[test]
fn a_broken_document_keeps_what_was_in_its_file_and_is_not_found_elsewhere() {
    let mut lab = Lab::new(&[
        (
            "one.yaml",
            &format!(
                "{}---\n{}---\n{}",
                service("a", 1),
                service("b", 1),
                service("c", 1)
            ),
        ),
        ("two.yaml", &service("d", 1)),
    ]);
    lab.load();
    // `a` changes, `b` breaks, `c` moves and changes; the other file is read well, so `d` is gone.
    lab.write(
        "one.yaml",
        &format!(
            "{}---\n{}",
            service("a", 2),
            "kind: Service\nmetadata: {name: [}\n"
        ),
    );
    lab.write("two.yaml", &service("c", 2));
    for _ in 0..2 {
        let snapshot = lab.load();
        assert_eq!(services(&snapshot), [("a", 2), ("b", 1), ("c", 2)]);
        let [rejection] = snapshot.rejections.as_slice() else {
            panic!("{snapshot:?}")
        };
        assert_eq!(rejection.source, "one.yaml#2");
        assert!(
            rejection
                .reason
                .ends_with("; the last good version is kept of Service default/b"),
            "{rejection:?}"
        );
    }
    lab.write("one.yaml", &service("a", 2));
    assert_eq!(services(&lab.load()), [("a", 2), ("c", 2)]);
}

#[test]
fn an_unreadable_file_or_directory_keeps_all_its_objects() {
    let mut lab = Lab::new(&[
        ("utf8.yaml", &service("a", 1)),
        ("pipe.yaml", &service("b", 1)),
        ("link.yaml", &service("c", 1)),
        ("gone.yaml", &service("d", 1)),
    ]);
    let outside = lab.directory.path().join("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("sub/e.yaml"), service("e", 1)).unwrap();
    symlink(&outside, lab.path("team")).unwrap();
    assert_eq!(lab.load().services.len(), 5);

    fs::write(lab.path("utf8.yaml"), b"a: \xff").unwrap();
    for file in ["pipe.yaml", "link.yaml", "gone.yaml"] {
        lab.remove(file);
    }
    fs::create_dir(lab.path("link")).unwrap();
    symlink("nowhere", lab.path("link.yaml")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(lab.path("pipe.yaml")).unwrap();
    fs::remove_dir_all(&outside).unwrap();
    for _ in 0..2 {
        let snapshot = lab.load();
        assert_eq!(
            services(&snapshot),
            [("a", 1), ("b", 1), ("c", 1), ("e", 1)]
        );
        let lines = rejections(&snapshot);
        let starts = [
            " link.yaml: link leads nowhere: ",
            " pipe.yaml: is not a regular file",
            " team: link leads nowhere: ",
            " utf8.yaml#1: cannot be read: it holds bytes that are not UTF-8: save the file as UTF-8",
        ];
        assert_eq!(lines.len(), starts.len(), "{lines:?}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}");
            assert!(
                line.contains("; the last good version is kept of Service default/"),
                "{line}"
            );
        }
    }
    drop(socket);
    lab.remove("team");
    lab.remove("link.yaml");
    assert_eq!(services(&lab.load()), [("a", 1), ("b", 1)]);
}

#[test]
fn a_pipe_is_no_source_and_the_remedy_is_named() {
    let directory = TempDir::new().unwrap();
    let pipe = directory.path().join("pipe.yaml");
    let (reader, _writer) = io::pipe().unwrap();
    let anonymous = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let socket = std::os::unix::net::UnixListener::bind(&pipe).unwrap();
    // Nobody waits for what a pipe may bring.
    for path in [
        pipe.as_path(),
        Path::new(&anonymous),
        Path::new("/dev/null"),
    ] {
        let error = FileSource::new(path).load().unwrap_err().to_string();
        assert!(
            error.contains("neither a file nor a directory")
                && error.contains("write it to a file"),
            "{error}"
        );
    }
    drop(socket);
}

#[test]
fn many_kept_objects_are_counted_rather_than_listed() {
    let all: Vec<String> = (0..5)
        .map(|index| service(&format!("s{index}"), 1))
        .collect();
    let mut lab = Lab::new(&[("a.yaml", &all.join("---\n"))]);
    lab.load();
    lab.write("a.yaml", "]");
    let snapshot = lab.load();
    let reason = &snapshot.rejections[0].reason;
    let end = "kept of Service default/s0, Service default/s1, Service default/s2 and 2 more";
    assert!(reason.ends_with(end), "{reason}");
}

/// Each rejection asked all that is kept, and each of that all rejections: 5,000 took most of a minute, and nothing
/// else was read meanwhile.
#[test]
fn what_is_kept_of_a_file_that_lost_its_words_is_told_of_each_of_them() {
    let list = |items: &str| format!("apiVersion: v1\nkind: List\nitems:\n{items}");
    let item = |n: usize, port: &str| {
        format!(
            "- {{apiVersion: v1, kind: Service, metadata: {{name: s{n}}}, spec: {{ports: [{{port: {port}}}]}}}}\n"
        )
    };
    let all = |port: &str| (0..5000).map(|n| item(n, port)).collect::<String>();
    let mut lab = Lab::new(&[("a.yaml", &list(&all("80")))]);
    lab.load();
    let bad = (0..3000).map(|n| item(n, "x")).collect::<String>();
    lab.write("a.yaml", &list(&(bad + &"- 7\n".repeat(5000))));
    let snapshot = lab.load();
    assert_eq!(snapshot.services.len(), 5000);
    let reasons = snapshot.rejections.iter().map(|told| &*told.reason);
    let ends = |end: &str| {
        reasons
            .clone()
            .filter(|reason| reason.ends_with(end))
            .count()
    };
    assert_eq!(ends("; the last good version is kept"), 3000);
    let rest =
        "kept of Service default/s3000, Service default/s3001, Service default/s3002 and 1997 more";
    assert_eq!(ends(rest), 5000);
}

#[test]
fn a_service_of_a_million_endpoints_is_kept_up_to_its_limit_in_every_file() {
    let text = |n: usize| {
        let endpoints: Vec<_> = (0..2000)
            .map(|e| format!("{{addresses: [10.{n}.{}.{}]}}", e / 250, e % 250))
            .collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: crowd-{n:02}, labels: {{kubernetes.io/service-name: crowd}}}}\nendpoints: [{}]",
            endpoints.join(", ")
        )
    };
    let mut lab = Lab::new(&[]);
    for n in 0..40 {
        lab.write(&format!("{n:02}.yaml"), &text(n));
    }
    for _ in 0..2 {
        let snapshot = lab.load();
        let slices = snapshot.slices.values();
        let kept: usize = slices.map(|slice| slice.endpoints.len()).sum();
        assert_eq!(kept, MAX_ENDPOINTS);
        assert_eq!(rejections(&snapshot).len(), 40 - 32);
        let files = lab.source.files.values();
        let objects = files.flat_map(|file| &file.objects);
        let held: usize = objects
            .map(|located| match &located.object {
                Object::EndpointSlice(slice) => slice.endpoints.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(held, MAX_ENDPOINTS, "what the source itself remembers");
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_taken() {
    let lab = Lab::new(&[("a.yaml", &service("a", 1))]);
    let path = lab.path("a.yaml");
    let stamp = Stamp::from(&fs::metadata(&path).unwrap());
    assert!(matches!(read_file(&path, stamp), Reading::Bytes(_)));
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"more: x\n")
        .unwrap();
    assert!(matches!(read_file(&path, stamp), Reading::Changed));
    lab.rename("a.yaml", &service("a", 2));
    assert!(matches!(read_file(&path, stamp), Reading::Changed));
    lab.remove("a.yaml");
    assert!(matches!(read_file(&path, stamp), Reading::Changed));
}

/// The layout of a mounted ConfigMap: visible links into `..data`, a link to a directory of one version.
fn mount_version(lab: &Lab, version: &str, files: &[(&str, String)]) {
    let directory = format!("..{version}");
    for (name, text) in files {
        lab.write(&format!("{directory}/{name}"), text);
    }
    symlink(&directory, lab.path("..data_tmp")).unwrap();
    fs::rename(lab.path("..data_tmp"), lab.path("..data")).unwrap();
    for (name, _) in files {
        let _present = symlink(format!("..data/{name}"), lab.path(name));
    }
}

#[test]
fn swaps_during_loads_never_show_a_mixture() {
    let mut lab = Lab::new(&[]);
    let version = |port: u16| {
        [
            ("a.yaml", service("a", port)),
            ("b.yaml", service("b", port)),
        ]
    };
    mount_version(&lab, "2024_1", &version(1));
    mount_version(&lab, "2024_2", &version(2));
    let (root, stop) = (
        lab.path(""),
        Arc::new(std::sync::atomic::AtomicBool::new(false)),
    );
    let stopped = Arc::clone(&stop);
    let swapper = thread::spawn(move || {
        for version in (1..=2).cycle() {
            if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            symlink(format!("..2024_{version}"), root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
    });
    for _ in 0..50 {
        let snapshot = lab.load();
        let ports = services(&snapshot);
        assert_eq!(ports.len(), 2);
        assert_eq!(ports[0].1, ports[1].1, "{snapshot:?}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
}

proptest! {
    #![proptest_config(crate::cases::cases(48))]

    #[test]
    fn how_objects_are_spread_over_files_and_documents_does_not_matter(
        places in prop::collection::vec((0..4usize, any::<bool>()), 1..12),
    ) {
        let objects: Vec<String> = (0..places.len())
            .map(|index| {
                format!(r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "n{index}"}}}}"#)
            })
            .collect();
        let mut whole = Lab::new(&[("all.json", &objects.join("\n"))]);
        let mut files = [(); 4].map(|()| (String::new(), Vec::new()));
        for (object, (file, is_item)) in objects.iter().zip(&places) {
            let (documents, items) = &mut files[*file];
            if *is_item {
                items.push(object.as_str());
            } else {
                *documents += &format!("---\n{object}\n");
            }
        }
        let mut spread = Lab::new(&[]);
        for (index, (documents, items)) in files.iter().enumerate() {
            let list = format!("---\nitems: [{}]\nkind: List\n", items.join(", "));
            spread.write(&format!("{index}.yaml"), &format!("{documents}{list}"));
        }
        let without_manifests = |snapshot| Snapshot { manifests: BTreeMap::new(), ..snapshot };
        prop_assert_eq!(without_manifests(whole.load()), without_manifests(spread.load()));
    }
}
