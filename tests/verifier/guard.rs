//! The guard's program on frames: what comes out, and what is counted.

use std::cell::RefCell;
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use anyhow::Result;
use ipnetwork::IpNetwork;
use yurt_frames::guard::{Host, OTHER, POD, advertisement, fixtures, sent};
use yurt_frames::ip;
use yurt_frames::protocol::VRRP;
use yurt_net::dataplane::pod::guard::{Guard, Spoofs};
use yurt_net::pods::guard::{GuardOp, GuardRow, Identity, Mode, Owner};
use yurt_net_tests::lab::{Lab, Node};
use yurt_net_tests::testrun::{IFINDEX, NEXT, Program, SHOT};

/// The guard, without any device.
struct World {
    guard: RefCell<Guard>,
    program: Program,
    // Dropped last.
    _node: Node,
    _lab: Lab,
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let node = lab.node("edge-1")?;
        let guard = Guard::load(&node.bpffs(), None)?;
        let pin = node.bpffs().join("yurt-net/guard-v1/yurt_guard_in");
        Ok(Self {
            guard: RefCell::new(guard),
            program: Program::pinned(&pin)?,
            _node: node,
            _lab: lab,
        })
    }

    fn apply(&self, ops: &[GuardOp]) -> Result<()> {
        match self.guard.borrow_mut().apply(ops).failures.pop() {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    /// The loopback, where test input comes from, is this Pod's.
    fn admit(&self, pod: Host, mode: Mode) -> Result<()> {
        self.apply(&[GuardOp::PutRow(IFINDEX, row(pod, mode))])
    }

    fn own(&self, identity: impl Into<Identity>, ifindex: Option<u32>, mode: Mode) -> Result<()> {
        let owner = Owner { ifindex, mode };
        self.apply(&[GuardOp::PutOwner(identity.into(), owner)])
    }

    /// On the device, and on all.
    fn counts(&self) -> Result<[Spoofs; 2]> {
        let guard = self.guard.borrow();
        let counters = guard.counters()?;
        Ok([counters.of_device(IFINDEX)?, counters.of_all()?])
    }

    /// The verdict on a frame, and the counts that it has moved: by reason, on the device and on all.
    fn send(&self, frame: &[u8]) -> Result<(u32, Vec<String>)> {
        let before = self.counts()?;
        let verdict = self.program.verdict(frame)?;
        let after = self.counts()?;
        let [here, everywhere] = [0, 1].map(|of| moved(&before[of], &after[of]));
        assert_eq!(here, everywhere);
        Ok((verdict, here))
    }
}

fn row(pod: Host, mode: Mode) -> GuardRow {
    let own: [IpAddr; 3] = [pod.v4.into(), pod.v6.into(), pod.link_local.into()];
    GuardRow {
        mode,
        macs: vec![pod.mac],
        own: own.map(IpNetwork::from).into(),
        extra: Vec::new(),
    }
}

fn moved(before: &Spoofs, after: &Spoofs) -> Vec<String> {
    let counts = [
        ("audited", &before.audited, &after.audited),
        ("dropped", &before.dropped, &after.dropped),
    ];
    let mut moved = Vec::new();
    for (what, before, after) in counts {
        for (reason, count) in after {
            for _ in before[reason]..*count {
                moved.push(format!("{what} {reason}"));
            }
        }
    }
    moved
}

#[test]
fn every_frame_of_an_audited_pod_goes_on_and_wrong_ones_are_counted_by_reason() -> Result<()> {
    let world = World::new()?;
    world.admit(POD, Mode::Audit)?;
    for fixture in fixtures() {
        let (verdict, counted) = world.send(&fixture.frame).context(fixture.name)?;
        let expected: Vec<_> = fixture
            .reason
            .map(|reason| format!("audited {reason}"))
            .into_iter()
            .collect();
        assert_eq!((verdict, counted), (NEXT, expected), "{}", fixture.name);
    }
    Ok(())
}

#[test]
fn wrong_frames_of_a_pod_that_is_not_trusted_are_dropped_and_the_others_go_on() -> Result<()> {
    let world = World::new()?;
    world.admit(POD, Mode::Enforce)?;
    for fixture in fixtures() {
        let (verdict, counted) = world.send(&fixture.frame).context(fixture.name)?;
        let expected: Vec<_> = fixture
            .reason
            .map(|reason| format!("dropped {reason}"))
            .into_iter()
            .collect();
        let expected_verdict = if fixture.reason.is_some() { SHOT } else { NEXT };
        assert_eq!(
            (verdict, counted),
            (expected_verdict, expected),
            "{}",
            fixture.name
        );
    }
    Ok(())
}

#[test]
fn a_device_of_which_nothing_is_known_may_do_everything_that_takes_nobodys_address() -> Result<()> {
    let world = World::new()?;
    for fixture in fixtures() {
        let result = world.send(&fixture.frame).context(fixture.name)?;
        assert_eq!(result, (NEXT, vec![]), "{}", fixture.name);
    }
    Ok(())
}

#[test]
fn an_address_that_is_kept_for_a_pod_that_is_away_is_used_by_nobody() -> Result<()> {
    let world = World::new()?;
    world.own(IpAddr::from(OTHER.v4), None, Mode::Enforce)?;
    world.own(IpAddr::from(OTHER.v6), None, Mode::Audit)?;
    let stolen4 = sent(POD.mac, ip(OTHER.v4, POD.v4).udp(1, 2));
    let stolen6 = sent(POD.mac, advertisement(POD.v6, OTHER.v6, POD.mac));
    // By a Pod that nobody knows, and by one that is only audited.
    assert_eq!(world.send(&stolen4)?, (SHOT, vec!["dropped ipv4".into()]));
    assert_eq!(world.send(&stolen6)?, (NEXT, vec!["audited nd".into()]));
    world.admit(POD, Mode::Audit)?;
    assert_eq!(world.send(&stolen4)?, (SHOT, vec!["dropped ipv4".into()]));
    assert_eq!(world.send(&stolen6)?, (NEXT, vec!["audited nd".into()]));
    // And by the Pod itself once it is back.
    world.own(IpAddr::from(OTHER.v4), Some(IFINDEX), Mode::Enforce)?;
    world.admit(OTHER, Mode::Enforce)?;
    let back = sent(OTHER.mac, ip(OTHER.v4, POD.v4).udp(1, 2));
    assert_eq!(world.send(&back)?, (NEXT, vec![]));
    Ok(())
}

#[test]
fn extra_addresses_are_a_pods_to_use_unless_they_are_anothers() -> Result<()> {
    let world = World::new()?;
    let mut row = row(POD, Mode::Enforce);
    row.macs.push([0, 0, 0x5e, 0, 1, 51]);
    row.extra = vec!["10.244.1.0/24".parse()?, "fd00:244:1::/64".parse()?];
    world.apply(&[GuardOp::PutRow(IFINDEX, row)])?;
    let vrrp = ip([10, 244, 1, 200], OTHER.v4).raw(VRRP, &[]);
    let vrrp = sent([0, 0, 0x5e, 0, 1, 51], vrrp);
    let as_other = sent(POD.mac, ip(OTHER.v6, POD.v6).udp(1, 2));
    assert_eq!(world.send(&vrrp)?, (NEXT, vec![]));
    assert_eq!(world.send(&as_other)?, (NEXT, vec![]));
    world.own(IpAddr::from(OTHER.v6), Some(99), Mode::Audit)?;
    assert_eq!(world.send(&as_other)?, (SHOT, vec!["dropped ipv6".into()]));
    Ok(())
}

#[test]
fn a_link_layer_address_is_its_owners_whatever_an_annotation_has_added() -> Result<()> {
    let world = World::new()?;
    let mut row = row(POD, Mode::Audit);
    row.macs.push(OTHER.mac);
    world.apply(&[GuardOp::PutRow(IFINDEX, row)])?;
    let stolen = sent(OTHER.mac, ip(POD.v4, POD.v4).udp(1, 2));
    assert_eq!(world.send(&stolen)?, (NEXT, vec![]), "nobody has it");
    world.own(OTHER.mac, Some(99), Mode::Enforce)?;
    assert_eq!(world.send(&stolen)?, (SHOT, vec!["dropped mac".into()]));
    // While its owner is away, too, and by a Pod of which nothing is known.
    world.own(OTHER.mac, None, Mode::Enforce)?;
    assert_eq!(world.send(&stolen)?, (SHOT, vec!["dropped mac".into()]));
    world.apply(&[GuardOp::DeleteRow(IFINDEX)])?;
    assert_eq!(world.send(&stolen)?, (SHOT, vec!["dropped mac".into()]));
    world.own(OTHER.mac, Some(IFINDEX), Mode::Enforce)?;
    assert_eq!(world.send(&stolen)?, (NEXT, vec![]), "it is its own");
    Ok(())
}

#[test]
fn what_is_forgotten_of_a_device_is_counted_anew() -> Result<()> {
    let world = World::new()?;
    world.admit(POD, Mode::Audit)?;
    let wrong = sent(OTHER.mac, ip(POD.v4, OTHER.v4).udp(1, 2));
    world.send(&wrong)?;
    world.apply(&[GuardOp::Detach(IFINDEX)])?;
    assert_eq!(world.counts()?[0].audited["mac"], 0);
    assert_eq!(world.counts()?[1].audited["mac"], 1);
    Ok(())
}

#[test]
fn whoever_comes_first_loads_the_guard_and_the_agent_brings_its_own_program() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    let pin = node.bpffs().join("yurt-net/guard-v1/yurt_guard_in");
    let id = || -> Result<String> {
        let program = Program::pinned(&pin)?;
        let info = format!("/proc/self/fdinfo/{}", program.fd().as_raw_fd());
        let info = fs::read_to_string(info)?;
        let line = info.lines().find(|line| line.starts_with("prog_id:"));
        Ok(line.context("no prog_id")?.to_owned())
    };
    let mut plugin = Guard::open(&node.bpffs(), None)?;
    let first = id()?;
    let row = GuardOp::PutRow(7, row(POD, Mode::Enforce));
    assert!(plugin.apply(std::slice::from_ref(&row)).failures.is_empty());
    let again = Guard::open(&node.bpffs(), None)?;
    assert_eq!(id()?, first, "the second one uses what is there");
    let agent = Guard::load(&node.bpffs(), None)?;
    assert_ne!(id()?, first);
    for mut guard in [plugin, again, agent] {
        assert_eq!(guard.observe()?.rows.len(), 1, "the maps are the same");
    }
    Ok(())
}
