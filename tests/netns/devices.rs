//! Programs on devices: they come and go with devices, come back when somebody takes them off, and leave others' alone.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_ebpf::abi::GuardRow;
use yurt_ebpf::abi::PlainRow;
use yurt_frames::guard::OTHER;
use yurt_net::dataplane::attach::cleanup::cleanup;
use yurt_net::dataplane::attach::tc::Method;
use yurt_net::dataplane::pod::guard::Guard;
use yurt_net::node::LinkWatch;
use yurt_net::pods::guard::Mode;

use crate::guard::Scene;
use crate::guard::guarded;
use crate::guard::lock;
use crate::guard::tc;
use crate::guard::until;
use crate::kernel;

const BOTH: [Method; 2] = [Method::Tcx, Method::Clsact];
const PATIENCE: Duration = Duration::from_secs(60);

fn tc_pins(scene: &Scene) -> Result<std::collections::BTreeMap<String, u32>> {
    kernel::pins(&scene.node.bpffs().join("yurt-net/tc"))
}

/// Follows devices inside the node, and is told of what happens.
fn told<T: Send>(scene: &Scene, happens: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    scene.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut watch = LinkWatch::new()?;
            let result = happens()?;
            let changed = tokio::time::timeout(PATIENCE, watch.changed()).await;
            changed.context("nothing is told")?;
            Ok(result)
        })
    })?
}

#[test]
fn a_device_that_appears_gets_the_guard_and_one_that_goes_takes_it_along() -> Result<()> {
    for method in BOTH {
        let scene = Scene::new(Mode::Audit, Some(method))?;
        let _third = told(&scene, || scene.node.pod("third"))?;
        let device = scene.link("pod12")?.ifindex;
        assert_eq!(scene.sync()?.attached, [device]);
        assert_eq!(tc_pins(&scene)?.len(), 3);
        told(&scene, || scene.node.netns().ip("link del pod12\n"))?;
        assert_eq!(scene.sync()?.attached, [0; 0]);
        assert_eq!(tc_pins(&scene)?.len(), 2, "nothing is kept of what is gone");
    }
    Ok(())
}

#[test]
fn a_device_that_goes_in_this_moment_is_no_failure() -> Result<()> {
    for method in BOTH {
        let scene = Scene::new(Mode::Audit, Some(method))?;
        let _third = scene.node.pod("third")?;
        let links = scene.links()?;
        let (wanted, _) = yurt_net::pods::guard::compile(
            &scene.pods,
            &links,
            &yurt_net::pods::guard::Reserved::default(),
            &scene.policy,
        );
        scene.node.netns().ip("link del pod12\n")?;
        let applied = scene.bring_to(&wanted)?;
        assert!(
            applied.failures.is_empty() && applied.attached.is_empty(),
            "{applied:?}"
        );
    }
    Ok(())
}

#[test]
fn the_guard_that_somebody_has_taken_off_is_put_back() -> Result<()> {
    let scene = Scene::new(Mode::Enforce, Some(Method::Tcx))?;
    let device = scene.link("pod10")?.ifindex;
    let pin = scene
        .node
        .bpffs()
        .join(format!("yurt-net/tc/{device}-yurt_guard_in"));
    kernel::detach(&kernel::get(&pin)?)?;
    scene.passes(&Scene::spoofed()).context("nobody guards")?;
    assert_eq!(scene.sync()?.attached, [device]);
    scene.is_stopped(&Scene::spoofed())?;
    fs::remove_file(&pin)?;
    scene.is_stopped(&Scene::spoofed())?;
    assert_eq!(scene.sync()?.attached, [device]);
    scene.is_stopped(&Scene::spoofed())?;

    let scene = Scene::new(Mode::Enforce, Some(Method::Clsact))?;
    let device = scene.link("pod10")?.ifindex;
    tc(&scene.node, "qdisc del dev pod10 clsact")?;
    scene.passes(&Scene::spoofed()).context("nobody guards")?;
    assert_eq!(scene.sync()?.attached, [device]);
    scene.is_stopped(&Scene::spoofed())?;
    Ok(())
}

#[test]
fn pins_that_are_removed_take_the_guard_off_no_device_and_are_made_again() -> Result<()> {
    for method in BOTH {
        let scene = Scene::new(Mode::Enforce, Some(method))?;
        let root = scene.node.bpffs().join("yurt-net");
        let all = || -> Result<_> { Ok((tc_pins(&scene)?, kernel::pins(&root.join("guard-v1"))?)) };
        let before = all()?;
        fs::remove_dir_all(&root)?;
        scene.is_stopped(&Scene::spoofed())?;
        let mut made = lock(&scene.guard).keep_pins()?;
        made.sort_unstable();
        assert!(made.iter().eq(before.1.keys()), "{made:?}");
        scene.sync()?;
        // The same maps, program and links.
        assert_eq!(all()?, before);
        scene.is_stopped(&Scene::spoofed())?;
        scene.passes(&Scene::honest())?;
        assert!(lock(&scene.guard).keep_pins()?.is_empty());
    }
    Ok(())
}

