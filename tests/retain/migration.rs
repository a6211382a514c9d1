//! From host-local, and from OpenYurt's patch of it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use yurt_net_tests::lab::{Netns, make_mounts_private};
use yurt_net_tests::runtime::{Network, Node, addresses, pod};

#[test]
fn pods_of_host_local_keep_their_addresses_and_nobody_else_gets_them() {
    let node = Node::alone();
    let host_local = json!({
        "type": "host-local", "dataDir": node.path("networks"), "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
    });
    let mut before = Network::new(&node, "1.0.0", node.bridged(host_local));
    before.plugins.truncate(1);
    let running = pod("web-0", "c1");
    assert_eq!(
        addresses(&before.add(&running.sandbox)),
        ["10.1.0.2", "fd00:1::2"]
    );
    // OpenYurt's patch has written down who had what: one that runs, one that is expected back.
    let directory = node.dir().join("networks/edge");
    for name in [
        "10.1.0.2_shop_web-0",
        "fd00:1::2_shop_web-0",
        "10.1.0.4_shop_web-2",
    ] {
        fs::write(directory.join(name), "").unwrap();
    }
    let other = pod("unnamed", "c2");
    assert_eq!(
        addresses(&before.add(&other.sandbox)),
        ["10.1.0.3", "fd00:1::3"]
    );

    let mut after = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let new = after.add(&pod("web-1", "c3").sandbox);
    assert_eq!(addresses(&new), ["10.1.0.5", "fd00:1::4"]);
    assert_eq!(node.entry("web-0")["state"], "active");
    assert_eq!(node.entry("web-2")["state"], "retained");
    assert_eq!(node.entry("c2")["state"], "active");

    after.del(&running.sandbox);
    assert_eq!(
        addresses(&after.add(&pod("web-0", "c4").sandbox)),
        ["10.1.0.2", "fd00:1::2"]
    );
    assert_eq!(
        addresses(&after.add(&pod("web-2", "c5").sandbox))[0],
        "10.1.0.4"
    );
    after.del(&other.sandbox);
    assert_eq!(node.entry("c2")["state"], "released");
}

#[test]
fn files_that_outlived_their_containers_are_not_in_use_and_pods_that_run_keep_theirs() {
    // A range that no other test has: an address is in use while any namespace of this machine has it.
    let node = Node::alone();
    let host_local = json!({
        "type": "host-local", "dataDir": node.path("networks"), "ranges": [[{"subnet": "10.1.7.0/29"}]],
    });
    let mut before = Network::new(&node, "1.0.0", node.bridged(host_local));
    before.plugins.truncate(1);
    // IDs as no other process of this machine says them.
    let id = |name: &str| format!("{name}-{}", std::process::id());
    let running = pod("web-0", &id("running"));
    let bare = pod("web-1", &id("bare"));
    let new = pod("web-2", "c2");
    let processes = [
        process_in(&running.netns, "pause"),
        process_in(&bare.netns, &id("bare")),
        process_in(&new.netns, "pause"),
    ];
    assert_eq!(addresses(&before.add(&running.sandbox)), ["10.1.7.2"]);
    assert_eq!(addresses(&before.add(&bare.sandbox)), ["10.1.7.3"]);
    // A Pod may do so in its own namespace. Its shim names it all the same.
    bare.netns.ip("addr del 10.1.7.3/29 dev eth0\n").unwrap();
    let directory = node.dir().join("networks/edge");
    for (name, contents) in [
        ("10.1.7.4", id("gone") + "\neth0"),
        ("10.1.7.5", id("gone-too") + "\neth0"),
        ("10.1.7.5_shop_web-5", String::new()),
    ] {
        fs::write(directory.join(name), contents).unwrap();
    }

    let mut ipam = node.ipam();
    ipam["ranges"] = json!([[{"subnet": "10.1.7.0/29"}]]);
    let mut after = Network::new(&node, "1.0.0", node.bridged(ipam));
    let mut given = addresses(&after.add(&new.sandbox));
    for (name, container) in [("web-3", "c3"), ("web-4", "c4")] {
        given.extend(addresses(&after.add(&pod(name, container).sandbox)));
    }
    // The range is full by now: first what was never given, then what is nobody's, and last what a Pod may come back
    // to.
    assert_eq!(given, ["10.1.7.6", "10.1.7.4", "10.1.7.5"]);
    assert_eq!(node.entry(&id("running"))["state"], "active");
    assert_eq!(node.entry(&id("bare"))["state"], "active");
    let refused = after.try_add(&pod("web-6", "c6").sandbox).unwrap_err();
    assert!(
        refused.to_string().contains("no address is free"),
        "{refused}"
    );
    drop(processes);
}

/// A process in a namespace that has this word among its arguments, and lives as long as the value: its standard input
/// ends then.
fn process_in(netns: &Netns, word: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "read line", "sh", word]);
    netns.enter(&mut command);
    command.stdin(Stdio::piped());
    command.spawn().expect("start a shell")
}

/// Processes that anybody may start: each has more in its environment than a board wants to read.
struct Bloated(Vec<Child>);

impl Bloated {
    fn start(count: usize) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600");
        // No variable may have more than 128 KiB.
        for n in 0..12 {
            command.env(format!("V{n}"), "x".repeat(130_000));
        }
        let start = |_| command.spawn().expect("start a process");
        Self((0..count).map(start).collect())
    }
}

