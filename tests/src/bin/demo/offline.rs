//! The cloud goes, the nodes reboot, and Services work before the cloud is back.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::Node;
use yurt_net_tests::matrix::Expected;

use super::BEIJING;
use super::Demo;
use super::MOVING;
use super::in_parallel;
use super::mark;
use super::seconds;
use super::stop;

/// How long traffic goes on after the last agent has changed to live data.
const AFTERWARDS: Duration = Duration::from_millis(500);

impl Demo {
    pub(super) fn scene_the_nodes_reboot_without_the_cloud(&mut self) -> Result<()> {
        self.heading("The apiserver is killed, and every node reboots");
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        let answers = |_: &str| Expected::Answers;
        let cloud = self.lab.cloud()?;
        cloud.apply(&self.manifests)?;
        cloud.start()?;
        let start = Instant::now();
        let source = cloud.source();
        for agent in self.agents.values() {
            agent.terminate()?;
        }
        self.start_agents_from(&source, &names)?;
        self.wait_for_all("their state is on disk", &names, |node| {
            node.wait_for_status("a checkpoint", |status| status.checkpoint.writes > 0)
                .map(|_status| ())
        })?;
        println!(
            "  {} agents follow {source}, and have a checkpoint  {}",
            mark(true),
            seconds(start)
        );
        cloud.kill9()?;
        for (name, agent) in &self.agents {
            agent.kill9()?;
            self.nodes
                .get(name)
                .context("no such node")?
                .lose_pins()
                .with_context(|| name.clone())?;
        }
        self.agents.clear();
        let start = Instant::now();
        self.start_agents_from(&source, &names)?;
        self.expect_origin(&names, Origin::Checkpoint)?;
        println!(
            "  {} every agent serves from its checkpoint; there is no apiserver  {}",
            mark(true),
            seconds(start)
        );
        self.wait_until_effective("service is back", &answers)?;
        self.connect_and_judge(&answers)?;

        self.heading("The apiserver returns while all clients connect without pause");
        let traffic = self.start_traffic()?;
        thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        cloud.start()?;
        self.expect_origin(&names, Origin::Live)?;
        println!(
            "  {} every agent has gone over to live data  {}",
            mark(true),
            seconds(start)
        );
        thread::sleep(AFTERWARDS);
        self.judge_tallies(stop(traffic)?, &answers, start);

        let traffic = self.start_traffic()?;
        self.move_node(BEIJING)?;
        cloud.apply(&self.manifests)?;
        self.wait_until_effective(&format!("and {MOVING} can move again"), &answers)?;
        self.judge_failures(stop(traffic)?, &format!("{MOVING} moved"));
        self.connect_and_judge(&answers)
    }

    fn start_agents_from(&mut self, source: &str, names: &[String]) -> Result<()> {
        for name in names {
            let node = self.nodes.get(name).context("no such node")?;
            let agent = node.start_agent_from(source, node.name(), &[])?;
            self.agents.insert(name.clone(), agent);
        }
        self.wait_for_all("ready", names, Node::wait_ready)
    }

    fn expect_origin(&self, names: &[String], origin: Origin) -> Result<()> {
        self.wait_for_all("another origin", names, |node| {
            let what = format!("{origin:?}");
            node.wait_for_status(&what, |status| status.source.provenance == origin)
                .map(|_status| ())
        })
    }

    fn wait_for_all(
        &self,
        what: &str,
        names: &[String],
        wait: impl Fn(&Node) -> Result<()> + Sync,
    ) -> Result<()> {
        in_parallel(names, |name| {
            wait(self.nodes.get(name).context("no such node")?)
                .with_context(|| format!("{what}: {name}"))
        })?;
        Ok(())
    }
}
