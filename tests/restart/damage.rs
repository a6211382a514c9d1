//! Pins that are not what an agent has left there.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use yurt_ebpf::abi::{FrontendKey4, PublishWord};
use yurt_ebpf::frame::ip::TCP;
use yurt_net_tests::lab::{Pod, Proto};

use crate::kernel::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, Object};
use crate::world::{CAPACITY, World, check, vip};

const KEY4: usize = size_of::<FrontendKey4>();

impl World {
    pub(crate) fn pin(&self, path: &str) -> PathBuf {
        self.node.bpffs().join("yurt-net").join(path)
    }

    /// An agent was here and was killed; the Services are `web` and `other`.
    fn abandoned(&self) -> Result<()> {
        let Self { a, b, c, .. } = self;
        let manifests = self.manifests([("web", 10, vec![a, b]), ("other", 20, vec![c])]);
        self.node.apply(&manifests)?;
        self.start_ready(&CAPACITY, &[])?.kill9()?;
        self.expect_whole()
    }

    fn expect_whole(&self) -> Result<()> {
        let Self { a, b, c, .. } = self;
        self.expect(10, &[a, b], false)?;
        self.expect(20, &[c], false)?;
        // Nobody has this one.
        self.expect(77, &[], true)
    }
}

#[test]
fn a_pinned_map_of_another_kind_is_replaced_with_all_of_its_set_and_clients_are_served()
-> Result<()> {
    let world = World::new()?;
    world.abandoned()?;
    let pins = world.pins()?;
    let strangers = [
        ("v2/yurt_fe4", BPF_MAP_TYPE_ARRAY, 4, 8),
        ("v2/yurt_fe4", BPF_MAP_TYPE_HASH, 16, 8),
        ("v2/yurt_svc", BPF_MAP_TYPE_ARRAY, 4, 64),
        ("v2/yurt_conf", BPF_MAP_TYPE_HASH, 4, 4),
        ("state-v1/yurt_peer", BPF_MAP_TYPE_ARRAY, 4, 8),
        ("state-v1/yurt_revsk", BPF_MAP_TYPE_HASH, 4, 8),
        // A link by name only.
        ("links/yurt_connect4", BPF_MAP_TYPE_HASH, 4, 4),
    ];
    for (path, map_type, key, value) in strangers {
        let stranger = Object::new_map(map_type, key, value, 16)?;
        let pin = world.pin(path);
        fs::remove_file(&pin)?;
        stranger.pin(&pin)?;
        // The kernel keeps a map while a program uses it, but a link lives by its pin.
        let is_served = !path.starts_with("links/");
        if is_served {
            world.expect_whole().context(path)?;
        }
        let traffic: Vec<_> = vip(10)
            .iter()
            .filter(|_| is_served)
            .map(|to| {
                let pause = Duration::from_millis(2);
                world.client.start_traffic(Proto::Tcp, to, 1, pause)
            })
            .collect::<Result<_>>()?;
        let agent = world.start_ready(&CAPACITY, &[]).context(path)?;
        for traffic in traffic {
            check(&traffic.stop()?, &[&world.a, &world.b], false).context(path)?;
        }
        world.expect_whole().context(path)?;
        assert_eq!(world.status()?.adopted, !path.starts_with("v2/"), "{path}");
        agent.kill9()?;
        assert_eq!(world.pins()?, pins, "{path}");
    }
    Ok(())
}

#[test]
fn pins_that_are_missing_are_made_again() -> Result<()> {
    let world = World::new()?;
    world.abandoned()?;
    let pins = world.pins()?;
    for gone in [
        "v2/yurt_slot",
        "v2",
        "state-v1/yurt_netns",
        "state-v1",
        "links/yurt_sendmsg6",
        "links",
    ] {
        let pin = world.pin(gone);
        if pin.is_dir() {
            fs::remove_dir_all(&pin)?;
        } else {
            fs::remove_file(&pin)?;
        }
        let agent = world.start_ready(&CAPACITY, &[]).context(gone)?;
        world.expect_whole().context(gone)?;
        agent.kill9()?;
        assert_eq!(world.pins()?, pins, "{gone}");
    }
    Ok(())
}

