//! The guard on a real Pod's device: what a Pod spoofs, and what it may do.

use std::fs::File;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use yurt_frames::Packet;
use yurt_frames::guard::Host;
use yurt_frames::guard::OTHER;
use yurt_frames::guard::POD;
use yurt_frames::guard::fixtures;
use yurt_frames::guard::sent;
use yurt_frames::ip;
use yurt_net::dataplane::attach::tc::Method;
use yurt_net::dataplane::pod::guard::Applied;
use yurt_net::dataplane::pod::guard::Guard;
use yurt_net::device::{HostSide, Link};
use yurt_net::node::LinkWatch;
use yurt_net::pods::guard::Extra;
use yurt_net::pods::guard::GuardImage;
use yurt_net::pods::guard::GuardedPod;
use yurt_net::pods::guard::Mode;
use yurt_net::pods::guard::Policy;
use yurt_net::pods::guard::Reserved;
use yurt_net::pods::guard::compile;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::lab::Netns;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;

/// What is on its way when a call returns has arrived by then, nearly always.
const SETTLE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);

/// Two Pods on one bridge, with the addresses of [`POD`] and [`OTHER`], and a guard without an agent.
pub(crate) struct Scene {
    pub(crate) guard: Mutex<Guard>,
    pub(crate) pods: Vec<GuardedPod>,
    pub(crate) policy: Policy,
    pub(crate) pod: Pod,
    pub(crate) other: Pod,
    pub(crate) node: Node,
    method: Option<Method>,
    // Dropped last.
    _lab: Lab,
}

impl Scene {
    pub(crate) fn new(mode: Mode, method: Option<Method>) -> Result<Self> {
        let lab = Lab::new()?;
        let node = lab.node("edge-1")?;
        let (pod, other) = (node.pod("pod")?, node.pod("other")?);
        for (pod, host) in [(&pod, POD), (&other, OTHER)] {
            assert_eq!((pod.ip4(), pod.ip6()), (host.v4, host.v6));
            dress(pod.netns(), host)?;
        }
        let guard = Guard::load(&node.bpffs(), method)?;
        let mut scene = Self {
            guard: Mutex::new(guard),
            pods: Vec::new(),
            policy: Policy {
                mode,
                ..Policy::default()
            },
            pod,
            other,
            node,
            method,
            _lab: lab,
        };
        let guarded = guarded("pod", POD, scene.host_side("pod10")?);
        scene.pods.push(guarded);
        let applied = scene.sync()?;
        let attached: Vec<u32> = ["pod10", "pod11"]
            .iter()
            .map(|name| Ok(scene.link(name)?.ifindex))
            .collect::<Result<_>>()?;
        assert_eq!(applied.attached, attached);
        Ok(scene)
    }

    pub(crate) fn links(&self) -> Result<Vec<Link>> {
        links(self.node.netns())
    }

    pub(crate) fn link(&self, name: &str) -> Result<Link> {
        let mut links = self.links()?.into_iter();
        links
            .find(|link| link.name == name)
            .with_context(|| format!("no device {name}"))
    }

    pub(crate) fn host_side(&self, name: &str) -> Result<HostSide> {
        let Link {
            ifindex, other_end, ..
        } = self.link(name)?;
        Ok(HostSide { ifindex, other_end })
    }

    /// As the agent does it when a device or a Pod has changed. Nothing may fail.
    pub(crate) fn sync(&self) -> Result<Applied> {
        let links = self.links()?;
        let (wanted, complaints) = compile(&self.pods, &links, &Reserved::default(), &self.policy);
        ensure!(complaints.is_empty(), "{complaints:?}");
        let applied = self.bring_to(&wanted)?;
        ensure!(applied.failures.is_empty(), "{applied:?}");
        Ok(applied)
    }

    pub(crate) fn bring_to(&self, wanted: &GuardImage) -> Result<Applied> {
        let bring = || lock(&self.guard).bring_to(wanted);
        Ok(self.inside(bring)??)
    }