impl Drop for Bloated {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}

#[test]
fn the_environments_of_others_cost_the_first_add_neither_its_time_nor_its_memory() {
    let node = Node::alone();
    let directory = node.dir().join("networks/edge");
    fs::create_dir_all(&directory).unwrap();
    let unknown = |n: usize| format!("{n:064x}\neth0");
    for n in 2..252 {
        fs::write(directory.join(format!("10.1.9.{n}")), unknown(n)).unwrap();
    }
    let bloated = Bloated::start(60);
    let mut ipam = node.ipam();
    ipam["ranges"] = json!([[{"subnet": "10.1.9.0/24"}]]);
    ipam["name"] = json!("edge");
    ipam["cniVersion"] = json!("1.0.0");
    let web = pod("web-0", "c1");
    let pause = process_in(&web.netns, "pause");
    let before = peak_of_children();
    let added = node.call("ADD", &web.sandbox, &ipam);
    assert!(added.is_ok && added.stderr.is_empty(), "{added:?}");
    assert_eq!(addresses(&added.json), ["10.1.9.252"]);
    assert_eq!(node.entry(&format!("{:064x}", 2))["state"], "released");
    // Of one process at a time, and not all of that. The environments together have 94 MB.
    let peak = peak_of_children();
    assert!(peak < before.max(48 << 10), "{peak} KiB");
    drop((bloated, pause));
}

/// What the largest of the children that have ended had in memory, in KiB.
fn peak_of_children() -> i64 {
    // SAFETY: plain data; zero is a value of each field.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is valid for a write.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    assert_eq!(result, 0);
    usage.ru_maxrss
}

/// A file of a disk that is failing: there it is, and nobody can read a byte of it.
fn fail(file: &Path) {
    fs::write(file, "").expect("make a file");
    // Nothing is ever at the beginning of a process' memory, so to read it is EIO.
    let memory = format!("/proc/{}/mem", std::process::id());
    let mount = Command::new("mount")
        .args(["--bind", &memory])
        .arg(file)
        .status();
    assert!(mount.expect("run mount").success());
    let error = fs::read(file).expect_err("nobody can read it");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_file_that_cannot_be_read_costs_its_own_address_and_only_while_somebody_has_that() {
    make_mounts_private().unwrap();
    // A range that no other test has, as above.
    let node = Node::alone();
    let directory = node.dir().join("networks/edge");
    fs::create_dir_all(&directory).unwrap();
    for name in ["10.1.8.2", "10.1.8.3", "last_reserved_ip.0"] {
        fail(&directory.join(name));
    }
    let (web, other) = (pod("web-0", "c1"), pod("other", "c2"));
    other.netns.ip("addr add 10.1.8.2/32 dev lo\n").unwrap();
    let processes = [&web, &other].map(|pod| process_in(&pod.netns, "pause"));
    let mut ipam = node.ipam();
    ipam["ranges"] = json!([[{"subnet": "10.1.8.0/29"}]]);
    let mut network = Network::new(&node, "1.0.0", node.bridged(ipam));
    let mut given = addresses(&network.add(&web.sandbox));
    for part in [
        "networks/edge/10.1.8.2",
        "(os error 5)",
        "is the disk failing?",
    ] {
        assert!(network.stderr.contains(part), "{}", network.stderr);
    }
    for (name, container) in [("web-1", "c3"), ("web-2", "c4"), ("web-3", "c5")] {
        given.extend(addresses(&network.add(&pod(name, container).sandbox)));
    }
    // What was never given comes first; what nobody has is given all the same.
    assert_eq!(given, ["10.1.8.4", "10.1.8.5", "10.1.8.6", "10.1.8.3"]);
    let full = network.try_add(&pod("web-4", "c6").sandbox).unwrap_err();
    assert!(full.to_string().contains("no address is free"), "{full}");
    network.del(&web.sandbox);
    for mut process in processes {
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

#[test]
fn where_nothing_can_be_read_pods_go_and_none_is_given_what_another_may_have() {
    let node = Node::alone();
    let networks = node.dir().join("networks");
    fs::create_dir(&networks).unwrap();
    fs::write(networks.join("edge"), "not a directory").unwrap();
    let mut config = node.ipam();
    config["name"] = json!("edge");
    config["cniVersion"] = json!("1.0.0");
    let web = pod("web-0", "c1").sandbox;
    let refused = node.call("ADD", &web, &config);
    assert!(!refused.is_ok && refused.json["code"] == 5, "{refused:?}");
    let deleted = node.call("DEL", &web, &config);
    assert!(deleted.is_ok, "{deleted:?}");
    fs::remove_file(networks.join("edge")).unwrap();
    let added = node.call("ADD", &web, &config);
    assert!(added.is_ok, "{added:?}");
}

#[test]
fn what_host_local_has_not_made_keeps_no_pod_from_starting() {
    let node = Node::alone();
    let directory = node.dir().join("networks/edge");
    fs::create_dir_all(directory.join("directory")).unwrap();
    std::os::unix::fs::symlink("loop", directory.join("loop")).unwrap();
    let pipe = directory.join("10.1.0.3");
    let made = Command::new("mkfifo").arg(pipe).status();
    assert!(made.unwrap().success());
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let added = network.add(&pod("web-0", "c1").sandbox);
    assert_eq!(addresses(&added), ["10.1.0.2", "fd00:1::2"]);
}
