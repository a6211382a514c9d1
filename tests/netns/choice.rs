//! How a backend is chosen.

use anyhow::Result;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::world::World;
use crate::world::all_answered;

#[test]
fn every_backend_is_equally_likely() -> Result<()> {
    let mut world = World::single()?;
    let backends = world.backends(0, ["a", "b", "c", "d"])?;
    let client = world.node(0)?.pod("client")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    web.port(80, 8080).udp_port(80, 8080).endpoints(&backends);
    let _agent = world.start(0, &[])?;
    for (proto, to) in [(Tcp, "10.96.0.10:80"), (Udp, "[fd00:96::10]:80")] {
        let tally = client.connect_many(proto, to, 4000)?;
        all_answered(&tally)?;
        assert_eq!(tally.answers.len(), 4, "{tally:?}");
        for (name, count) in &tally.answers {
            // Seven standard deviations.
            assert!((800..=1200).contains(count), "{name}: {tally:?}");
        }
    }
    Ok(())
}