    pub(crate) fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.node.netns().run(f)
    }

    /// Another agent after this one.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.guard = Mutex::new(Guard::load(&self.node.bpffs(), self.method)?);
        Ok(())
    }

    /// The counts of the first Pod that are not zero.
    pub(crate) fn counts(&self) -> Result<Vec<String>> {
        let spoofs = lock(&self.guard)
            .counters()?
            .of_device(self.link("pod10")?.ifindex)?;
        let counts = [("audited", spoofs.audited), ("dropped", spoofs.dropped)];
        let mut told = Vec::new();
        for (what, counts) in counts {
            let counts = counts.into_iter().filter(|(_, count)| *count > 0);
            told.extend(counts.map(|(reason, count)| format!("{count} {what} {reason}")));
        }
        Ok(told)
    }

    /// Sends a frame from the first Pod, which comes out at the other one.
    pub(crate) fn passes(&self, frame: &[u8]) -> Result<()> {
        ensure!(self.arrives_within(frame, PATIENCE)?, "it does not arrive");
        Ok(())
    }

    /// Sends a frame from the first Pod, which does not come out at the other one.
    pub(crate) fn is_stopped(&self, frame: &[u8]) -> Result<()> {
        ensure!(!self.arrives_within(frame, SETTLE)?, "it arrives");
        Ok(())
    }

    fn arrives_within(&self, frame: &[u8], patience: Duration) -> Result<bool> {
        let mut arrivals = Arrivals::start(self.other.netns())?;
        send(self.pod.netns(), frame)?;
        let sent = untagged(frame);
        // Who receives a packet takes off what is padding.
        arrivals.see_within(patience, |arrived| sent.starts_with(arrived))
    }

    /// A frame with a source that is not the Pod's.
    pub(crate) fn spoofed() -> Vec<u8> {
        sent(POD.mac, ip(OTHER.v4, OTHER.v4).udp(1, 2).data(b"spoofed"))
    }

    /// A frame that is right.
    pub(crate) fn honest() -> Vec<u8> {
        sent(POD.mac, ip(POD.v4, OTHER.v4).udp(1, 2).data(b"honest"))
    }
}

pub(crate) fn lock(guard: &Mutex<Guard>) -> MutexGuard<'_, Guard> {
    guard.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn guarded(name: &str, host: Host, side: HostSide) -> GuardedPod {
    GuardedPod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        interface: "eth0".to_owned(),
        mac: Some(host.mac),
        addresses: vec![host.v4.into(), host.v6.into()],
        host: Some(side),
        extra: Extra::default(),
    }
}

/// Gives a Pod the link-layer address of a host, and the address that comes from it. (The device stays up: a bridge
/// lets one that comes up again forward only when the kernel next looks at carriers, up to a second later.)
fn dress(netns: &Netns, host: Host) -> Result<()> {
    let [a, b, c, d, e, f] = host.mac;
    netns.ip(&format!(
        "link set eth0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}\n\
         addr flush dev eth0 scope link\n\
         addr add {}/64 dev eth0 nodad\n",
        host.link_local
    ))
}

pub(crate) fn links(netns: &Netns) -> Result<Vec<Link>> {
    netns.run(|| -> Result<Vec<Link>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { Ok(LinkWatch::new()?.links().await?) })
    })?
}

/// A packet socket on `eth0` of a namespace.
fn packet_socket(netns: &Netns, protocol: u16) -> Result<File> {
    netns.run(|| -> Result<File> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol.to_be())) };
        ensure!(fd >= 0, io::Error::last_os_error());
        // SAFETY: just opened, and owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain data, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_protocol = protocol.to_be();
        // SAFETY: a name that ends in zero.
        address.sll_ifindex = i32::try_from(unsafe { libc::if_nametoindex(c"eth0".as_ptr()) })?;
        let length = libc::socklen_t::try_from(size_of_val(&address))?;
        // SAFETY: a valid address of this length.
        let result = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
        ensure!(result == 0, io::Error::last_os_error());
        Ok(File::from(socket))
    })?
}

pub(crate) fn send(netns: &Netns, frame: &[u8]) -> Result<()> {
    let sent = packet_socket(netns, 0)?
        .write(frame)
        .context("send a frame")?;
    ensure!(sent == frame.len());
    Ok(())
}

/// What comes to a namespace.
pub(crate) struct Arrivals(File);

impl Arrivals {
    pub(crate) fn start(netns: &Netns) -> Result<Self> {
        const ALL: u16 = 3;
        packet_socket(netns, ALL).map(Self)
    }

    fn see_within(&mut self, patience: Duration, is_it: impl Fn(&[u8]) -> bool) -> Result<bool> {
        let seen = self.next(patience, |frame| is_it(frame).then_some(()))?;
        Ok(seen.is_some())
    }

