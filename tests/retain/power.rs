//! Plugins that are killed, disks that are full or read-only, and reboots.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use yurt_net_tests::lab::make_mounts_private;

use yurt_net_tests::runtime::{Network, Node, addresses, pod};

fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong, options: &str) {
    let [source, kind, options] =
        [source, kind, options].map(|text| CString::new(text).expect("no zero in it"));
    let target = CString::new(target.as_os_str().as_encoded_bytes()).expect("no zero in it");
    // SAFETY: strings that end in zero.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_pod_has_its_addresses_and_mac_again_after_a_reboot() {
    make_mounts_private().unwrap();
    let node = Node::alone();
    let boots = ["boot-1", "boot-2"].map(|boot| {
        let file = node.dir().join(boot);
        fs::write(&file, boot).unwrap();
        file
    });
    let boot_id = Path::new("/proc/sys/kernel/random/boot_id");
    mount(boots[0].to_str().unwrap(), boot_id, "", libc::MS_BIND, "");
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let (web, job) = (pod("web-0", "c1"), pod("job-0", "c2"));
    let before = network.add(&web.sandbox);
    network.add(&job.sandbox);

    // No DEL comes, and memory is empty.
    mount(boots[1].to_str().unwrap(), boot_id, "", libc::MS_BIND, "");
    fs::remove_dir_all(node.dir().join("run")).unwrap();
    network.node.netns().ip("link del cni0\n").unwrap();
    let other = network.add(&pod("web-1", "c3").sandbox);
    assert_eq!(addresses(&other), ["10.1.0.4", "fd00:1::4"]);
    assert_eq!(node.entry("web-0")["state"], "retained");
    let again = network.add(&pod("web-0", "c4").sandbox);
    assert_eq!(
        (&again["ips"], &again["interfaces"][2]["mac"]),
        (&before["ips"], &before["interfaces"][2]["mac"])
    );
    // The runtime cleans up after the sandboxes of before.
    network.del(&web.sandbox);
    network.del(&job.sandbox);
    assert_eq!(node.entry("web-0")["state"], "active");
}

#[test]
fn with_a_full_or_read_only_disk_pods_start_and_an_alarm_is_raised() {
    make_mounts_private().unwrap();
    for trouble in ["full", "read-only"] {
        let node = Node::alone();
        let state = node.dir().join("state");
        fs::create_dir(&state).unwrap();
        mount("tmpfs", &state, "tmpfs", 0, "size=64k");
        let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
        network.add(&pod("web-0", "c0").sandbox);
        assert_eq!(network.stderr, "");
        let filler = state.join("filler");
        if trouble == "full" {
            let _ = fs::write(&filler, vec![1; 128 * 1024]);
            // The last block of the ledger has room for some more.
            for index in 0..12 {
                network.add(&pod(&format!("early-{index}"), &format!("e{index}")).sandbox);
            }
        } else {
            mount(
                "tmpfs",
                &state,
                "tmpfs",
                libc::MS_REMOUNT | libc::MS_RDONLY,
                "",
            );
        }
        let given = addresses(&network.add(&pod("web-1", "c1").sandbox));
        assert!(
            network.stderr.contains("alarm: ") && network.stderr.contains("state/ledger"),
            "{trouble}: {}",
            network.stderr
        );
        network.del(&pod("web-1", "c1").sandbox);
        assert_ne!(addresses(&network.add(&pod("web-2", "c2").sandbox)), given);
        assert_eq!(addresses(&network.add(&pod("web-1", "c3").sandbox)), given);
        let alarms = node.ledger()["alarms"].to_string();
        assert!(alarms.contains("lacks the last"), "{alarms}");

        // And mended when there is room.
        if trouble == "full" {
            fs::remove_file(&filler).unwrap();
        } else {
            mount("tmpfs", &state, "tmpfs", libc::MS_REMOUNT, "");
        }
        network.add(&pod("web-3", "c4").sandbox);
        assert_eq!(node.ledger()["alarms"], json!([]));
        fs::remove_dir_all(node.dir().join("run")).unwrap();
        assert_eq!(node.entry("web-1")["state"], "active");
    }
}

#[test]
fn plugins_killed_at_any_time_leave_no_address_with_two_owners() {
    let node = Node::alone();
    let mut config = node.ipam();
    config["cniVersion"] = json!("1.0.0");
    config["name"] = json!("edge");
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut killed = 0;
    for round in 0..60u32 {
        let name = format!("web-{round}");
        let sandbox = pod(&name, &format!("c{round}")).sandbox;
        let mut child = node.start("ADD", &sandbox, &config);
        drop(child.stdin.take());
        std::thread::sleep(Duration::from_micros(u64::from(round) * 150));
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        killed += u32::from(!output.status.success());
        // Whoever's ADD was killed is tried again, under the same name.
        let again = node.call("ADD", &pod(&name, &format!("d{round}")).sandbox, &config);
        assert!(again.is_ok, "{again:?}");
        for address in addresses(&again.json) {
            assert_eq!(owners.insert(address, name.clone()), None);
        }
    }
    assert!(killed > 0);
    assert_eq!(node.ledger()["entries"].as_array().unwrap().len(), 60);
    assert_eq!(node.ledger()["alarms"], json!([]));
}
