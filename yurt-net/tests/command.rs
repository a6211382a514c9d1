//! The program as a shell sees it: what it does where nobody reads, and where nothing can be written.
#![expect(clippy::unwrap_used, reason = "a test that cannot begin fails")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::thread;

use clap::CommandFactory as _;
use serde_json::json;
use yurt_net::config::Cli;
use yurt_net::explain::verdict::{Explanation, FlowVerdict};
use yurt_net::observe::status::Status;
use yurt_net::source::preferred::{FollowedSource, SourceStatus};

const PROGRAM: &str = env!("CARGO_BIN_EXE_yurt-net");
/// Enough that a pipe that nobody reads is full before all of it is written.
const SERVICES: usize = 2000;

/// A node that has a little of everything, and an agent that answers.
struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = Self { directory };
        let mut manifests = String::new();
        for index in 0..SERVICES {
            let (high, low) = (index / 250, index % 250 + 1);
            manifests += &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web-{index}}}\n\
                 spec: {{clusterIP: 10.96.{high}.{low}, ports: [{{port: 80}}]}}\n"
            );
        }
        fs::write(node.path("manifests.yaml"), manifests).unwrap();
        fs::create_dir(node.path("net.d")).unwrap();
        let conflist = json!({"cniVersion": "1.0.0", "name": "edge", "plugins": [
            {"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}},
        ]});
        fs::write(node.path("net.d/10-edge.conflist"), conflist.to_string()).unwrap();
        let listener = UnixListener::bind(node.path("agent.sock")).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut request = String::new();
                let _none = BufReader::new(&stream).read_line(&mut request);
                let answer = if request.contains("status") {
                    json!(Status {
                        ready: true,
                        ..Status::default()
                    })
                } else {
                    json!(Explanation {
                        verdict: FlowVerdict::Pass,
                        endpoints: Vec::new(),
                        masquerade: false,
                        service: String::new(),
                        reason: "no Service has it".to_owned(),
                    })
                };
                let _none = (&stream).write_all(format!("{answer}\n").as_bytes());
            }
        });
        node
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Command lines that print, at least one of each verb.
    fn command_lines(&self) -> Vec<Vec<String>> {
        let (state, manifests) = (self.path("."), self.path("manifests.yaml"));
        let source = format!("--node a1 --source file:{manifests}");
        let cni = format!(
            "--cni-conf-dir {} --cni-bin-dir {}",
            self.path("net.d"),
            self.path("bin")
        );
        let place = format!("--state-dir {state} --bpffs {state} --run-dir {state}");
        let flow = "--from 10.1.0.2 --to 10.96.0.1:80/TCP";
        [
            format!("plan {source}"),
            format!("plan {source} -o json"),
            format!("explain {flow} {source}"),
            format!("explain {flow} {source} -o json"),
            format!("explain {flow} --state-dir {state}"),
            format!("explain --from 10.1.0.2 default/web-0 {source}"),
            format!("status --state-dir {state}"),
            format!("status --state-dir {state} -o json --wait 1s"),
            format!("check {place} {cni}"),
            format!("check {place} {cni} -o json"),
            format!("ledger --state-dir {state} --run-dir {state}"),
            format!("ledger --state-dir {state} --run-dir {state} -o json"),
            format!("services {place}"),
            format!("services shop/web {place} -o json"),
            format!("load --state-dir {state}"),
            format!("flows {place}"),
            format!("flows {place} -o json"),
            format!("monitor {place}"),
            format!("cni install {cni} --state-dir {state} --run-dir {state}"),
            format!("cni uninstall {cni}"),
            "help".to_owned(),
            "--version".to_owned(),
            "plan --help".to_owned(),
        ]
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .into()
    }
}

