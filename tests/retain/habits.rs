//! How a process was started is not for it to choose: under the umask of a careless runtime, and with limits that
//! another program has set.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::runtime::{Network, Node, pod};

/// All that is in a directory and below it, with its mode; links aside, whose mode says nothing.
fn modes(dir: &Path, found: &mut Vec<(String, u32)>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            continue;
        }
        let mode = entry.metadata()?.permissions().mode();
        found.push((entry.path().display().to_string(), mode & 0o7777));
        if kind.is_dir() {
            modes(&entry.path(), found)?;
        }
        // Whoever may write it may ask the agent.
        let is_secret = !kind.is_socket() || mode & 0o077 == 0;
        ensure!(is_secret, "{}: {mode:o}", entry.path().display());
    }
    Ok(())
}

#[test]
fn what_agent_and_plugins_make_is_writable_for_root_alone_whatever_the_umask() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node("edge-1")?;
    let node = Node::on(&edge);
    fs::remove_dir_all(edge.state_dir())?;
    // SAFETY: a call without pointers. Whatever this test starts from here on has it, too.
    unsafe { libc::umask(0) };
    let conf = node.dir().join("net.d");
    fs::create_dir(&conf)?;
    let list = json!({"name": "edge", "cniVersion": "1.0.0", "plugins": [{
        "type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]},
    }]});
    fs::write(conf.join("10-edge.conflist"), list.to_string())?;
    fs::set_permissions(
        conf.join("10-edge.conflist"),
        fs::Permissions::from_mode(0o600),
    )?;
    let (conf_flag, bin_flag) = (node.path("net.d"), node.path("opt/cni/bin"));
    let output = edge.yurt_net(&[
        "cni",
        "install",
        "--cni-conf-dir",
        &conf_flag,
        "--cni-bin-dir",
        &bin_flag,
    ])?;
    ensure!(output.status.success(), "{output:?}");
    let agent = edge.start_agent(&["--guard", "enforce"])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    network.add(&pod("web-0", "c1").sandbox);
    // A save is what is due at its end.
    ensure!(agent.terminate()?.success());
    let mut found = Vec::new();
    for place in [
        &edge.state_dir(),
        &edge.run_dir(),
        &edge.bpffs(),
        &conf,
        &node.dir().join("opt"),
    ] {
        let mode = fs::metadata(place)?.permissions().mode() & 0o777;
        found.push((place.display().to_string(), mode));
        modes(place, &mut found)?;
    }
    for made in [
        "/state",
        "/state/ledger/ledger",
        "/guard.json",
        "/opt/cni/bin/yurt-net",
        "/bpffs/yurt-net",
    ] {
        ensure!(
            found.iter().any(|(path, _)| path.ends_with(made)),
            "no {made}: {found:#?}"
        );
    }
    let (bpffs, net_d) = (edge.bpffs(), conf);
    // These two directories are the lab's own.
    found.retain(|(path, _)| {
        [&bpffs, &net_d]
            .iter()
            .all(|own| Path::new(path) != own.as_path())
    });
    let loose: Vec<_> = found.iter().filter(|(_, mode)| mode & 0o022 != 0).collect();
    ensure!(loose.is_empty(), "{loose:#?}");
    Ok(())
}

/// Ends with this value.
struct NoFiles;

impl NoFiles {
    fn set(bytes: libc::rlim_t) {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the limit is valid for reads.
        let result = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    fn begin() -> Self {
        Self::set(0);
        Self
    }
}

impl Drop for NoFiles {
    fn drop(&mut self) {
        Self::set(libc::RLIM_INFINITY);
    }
}

#[test]
fn a_plugin_that_may_write_no_file_says_so_and_the_ledger_is_as_it_was() {
    let node = Node::alone();
    let mut config = node.ipam();
    config["name"] = json!("edge");
    config["cniVersion"] = json!("1.0.0");
    let web = pod("web-0", "c1").sandbox;
    let limited = NoFiles::begin();
    let refused = node.call("ADD", &web, &config);
    drop(limited);
    assert_eq!(refused.json["code"], 5, "{refused:?}");
    assert!(
        refused.json["details"]
            .to_string()
            .contains("File too large"),
        "{refused:?}"
    );
    let added = node.call("ADD", &web, &config);
    assert!(added.is_ok && added.stderr.is_empty(), "{added:?}");
    assert_eq!(node.entry("web-0")["state"], "active");
}