    /// What is read out of the next frame that it can be read out of.
    pub(crate) fn next<T>(
        &mut self,
        patience: Duration,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + patience;
        let mut frame = [0; 2048];
        loop {
            match self.0.read(&mut frame) {
                Ok(length) => {
                    let found = read(&frame[..length]);
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Ok(None);
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(e).context("read a frame"),
            }
        }
    }
}

/// As a packet socket shows a frame: the kernel takes the tag off.
fn untagged(frame: &[u8]) -> Vec<u8> {
    match &frame[12..14] {
        [0x81, 0x00] | [0x88, 0xa8] => [&frame[..12], &frame[16..]].concat(),
        _ => frame.to_vec(),
    }
}

#[test]
fn everything_that_an_audited_pod_sends_arrives_and_what_is_spoofed_is_counted() -> Result<()> {
    for method in [Method::Tcx, Method::Clsact] {
        let scene = Scene::new(Mode::Audit, Some(method))?;
        let mut expected = std::collections::BTreeMap::new();
        // Another's link-layer address comes last: the bridge believes it, and leads the other's frames to the Pod.
        let mut fixtures = fixtures();
        fixtures.sort_by_key(|fixture| fixture.reason == Some("mac"));
        for fixture in fixtures {
            let arrival = match fixture.reason {
                // Of the malformed ones not all are to the kernel's liking.
                Some("mac" | "malformed") => send(scene.pod.netns(), &fixture.frame),
                _ => scene.passes(&fixture.frame),
            };
            arrival.with_context(|| format!("{method:?}: {}", fixture.name))?;
            if let Some(reason) = fixture.reason {
                *expected.entry(reason).or_insert(0) += 1;
            }
        }
        let expected = expected
            .into_iter()
            .map(|(reason, count)| format!("{count} audited {reason}"));
        assert_eq!(scene.counts()?, expected.collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn what_is_spoofed_by_a_pod_of_which_it_is_enforced_does_not_arrive_and_all_else_does() -> Result<()>
{
    for method in [Method::Tcx, Method::Clsact] {
        let scene = Scene::new(Mode::Enforce, Some(method))?;
        for fixture in fixtures() {
            let arrival = match fixture.reason {
                Some(_) => scene.is_stopped(&fixture.frame),
                None => scene.passes(&fixture.frame),
            };
            arrival.with_context(|| format!("{method:?}: {}", fixture.name))?;
        }
    }
    Ok(())
}

/// A bridge leads the gateway's frames to whoever has sent from its MAC last.
#[test]
fn no_annotation_gives_a_pod_the_mac_that_the_node_knows_its_gateway_by() -> Result<()> {
    let mut scene = Scene::new(Mode::Enforce, None)?;
    let links = scene.links()?;
    let uplink = links.iter().find(|link| !link.gateways.is_empty());
    let Link { name, gateways, .. } = uplink.context("no default route")?;
    let gateway = gateways[0];
    let netns = scene.node.netns();
    netns.ip(&format!(
        "neigh replace {gateway} lladdr 02:00:00:00:00:fe dev {name}\n"
    ))?;
    let mac = [2, 0, 0, 0, 0, 0xfe];
    scene.pods[0].extra.macs.push(mac);
    let (wanted, complaints) = compile(
        &scene.pods,
        &scene.links()?,
        &Reserved::default(),
        &scene.policy,
    );
    let reasons: Vec<_> = complaints.iter().map(|c| &*c.reason).collect();
    let told = format!("02:00:00:00:00:fe: it belongs to {gateway}, the gateway of this node");
    assert!(
        reasons.iter().any(|reason| reason.contains(&told)),
        "{reasons:?}"
    );
    scene.bring_to(&wanted)?;
    let datagram = |packet: Packet| packet.udp(1, 2).data(b"gateway");
    scene.is_stopped(&sent(mac, datagram(ip(POD.v4, OTHER.v4))))?;
    scene.passes(&Scene::honest())
}

/// The annotation is a tenant's to write; a bridge leads a MAC's frames to whoever has sent from it last.
#[test]
fn an_annotation_with_anothers_mac_or_network_gives_a_pod_nothing() -> Result<()> {
    let mut scene = Scene::new(Mode::Enforce, None)?;
    let host = scene.host_side("pod11")?;
    let mut wishes = Extra {
        prefixes: vec!["0.0.0.0/0".parse()?, "10.244.1.0/24".parse()?],
        macs: vec![OTHER.mac],
    };
    let vrrp = [0, 0, 0x5e, 0, 1, 51];
    wishes.macs.push(vrrp);
    scene.pods[0].extra = wishes;
    scene.pods.push(guarded("victim", OTHER, host));
    let pods = &scene.pods;
    let (wanted, complaints) = compile(pods, &scene.links()?, &Reserved::default(), &scene.policy);
    let reasons: Vec<_> = complaints.iter().map(|c| (&*c.pod, &*c.reason)).collect();
    let [(pod, reason)] = &reasons[..] else {
        bail!("{reasons:?}");
    };
    assert_eq!(*pod, "default/pod");
    let refused = ["0.0.0.0/0: ", "10.244.1.0/24: ", "0a:58:0a:f4:01:0b: "];
    assert!(refused.iter().all(|wish| reason.contains(wish)), "{reason}");
    scene.bring_to(&wanted)?;
    let datagram = |packet: Packet| packet.udp(1, 2).data(b"mine by now");
    let as_victim = sent(OTHER.mac, datagram(ip(POD.v4, OTHER.v4)));
    scene.is_stopped(&as_victim)?;
    scene.is_stopped(&Scene::spoofed())?;
    assert_eq!(scene.counts()?, ["1 dropped ipv4", "1 dropped mac"]);
    // What is nobody's is given.
    scene.passes(&sent(vrrp, datagram(ip(POD.v4, OTHER.v4))))
}

#[test]
fn an_enforced_pod_talks_to_its_neighbours_and_comes_up_again_with_its_addresses() -> Result<()> {
    let mut scene = Scene::new(Mode::Enforce, None)?;
    let side = scene.host_side("pod11")?;
    scene.pods.push(guarded("other", OTHER, side));
    scene.sync()?;
    scene.other.serve_tcp(8080)?.serve_udp(8080)?;
    // ARP, neighbour discovery, duplicate address detection of both addresses.
    for pod in [&scene.pod, &scene.other] {
        let sysctl = || std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "1");
        pod.netns().run(sysctl)??;
        let v6 = pod.ip6();
        pod.netns().ip(&format!(
            "link set eth0 down\nlink set eth0 up\naddr replace {v6}/64 dev eth0\n"
        ))?;
    }
    // While all of its addresses are tentative, Linux sends from `::1`: that is not the Pod's.
    for pod in [&scene.pod, &scene.other] {
        until(|| Ok(!pod.netns().run(has_tentative)??))?;
    }
    until(|| Ok(scene.pod.get(&scene.other.at4(8080)).is_ok()))?;
    assert_eq!(scene.pod.get(&scene.other.at6(8080))?, "other");
    let link_local = format!("[{}%2]:8080", OTHER.link_local);
    let index = scene.pod.netns().run(|| {
        // SAFETY: a name that ends in zero.
        unsafe { libc::if_nametoindex(c"eth0".as_ptr()) }
    })?;
    let link_local = link_local.replace("%2", &format!("%{index}"));
    assert_eq!(scene.pod.get(&link_local)?, "other");
    assert_eq!(scene.counts()?, Vec::<String>::new());
    Ok(())
}

/// Whether duplicate address detection is under way: a flag in the fifth column of `/proc/net/if_inet6`.
fn has_tentative() -> Result<bool> {
    const TENTATIVE: u32 = 0x40;
    let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6")?;
    let flags = addresses
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4));
    let mut flags = flags.filter_map(|flags| u32::from_str_radix(flags, 16).ok());
    Ok(flags.any(|flags| flags & TENTATIVE != 0))
}

pub(crate) fn until(mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "not in time");
        thread::sleep(SETTLE);
    }
    Ok(())
}