#[test]
fn a_qdisc_that_is_removed_is_told() -> Result<()> {
    let scene = Scene::new(Mode::Audit, Some(Method::Clsact))?;
    told(&scene, || tc(&scene.node, "qdisc del dev pod10 clsact"))
}

#[test]
fn an_agent_after_another_keeps_the_links_and_swaps_the_program() -> Result<()> {
    let mut scene = Scene::new(Mode::Enforce, Some(Method::Tcx))?;
    let links = tc_pins(&scene)?;
    let program = |scene: &Scene| -> Result<u32> {
        let pins = kernel::pins(&scene.node.bpffs().join("yurt-net/guard-v1"))?;
        pins.get("yurt_guard_in").copied().context("no program")
    };
    let first = program(&scene)?;
    scene.restart()?;
    assert!(scene.sync()?.attached.is_empty(), "they were there");
    assert_eq!(tc_pins(&scene)?, links);
    assert_ne!(program(&scene)?, first);
    scene.is_stopped(&Scene::spoofed())?;
    // And once more, for filters.
    let mut scene = Scene::new(Mode::Enforce, Some(Method::Clsact))?;
    scene.restart()?;
    assert!(scene.sync()?.attached.is_empty());
    scene.is_stopped(&Scene::spoofed())?;
    Ok(())
}

#[test]
fn a_row_that_somebody_has_changed_is_written_again() -> Result<()> {
    let scene = Scene::new(Mode::Enforce, None)?;
    let device = scene.link("pod10")?.ifindex;
    let maps = scene.node.bpffs().join("yurt-net/guard-v1");
    for (map, size) in [
        ("yurt_guard", size_of::<GuardRow>()),
        ("yurt_plain", size_of::<PlainRow>()),
    ] {
        let map = kernel::get(&maps.join(map))?;
        kernel::update(&map, &device.to_ne_bytes(), &vec![0; size])?;
        scene.sync()?;
        scene.passes(&Scene::honest())?;
        scene.is_stopped(&Scene::spoofed())?;
    }
    Ok(())
}

#[test]
fn an_index_that_is_given_again_is_another_device() -> Result<()> {
    let mut scene = Scene::new(Mode::Enforce, None)?;
    let device = scene.link("pod10")?.ifindex;
    scene.node.netns().ip("link del pod10\n")?;
    let netns = scene.pod.netns().path();
    scene.node.netns().ip(&format!(
        "link add pod10 index {device} type veth peer name eth0 netns {netns}\n\
         link set pod10 master br0 up\n"
    ))?;
    scene.pod.netns().ip(&format!(
        "link set eth0 up\naddr add {}/24 dev eth0\n",
        OTHER.v4
    ))?;
    // Whoever it is now, nothing of what was known of the last one holds: no agent has looked yet.
    scene.passes(&Scene::spoofed())?;
    let other = scene.link("pod10")?;
    let side = yurt_net::device::HostSide {
        ifindex: device,
        other_end: other.other_end,
    };
    scene.pods = vec![guarded("new", OTHER, side)];
    assert_eq!(scene.sync()?.attached, [device]);
    scene
        .is_stopped(&Scene::honest())
        .context("that is what the last one was")?;
    Ok(())
}

/// `BPF_PROG_TYPE_SCHED_CLS` that drops all: `r0 = 2; exit`.
fn foreign_program() -> Result<OwnedFd> {
    const DROP: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    kernel::load(3, &DROP)
}

/// A foreign tcx link on the ingress of a device.
fn foreign_link(scene: &Scene, program: &OwnedFd) -> Result<OwnedFd> {
    let device = scene.link("pod10")?.ifindex;
    scene.inside(|| kernel::attach_tcx(program, device))?
}

#[test]
fn a_foreign_program_before_or_after_ours_runs_as_if_ours_were_not_there() -> Result<()> {
    // After ours.
    let scene = Scene::new(Mode::Audit, Some(Method::Tcx))?;
    let program = foreign_program()?;
    let link = foreign_link(&scene, &program)?;
    scene
        .is_stopped(&Scene::spoofed())
        .context("theirs drops")?;
    assert_eq!(scene.counts()?, ["1 audited ipv4"], "ours counts");
    // Before ours: it was there first.
    scene.inside(|| cleanup(&scene.node.bpffs()))??;
    scene
        .is_stopped(&Scene::honest())
        .context("theirs is there still")?;
    drop(link);
    scene.passes(&Scene::honest())?;
    let link = foreign_link(&scene, &program)?;
    let mut scene = scene;
    scene.restart()?;
    scene.sync()?;
    scene.is_stopped(&Scene::spoofed())?;
    assert_eq!(
        scene.counts()?,
        ["1 audited ipv4"],
        "theirs does not hide it"
    );
    drop(link);
    scene.passes(&Scene::spoofed())?;
    Ok(())
}