#[test]
fn pins_of_a_newer_agent_are_refused_with_the_remedy_and_left_alone() -> Result<()> {
    let world = World::new()?;
    world.abandoned()?;
    for newer in [
        "v3",
        "state-v2",
        "guard-v2",
        "translate-v2",
        "flow-v1",
        "v17",
    ] {
        let dir = world.pin(newer);
        fs::create_dir(&dir)?;
        Object::new_map(BPF_MAP_TYPE_ARRAY, 4, 8, 1)?.pin(&dir.join("yurt_fe4"))?;
        let pins = world.pins()?;
        let logged = world.node.agent_log().len();
        let agent = world.start(&CAPACITY, &[])?;
        let status = agent.wait(Duration::from_secs(60))?;
        assert_eq!(status.code(), Some(1));
        let log = world.node.agent_log().split_off(logged);
        assert!(log.contains("newer yurt-net"), "{log}");
        assert!(log.contains("cleanup"), "{log}");
        assert_eq!(world.pins()?, pins);
        world.expect_whole()?;
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// Everything in the table maps that is worth damaging, damaged.
fn damage(world: &World, stranger: &Pod) -> Result<()> {
    let map = |name: &str| Object::open(&world.pin("v2").join(name));
    let (fe4, fe6, svc, slot) = (
        map("yurt_fe4")?,
        map("yurt_fe6")?,
        map("yurt_svc")?,
        map("yurt_slot")?,
    );
    let key4 = |number: u8, protocol: u8, scope: u8| [10, 96, 0, number, 0, 80, protocol, scope];

    // A backend that no Service has, in every slot.
    let [a, b, c, d] = stranger.ip4().octets();
    for index in 0..16u32 {
        slot.write(&index.to_ne_bytes(), &[a, b, c, d, 0x1f, 0x90, 0, 0])?;
    }
    // Ranges beyond the end, and over each other.
    for index in [1u32, 3] {
        let word = PublishWord::new(CAPACITY.slots4 - 1, 9, 7).0;
        let row = [word.to_ne_bytes(), [0; 8]].concat();
        svc.write(&index.to_ne_bytes(), &row)?;
    }
    // A row that is wrong, one that is gone, one that leads a stranger's address to a Service, by each family.
    fe4.write(&key4(10, TCP, 0), &u64::MAX.to_ne_bytes())?;
    fe4.delete(&key4(20, TCP, 0))?;
    let value = fe4.read(&key4(10, 17, 0), 8)?;
    fe4.write(&key4(77, TCP, 0), &value)?;
    for key in fe6.keys(24)?.iter().take(2) {
        fe6.write(key, &0x1234_5678u64.to_ne_bytes())?;
    }
    // Keys that no agent would write: an unknown protocol, an unknown scope, an address with a port.
    for key in [key4(10, 99, 0), key4(10, TCP, 7), key4(20, TCP, 1)] {
        fe4.write(&key, &value)?;
    }
    Ok(())
}

impl World {
    fn rows(&self) -> Result<[Vec<Vec<u8>>; 2]> {
        let open = |name: &str| Object::open(&self.pin("v2").join(name));
        Ok([open("yurt_fe4")?.keys(KEY4)?, open("yurt_fe6")?.keys(24)?])
    }
}

#[test]
fn what_somebody_else_has_written_into_the_maps_is_found_and_mended_at_the_next_start() -> Result<()>
{
    let world = World::new()?;
    world.abandoned()?;
    let rows = world.rows()?;
    damage(&world, &world.d)?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    world.expect_whole()?;
    let status = world.status()?;
    assert!(status.adopted);
    assert!(status.last_writes >= 5, "{}", status.last_writes);
    assert_eq!(world.rows()?, rows);
    agent.kill9()?;
    // And that is that.
    world.start_ready(&CAPACITY, &[])?;
    assert_eq!(world.status()?.last_writes, 0);
    world.expect_whole()
}

#[test]
fn prefixes_that_somebody_else_has_written_are_mended() -> Result<()> {
    let world = World::new()?;
    world.abandoned()?;
    let conf = Object::open(&world.pin("v2/yurt_conf"))?;
    let size = size_of::<yurt_ebpf::abi::Conf>();
    let good = conf.read(&[0; 4], size)?;
    for byte in [0x00, 0xff, 0x5a] {
        conf.write(&[0; 4], &vec![byte; size])?;
        let agent = world.start_ready(&CAPACITY, &[])?;
        world.expect_whole()?;
        // What is no Service passes: no prefix is left that covers all the world.
        assert_eq!(world.client.get(&world.d.at4(8080))?, "d");
        assert_eq!(world.client.get(&world.d.at6(8080))?, "d");
        agent.kill9()?;
    }
    conf.write(&[0; 4], &good)?;
    // One prefix too many, with a mask that is none.
    let mut odd = good;
    let active = usize::from(odd[16] & 1);
    let set = 24 + active * size_of::<yurt_ebpf::abi::PrefixSet>();
    odd[set] += 1;
    odd[set + 16 + 8..set + 16 + 16].copy_from_slice(&[10, 0, 0, 0, 0xff, 0, 0xff, 0]);
    conf.write(&[0; 4], &odd)?;
    world.start_ready(&CAPACITY, &[])?;
    let found = conf.read(&[0; 4], size)?;
    let active = usize::from(found[16] & 1);
    let set = 24 + active * size_of::<yurt_ebpf::abi::PrefixSet>();
    assert_eq!(found[set], 1, "one IPv4 prefix");
    world.expect_whole()
}

#[test]
fn what_somebody_else_writes_into_the_maps_is_mended_while_the_agent_runs() -> Result<()> {
    let world = World::new()?;
    world.abandoned()?;
    let rows = world.rows()?;
    let _agent = world.start_ready(&CAPACITY, &["--drift-interval", "1"])?;
    damage(&world, &world.d)?;
    world.wait_for("the repair", || Ok(world.status()?.drift_writes > 0))?;
    world.expect_whole()?;
    assert_eq!(world.rows()?, rows);
    // Mended once, not again and again.
    let writes = world.status()?.drift_writes;
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(world.status()?.drift_writes, writes);
    Ok(())
}
