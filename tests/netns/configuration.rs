//! The configuration file of a running agent.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;

use crate::world::World;
use crate::world::all_answered;
use crate::world::eventually;
use crate::world::names;
use crate::world::status;
use crate::world::who_answers;

const WEB: &str = "10.96.0.10:80";
const OUTSIDE: &str = "198.51.100.10:80";
const PROXY: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const OWN: &str = "---\napiVersion: yurt-net.openyurt.io/v1alpha1\nkind: YurtNetConfiguration\n";

/// A ConfigMap as kubelet mounts it: a change is a swap of one link.
struct Mounted {
    directory: PathBuf,
    version: usize,
}

impl Mounted {
    fn new(node: &Node, text: &str) -> Result<Self> {
        let directory = node.state_dir().join("config");
        fs::create_dir_all(&directory)?;
        let mut mounted = Self {
            directory,
            version: 0,
        };
        mounted.write(text)?;
        symlink("..data/config.conf", mounted.file())?;
        Ok(mounted)
    }

    fn file(&self) -> PathBuf {
        self.directory.join("config.conf")
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.version += 1;
        let name = format!("..version-{}", self.version);
        fs::create_dir(self.directory.join(&name))?;
        fs::write(self.directory.join(&name).join("config.conf"), text)?;
        let draft = self.directory.join("..data_tmp");
        symlink(Path::new(&name), &draft)?;
        fs::rename(draft, self.directory.join("..data"))?;
        Ok(())
    }
}

fn leads_to(client: &Pod, to: &str, backend: &str) -> Result<bool> {
    let tally = client.dial(Tcp, to, 1)?;
    Ok(tally.answers.contains_key(backend))
}

#[test]
fn a_changed_file_is_taken_up_without_a_failed_connect_and_a_broken_one_is_refused() -> Result<()> {
    let mut world = World::single()?;
    let backends = world.backends(0, ["a"])?;
    let client = world.node(0)?.pod("client")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").external_ip("198.51.100.10");
    web.port(80, 8080).endpoints(&backends);
    let first = format!("{PROXY}ipvs: {{speed: 9}}\n{OWN}externalIps: none\nguard: audit\n");
    let mut mounted = Mounted::new(world.node(0)?, &first)?;
    let file = mounted.file().display().to_string();
    let _agent = world.start(0, &["--config", &file])?;
    let node = world.node(0)?;
    ensure!(
        node.agent_log().contains("3: ipvs.speed: ignored"),
        "{}",
        node.agent_log()
    );
    assert_eq!(who_answers(&client, WEB)?, names(["a"]));
    let backend = backends[0].at4(8080);
    ensure!(!leads_to(&client, OUTSIDE, &backend)?);
    let traffic = client.start_traffic(Tcp, WEB, 1, Duration::from_millis(1))?;

    // What a running agent can change is in force, and what it cannot waits.
    mounted.write(&format!("{PROXY}{OWN}externalIps: all\nguard: enforce\n"))?;
    eventually(node, || {
        ensure!(
            leads_to(&client, OUTSIDE, &backend)?,
            "{OUTSIDE} is not served"
        );
        Ok(())
    })?;
    let told = status(node)?;
    assert_eq!(told["configuration"]["waiting"][0], "--guard", "{told}");
    assert_eq!(
        told["configuration"]["problems"][0],
        serde_json::Value::Null
    );

    // A broken file changes nothing.
    mounted.write(&format!("{PROXY}mode: fast\n{OWN}externalIps: some\n"))?;
    eventually(node, || {
        let told = status(node)?;
        let problems = told["configuration"]["problems"].as_array();
        ensure!(problems.is_some_and(|all| all.len() == 2), "{told}");
        let faults = told["degraded"].as_array().into_iter().flatten();
        let mut faults = faults.filter(|fault| fault["what"] == "configuration");
        ensure!(faults.next().is_some(), "{told}");
        Ok(())
    })?;
    ensure!(leads_to(&client, OUTSIDE, &backend)?);

    // It is mended, and as it was.
    mounted.write(&first)?;
    eventually(node, || {
        let told = status(node)?;
        let is_well = told["degraded"].as_array().is_some_and(Vec::is_empty);
        let waits = told["configuration"]["waiting"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        ensure!(is_well && !waits, "{told}");
        ensure!(
            !leads_to(&client, OUTSIDE, &backend)?,
            "{OUTSIDE} is served"
        );
        Ok(())
    })?;
    all_answered(&traffic.stop()?)
}

#[test]
fn a_file_that_is_wrong_ends_the_start_with_two_and_check_says_the_same_without_root() -> Result<()>
{
    let world = World::single()?;
    let node = world.node(0)?;
    let file = node.state_dir().join("bad.yaml");
    fs::create_dir_all(node.state_dir())?;
    fs::write(&file, format!("{PROXY}mode: fast\n{OWN}guard: often\n"))?;
    let file = file.display().to_string();
    let ended = node.yurt_net(&["run", "--config", &file])?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    for place in [format!("{file}:3: mode: "), format!("{file}:7: guard: ")] {
        ensure!(said.contains(&place), "{said}");
    }
    let checked = node.yurt_net(&["check", "--config", &file])?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("FAILED ").count(), 2, "{said}");
    Ok(())
}