#[test]
fn a_frame_whose_headers_are_not_in_the_linear_part_is_judged_as_any_other() -> Result<()> {
    let scene = Scene::new(Mode::Enforce, None)?;
    let long = [0; 6000];
    for (source, expected) in [(POD.v4, true), (OTHER.v4, false)] {
        let frame = sent(POD.mac, ip(source, OTHER.v4).udp(1, 2).data(&long));
        let mut arrivals = Arrivals::start(scene.other.netns())?;
        send_scattered(&scene, &frame)?;
        let patience = if expected { PATIENCE } else { SETTLE };
        let is_it = |arrived: &[u8]| arrived.get(..34) == Some(&frame[..34]);
        assert_eq!(arrivals.see_within(patience, is_it)?, expected);
    }
    assert_eq!(scene.counts()?, ["1 dropped ipv4"]);
    Ok(())
}

/// Sends a frame of which only the Ethernet header is linear (`packet_alloc_skb` in net/packet/af_packet.c).
fn send_scattered(scene: &Scene, frame: &[u8]) -> Result<()> {
    const PACKET_VNET_HDR: libc::c_int = 15;
    for netns in [scene.pod.netns(), scene.other.netns()] {
        netns.ip("link set eth0 mtu 9000\n")?;
    }
    scene
        .node
        .netns()
        .ip("link set pod10 mtu 9000\nlink set pod11 mtu 9000\n")?;
    let mut socket = packet_socket(scene.pod.netns(), 0)?;
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: `on` is valid for reads of its length.
    let result = unsafe {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        let value = (&raw const on).cast();
        libc::setsockopt(fd, libc::SOL_PACKET, PACKET_VNET_HDR, value, length)
    };
    ensure!(result == 0, io::Error::last_os_error());
    // struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
    let mut header = [0; 10];
    header[2..4].copy_from_slice(&14u16.to_ne_bytes());
    let message = [&header[..], frame].concat();
    let sent = socket.write(&message).context("send a scattered frame")?;
    ensure!(sent == message.len());
    Ok(())
}

/// Runs `tc` on the node.
pub(crate) fn tc(node: &Node, arguments: &str) -> Result<()> {
    let output = node.netns().run(|| {
        Command::new("tc")
            .args(arguments.split_whitespace())
            .output()
    })??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc {arguments}: {said}");
    Ok(())
}