fn ran(words: &[String], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Output {
    let mut command = Command::new(PROGRAM);
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    command
        .env_remove("NODE_NAME")
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap()
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn every_verb_is_tried() {
    let node = Node::new();
    let tried: BTreeSet<String> = node
        .command_lines()
        .iter()
        .map(|line| line[0].clone())
        .collect();
    for verb in Cli::command().get_subcommands() {
        // These print nothing, or take away what is on this machine.
        let is_other = ["run", "probe", "cleanup"].contains(&verb.get_name());
        assert!(
            is_other || tried.contains(verb.get_name()),
            "{}",
            verb.get_name()
        );
    }
}

#[test]
fn a_reader_that_goes_away_has_what_it_wanted() {
    let node = Node::new();
    for words in node.command_lines() {
        let told = ran(&words, Stdio::piped(), Stdio::piped());
        let ended = ran(&words, closed(), Stdio::piped());
        assert_eq!(ended.status.code(), told.status.code(), "{words:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "", "{words:?}");
    }
    // The same in the middle of a text, as `head -1` does it.
    let mut child = Command::new(PROGRAM)
        .args(&node.command_lines()[0])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 16];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn a_full_device_is_an_error_in_one_line() {
    let node = Node::new();
    for words in node.command_lines() {
        let output = ran(&words, full(), Stdio::piped());
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.lines().count(), 1, "{words:?}: {said}");
        assert!(
            said.contains("write to standard output: No space left"),
            "{said}"
        );
    }
}

#[test]
fn what_cannot_be_complained_of_costs_nothing_else() {
    let node = Node::new();
    let mut lines = node.command_lines();
    let wrong = [
        "plan --node a1 --source file:/nowhere",
        "status --state-dir /nowhere",
        "ledger --state-dir /nowhere",
        "plan",
    ];
    lines.extend(wrong.map(|line| line.split(' ').map(str::to_owned).collect()));
    for words in lines {
        let told = ran(&words, Stdio::null(), Stdio::null());
        assert!(told.status.code().is_some(), "{words:?}: {}", told.status);
        for stderr in [Stdio::from(full()), closed()] {
            let output = ran(&words, Stdio::null(), stderr);
            assert_eq!(output.status, told.status, "{words:?}");
        }
    }
}

#[test]
fn plugins_answer_or_say_why_not_and_never_panic() {
    let node = Node::new();
    for plugin in ["yurt-ipam", "yurt-cni"] {
        let path = node.path(plugin);
        std::os::unix::fs::symlink(PROGRAM, &path).unwrap();
        let call = |stdout: Stdio, stderr: Stdio| {
            let mut command = Command::new(&path);
            command.env("CNI_COMMAND", "VERSION").stdin(Stdio::null());
            command
                .stdout(stdout)
                .stderr(stderr)
                .spawn()
                .unwrap()
                .wait_with_output()
                .unwrap()
        };
        assert!(call(Stdio::piped(), Stdio::piped()).status.success());
        assert_eq!(call(closed(), closed()).status.code(), Some(0));
        let output = call(full().into(), Stdio::piped());
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(plugin),
            "{output:?}"
        );
        assert_eq!(call(full().into(), full().into()).status.code(), Some(1));
    }
}

#[test]
fn a_plugin_that_a_person_starts_says_what_it_is() {
    let node = Node::new();
    let path = node.path("yurt-ipam");
    std::os::unix::fs::symlink(PROGRAM, &path).unwrap();
    let mut terminal = Terminal::open();
    let mut command = Command::new(&path);
    command
        .stdin(terminal.other_end())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = command
        .env_remove("CNI_COMMAND")
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("is a CNI plugin of yurt-net"), "{output:?}");
    assert!(output.stdout.is_empty() && !output.status.success());
    // A runtime's request without it is answered as the specification has it.
    let mut command = Command::new(&path);
    command.stdin(Stdio::null()).env_remove("CNI_COMMAND");
    let output = command.output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["code"], 4);
}