/// A foreign filter, from a pin outside of ours.
fn foreign_filter(scene: &Scene, priority: u32) -> Result<PathBuf> {
    let pin = scene.node.bpffs().join("foreign");
    if !pin.exists() {
        kernel::pin(&foreign_program()?, &pin)?;
    }
    let shown = pin.display();
    let at = format!("dev pod10 ingress prio {priority} handle 1");
    tc(
        &scene.node,
        &format!("filter add {at} bpf da object-pinned {shown}"),
    )?;
    Ok(pin)
}

#[test]
fn a_foreign_filter_before_or_after_ours_runs_as_if_ours_were_not_there() -> Result<()> {
    for priority in [1, 49152] {
        for method in BOTH {
            let mut scene = Scene::new(Mode::Audit, Some(method))?;
            // After ours.
            if method == Method::Tcx {
                tc(&scene.node, "qdisc add dev pod10 clsact")?;
            }
            foreign_filter(&scene, priority)?;
            scene
                .is_stopped(&Scene::spoofed())
                .context("theirs drops")?;
            // Of filters of one kind and priority, the latest is the first.
            let is_ours_first = method == Method::Tcx || priority > 1;
            assert_eq!(scene.counts()?.len(), usize::from(is_ours_first));
            scene.inside(|| cleanup(&scene.node.bpffs()))??;
            scene
                .is_stopped(&Scene::honest())
                .context("theirs is there still")?;
            // Before ours: it was there first.
            scene.restart()?;
            assert_eq!(scene.sync()?.attached.len(), 2);
            scene
                .is_stopped(&Scene::spoofed())
                .context("theirs is there still")?;
            assert_eq!(
                scene.counts()?,
                ["1 audited ipv4"],
                "theirs does not hide it"
            );
            scene.inside(|| cleanup(&scene.node.bpffs()))??;
            let at = format!("dev pod10 ingress prio {priority} handle 1 bpf");
            tc(&scene.node, &format!("filter del {at}"))?;
            scene.passes(&Scene::honest())?;
        }
    }
    Ok(())
}

#[test]
fn cleanup_leaves_devices_as_if_there_had_been_no_guard() -> Result<()> {
    for method in BOTH {
        let scene = Scene::new(Mode::Enforce, Some(method))?;
        scene.is_stopped(&Scene::spoofed())?;
        ensure!(scene.inside(|| cleanup(&scene.node.bpffs()))??);
        // The kernel takes a link off a moment after its last reference has gone.
        until(|| Ok(scene.is_stopped(&Scene::spoofed()).is_err()))?;
        assert!(!scene.node.bpffs().join("yurt-net").exists());
    }
    Ok(())
}

#[test]
fn a_guard_whose_pins_another_bpffs_hides_is_taken_off_and_nobody_elses_program_is() -> Result<()> {
    for method in BOTH {
        let mut scene = Scene::new(Mode::Enforce, Some(method))?;
        let program = foreign_program()?;
        let theirs = foreign_link(&scene, &program)?;
        let strays = |scene: &Scene| scene.inside(|| lock(&scene.guard).strays());
        assert!(strays(&scene)?.found.is_empty());
        scene.node.hide_pins()?;
        // Whoever is guarded by maps that are kept has no stray, whatever has become of the pins.
        assert!(strays(&scene)?.found.is_empty());

        scene.restart()?;
        scene.policy.mode = Mode::Audit;
        scene.sync()?;
        let found = strays(&scene)?;
        // A filter is found where it is, and was swapped.
        let hidden = if method == Method::Tcx { 2 } else { 0 };
        assert_eq!(found.found.len(), hidden, "{found:?}");
        let failures = scene.inside(|| found.mend())?;
        assert!(failures.is_empty(), "{failures:?}");
        scene
            .is_stopped(&Scene::honest())
            .context("theirs is there still")?;
        drop(theirs);
        scene.passes(&Scene::honest())?;
        scene.passes(&Scene::spoofed())?;
        assert_eq!(scene.counts()?, ["1 audited ipv4"]);
        assert!(strays(&scene)?.found.is_empty());
    }
    Ok(())
}

#[test]
fn a_guard_that_is_withdrawn_is_on_no_device_wherever_it_is_pinned() -> Result<()> {
    for method in BOTH {
        let scene = Scene::new(Mode::Enforce, Some(method))?;
        scene.is_stopped(&Scene::spoofed())?;
        scene.node.hide_pins()?;
        scene.inside(|| Guard::withdraw(&scene.node.bpffs()))??;
        scene.passes(&Scene::spoofed())?;
    }
    Ok(())
}
