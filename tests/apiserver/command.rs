//! The program `fake-apiserver`.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;
use yurt_net_tests::apiserver::Directory;
use yurt_net_tests::apiserver::Resource;

use crate::client;
use crate::pool;

#[test]
fn a_directory_is_served_and_followed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let write = |object: &Value| {
        let draft = directory.path().join(".draft");
        fs::write(&draft, object.to_string())?;
        fs::rename(&draft, directory.path().join("pools.json"))
    };
    write(&pool("a", &[]))?;
    let mut server = Command::new(env!("CARGO_BIN_EXE_fake-apiserver"))
        .args(["--listen", "127.0.0.1:0", "--manifests"])
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut url = String::new();
    let stdout = server.stdout.take().context("its stdout")?;
    BufReader::new(stdout).read_line(&mut url)?;
    let address = url.trim().trim_start_matches("http://").parse()?;

    let path = Resource::NodePools.path();
    let list: Value = serde_json::from_slice(&client::ask_at(address, &path)?.body()?)?;
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
    let version = list["metadata"]["resourceVersion"].as_str();
    let version = version.context("the list has no version")?;
    let watch = format!("{path}?watch=true&resourceVersion={version}");
    let mut events = client::ask_at(address, &watch)?;
    write(&pool("b", &["n1"]))?;
    assert_eq!(events.event()?.1, "b");
    assert_eq!(events.event()?.0, "DELETED");

    let pid = i32::try_from(server.id())?;
    // SAFETY: no memory is passed, and the child has not been waited for.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    assert!(server.wait()?.success());
    Ok(())
}

#[test]
fn a_file_that_cannot_be_read_is_read_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut manifests = Directory::new(directory.path());
    assert_eq!(manifests.load_if_changed()?.map(|o| o.len()), Some(0));
    assert!(manifests.load_if_changed()?.is_none());
    let file = directory.path().join("pools.yaml");
    fs::write(&file, "kind: [")?;
    assert!(manifests.load_if_changed().is_err());
    assert!(manifests.load_if_changed().is_err());
    std::thread::sleep(Duration::from_millis(5));
    fs::write(&file, pool("a", &[]).to_string())?;
    assert_eq!(manifests.load_if_changed()?.map(|o| o.len()), Some(1));
    Ok(())
}