#[test]
fn waiting_in_vain_says_for_what() {
    let node = Node::new();
    let status = |directory: &str| {
        let words = ["status", "--wait", "100ms", "--state-dir", directory].map(str::to_owned);
        let output = ran(&words, Stdio::piped(), Stdio::piped());
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = status(&node.path("net.d"));
    assert!(
        said.starts_with("error: not ready after 100ms: no agent answers at "),
        "{said}"
    );
    let waiting = Status {
        source: SourceStatus {
            sources: vec![FollowedSource {
                source: "kube:https://cloud:6443".to_owned(),
                is_in_charge: false,
                is_good: false,
                age_seconds: None,
            }],
            source_error: Some("connect: Connection refused".to_owned()),
            ..SourceStatus::default()
        },
        ..Status::default()
    };
    fs::remove_file(node.path("agent.sock")).unwrap();
    let listener = UnixListener::bind(node.path("agent.sock")).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A socket that is closed with a request unread is reset.
            let _none = BufReader::new(&stream).read_line(&mut String::new());
            let _none = stream.write_all(format!("{}\n", json!(waiting)).as_bytes());
        }
    });
    let said = status(&node.path("."));
    let expected =
        "not ready after 100ms: source kube:https://cloud:6443: connect: Connection refused";
    assert!(said.contains(expected), "{said}");
    // `check` says it too, and does not ask for more than a node without a table can do.
    let (state, bpffs) = (node.path("."), node.path("net.d"));
    let words = ["check", "--state-dir", &state, "--bpffs", &bpffs].map(str::to_owned);
    let output = ran(&words, Stdio::piped(), Stdio::piped());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = "not ready (pid 0): source kube:https://cloud:6443: connect: Connection refused";
    assert!(
        said.contains(expected) && !said.contains("self-test"),
        "{said}"
    );
}

#[test]
fn a_ledger_of_a_directory_that_is_not_there_is_an_error() {
    let node = Node::new();
    let ledger = |directory: &str| {
        let words = ["ledger", "--state-dir", directory, "--run-dir", directory];
        ran(&words.map(str::to_owned), Stdio::piped(), Stdio::piped())
    };
    let output = ledger(&node.path("nowhere"));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("--state-dir"),
        "{output:?}"
    );
    // Before the first Pod.
    assert!(ledger(&node.path("net.d")).status.success());
}

#[test]
fn a_password_in_a_refused_url_is_not_repeated() {
    for source in [
        "kube:https://admin:s3cret@192.0.2.1:6443",
        "kube:https://admin:s3/cr3t@192.0.2.1:6443",
        "https://admin:s3cret@192.0.2.1:6443",
        "kub:https://admin:s3cret@192.0.2.1:6443",
    ] {
        for words in [
            vec!["run", "--node", "edge", "--source", source],
            vec!["plan", "--node", "edge", "--source", source],
            vec!["run", "--node", "edge", source],
            vec![source],
        ] {
            let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            let output = ran(&words, Stdio::piped(), Stdio::piped());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("192.0.2.1"), "{said}");
            assert!(!said.contains("s3") && !said.contains("cr3t"), "{said}");
            assert!(!said.contains("admin"), "{said}");
        }
    }
}

/// A pseudo-terminal.
struct Terminal(File);

impl Terminal {
    fn open() -> Self {
        Self(
            File::options()
                .read(true)
                .write(true)
                .open("/dev/ptmx")
                .unwrap(),
        )
    }

    fn other_end(&mut self) -> File {
        use std::os::fd::{AsRawFd as _, FromRawFd as _};
        let unlocked = 0;
        let fd = self.0.as_raw_fd();
        // SAFETY: an open descriptor, an integer that the kernel reads, and a new descriptor that nobody else has.
        unsafe {
            assert_eq!(libc::ioctl(fd, libc::TIOCSPTLCK, &raw const unlocked), 0);
            let end = libc::ioctl(fd, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY);
            assert!(end >= 0, "no terminal is to be had");
            File::from_raw_fd(end)
        }
    }
}
