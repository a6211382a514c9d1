//! Translation on a real Pod's device, between real stacks: a Pod that has another address than was promised to it.
//!
//! Two nodes. The Pod is on the first one; the peer is a Pod of the second, which has a route for the promised
//! addresses by the first.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net::dataplane::attach::tc::Method;
use yurt_net::dataplane::pod::guard::Guard;
use yurt_net::dataplane::pod::translate::Translate;
use yurt_net::device::{HostSide, Link};
use yurt_net::node::routes::Routes;
use yurt_net::pods::guard::Extra;
use yurt_net::pods::guard::GuardedPod;
use yurt_net::pods::guard::Mode;
use yurt_net::pods::translate::Candidate;
use yurt_net::pods::translate::Policy;
use yurt_net::pods::translate::Surroundings;
use yurt_net::pods::translate::TranslateImage;
use yurt_net::pods::translate::Wish;
use yurt_net::pods::translate::compile;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::lab::Netns;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;

use crate::guard::links;

const BOTH: [Method; 2] = [Method::Tcx, Method::Clsact];
const PATIENCE: Duration = Duration::from_secs(60);
/// What is not answered within this is not answered.
const SILENCE: Duration = Duration::from_millis(300);
const PORT: u16 = 8080;

/// Outside of the node's range of Pods, as after that was changed.
const AFAR: [&str; 2] = ["10.99.0.5", "fd00:99::5"];
/// In it: another IPAM leaves them out.
const NEAR: [&str; 2] = ["10.244.1.200", "fd00:244:1::200"];

struct Scene {
    translate: Mutex<Translate>,
    pods: Vec<Candidate>,
    pod: Pod,
    neighbour: Pod,
    peer: Pod,
    node: Node,
    other_node: Node,
    method: Option<Method>,
    promised: [IpAddr; 2],
    // Dropped last.
    _lab: Lab,
}

impl Scene {
    fn new(method: Option<Method>, promised: [&str; 2]) -> Result<Self> {
        let scene = Self::untranslated(method, promised)?;
        scene.sync()?;
        Ok(scene)
    }

    fn untranslated(method: Option<Method>, promised: [&str; 2]) -> Result<Self> {
        let lab = Lab::new()?;
        let (node, other_node) = (lab.node("edge-1")?, lab.node("edge-2")?);
        let (pod, neighbour) = (node.pod("pod")?, node.pod("neighbour")?);
        let peer = other_node.pod("peer")?;
        let [v4, v6] = promised;
        other_node.netns().ip(&format!(
            "route replace {v4}/32 via {}\nroute replace {v6}/128 via {}\n",
            node.ip4(),
            node.ip6()
        ))?;
        let translate = Translate::load(&node.bpffs(), method)?;
        let promised = [v4.parse()?, v6.parse()?];
        let mut scene = Self {
            translate: Mutex::new(translate),
            pods: Vec::new(),
            pod,
            neighbour,
            peer,
            node,
            other_node,
            method,
            promised,
            _lab: lab,
        };
        let candidate = scene.candidate("pod10")?;
        scene.pods.push(candidate);
        Ok(scene)
    }

    fn link(&self, name: &str) -> Result<Link> {
        let mut links = links(self.node.netns())?.into_iter();
        let found = links.find(|link| link.name == name);
        found.with_context(|| format!("no device {name}"))
    }

    fn candidate(&self, device: &str) -> Result<Candidate> {
        let Link {
            ifindex, other_end, ..
        } = self.link(device)?;
        Ok(Candidate {
            pod: "shop/pod".to_owned(),
            interface: "eth0".to_owned(),
            mac: Some(mac_of(self.pod.netns())?),
            live: vec![self.pod.ip4().into(), self.pod.ip6().into()],
            promised: self.promised.to_vec(),
            is_ours: true,
            host: Some(HostSide { ifindex, other_end }),
            wish: Wish::Nodes,
        })
    }

    fn live(&self) -> [IpAddr; 2] {
        [self.pod.ip4().into(), self.pod.ip6().into()]
    }

    fn peers(&self) -> [IpAddr; 2] {
        [self.peer.ip4().into(), self.peer.ip6().into()]
    }

    /// As the agent does it. Nothing may be refused, or fail.
    fn sync(&self) -> Result<()> {
        let links = links(self.node.netns())?;
        let policy = Policy {
            is_on: true,
            exclusive: Vec::new(),
        };
        self.inside(|| {
            let routes = Routes::open()?;
            let known = routes.known()?;
            let node = Surroundings {
                owners: &BTreeMap::new(),
                links: &links,
                local: &BTreeSet::new(),
                routes: &known,
                translated: &BTreeSet::new(),
            };
            let (wanted, complaints) = compile(&self.pods, node, &policy);
            ensure!(complaints.is_empty(), "{complaints:?}");
            bring(&self.translate, &wanted, &routes)
        })?
    }

    fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.node.netns().run(f)
    }

    /// Another agent after this one.
    fn restart(&mut self) -> Result<()> {
        self.translate = Mutex::new(Translate::load(&self.node.bpffs(), self.method)?);
        Ok(())
    }
}

fn bring(translate: &Mutex<Translate>, wanted: &TranslateImage, routes: &Routes) -> Result<()> {
    let mut translate = translate.lock().unwrap_or_else(PoisonError::into_inner);
    let failures = translate.bring_to(wanted, routes)?;
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}

/// The link-layer address of `eth0`.
fn mac_of(netns: &Netns) -> Result<[u8; 6]> {
    let mac = netns.run(|| {
        yurt_net::cni::interface::mac(&yurt_net::host::netns::Netns::current()?, "eth0")
            .map_err(anyhow::Error::from)
    })??;
    Ok(mac.0)
}

fn at(addr: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(addr, port)
}

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([0, 0, 0, 0]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    }
}

fn listen(pod: &Pod, like: IpAddr) -> Result<TcpListener> {
    Ok(pod
        .netns()
        .run(|| TcpListener::bind(at(any(like), PORT)))??)
}

fn dial(pod: &Pod, to: SocketAddr) -> Result<TcpStream> {
    let stream = pod
        .netns()
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    let stream = stream.with_context(|| format!("{} dials {to}", pod.name()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Dials, sends a word each way, and tells whom the server has seen and on which address it was dialled.
fn talk(client: &Pod, server: &TcpListener, to: IpAddr) -> Result<(IpAddr, IpAddr)> {
    let mut stream = dial(client, at(to, PORT))?;
    let (mut accepted, from) = server.accept()?;
    accepted.set_read_timeout(Some(PATIENCE))?;
    exchange(&mut stream, &mut accepted)?;
    Ok((from.ip(), accepted.local_addr()?.ip()))
}

fn exchange(one: &mut TcpStream, other: &mut TcpStream) -> Result<()> {
    let mut word = [0; 4];
    one.write_all(b"ping")?;
    other.read_exact(&mut word)?;
    other.write_all(b"pong")?;
    one.read_exact(&mut word)?;
    ensure!(&word == b"pong");
    Ok(())
}

fn datagrams(pod: &Pod, like: IpAddr, port: u16) -> Result<UdpSocket> {
    datagrams_at(pod, at(any(like), port))
}

fn datagrams_at(pod: &Pod, addr: SocketAddr) -> Result<UdpSocket> {
    let socket = pod.netns().run(|| UdpSocket::bind(addr))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks by a datagram of this size; tells whom the server has seen, and who seems to answer.
fn ask(
    client: &UdpSocket,
    server: &UdpSocket,
    to: IpAddr,
    size: usize,
) -> Result<(IpAddr, IpAddr)> {
    let mut buffer = vec![0; size + 1];
    let question = vec![7; size];
    client.send_to(&question, at(to, server.local_addr()?.port()))?;
    let (length, from) = server.recv_from(&mut buffer).context("the question")?;
    ensure!(buffer[..length] == question, "it is another question");
    server.send_to(&question, from)?;
    let (length, answered) = client.recv_from(&mut buffer).context("the answer")?;
    ensure!(buffer[..length] == question, "it is another answer");
    Ok((from.ip(), answered.ip()))
}

/// Pings an address; tells who has answered.
fn ping(pod: &Pod, to: IpAddr) -> Result<IpAddr> {
    use socket2::{Domain, Protocol, Socket, Type};
    let (domain, protocol, kind, answer) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = pod
        .netns()
        .run(|| Socket::new(domain, Type::RAW, Some(protocol)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut request = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
    if to.is_ipv4() {
        // The complement of the sum of its words.
        let sum = !(0x0800_u16 + 0x1234 + 1);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    socket.send_to(&request, &at(to, 0).into())?;
    let socket: UdpSocket = socket.into();
    let mut buffer = [0; 256];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).context("no answer")?;
        // IPv4 comes with its header.
        let message = match to {
            IpAddr::V4(_) => &buffer[20..length],
            IpAddr::V6(_) => &buffer[..length],
        };
        if message[0] == answer && message[4..6] == [0x12, 0x34] {
            return Ok(from.ip());
        }
    }
}

/// Each kind of promised address with each way to attach the programs.
fn everywhere() -> impl Iterator<Item = ([&'static str; 2], Method)> {
    let promised = [AFAR, NEAR].into_iter();
    promised.flat_map(|promised| BOTH.map(|method| (promised, method)))
}

#[test]
fn a_pod_is_reached_at_the_promised_address_from_everywhere_and_at_its_own_as_well() -> Result<()> {
    for (promised, method) in everywhere() {
        let scene = Scene::new(Some(method), promised)?;
        let host = scene.node.host()?;
        for (promised, live) in scene.promised.into_iter().zip(scene.live()) {
            let server = listen(&scene.pod, live)?;
            let answers = datagrams(&scene.pod, live, PORT)?;
            for client in [&scene.peer, &scene.neighbour, &host] {
                for to in [promised, live] {
                    let context = || format!("{method:?}: {} to {to}", client.name());
                    let (_, dialled) = talk(client, &server, to).with_context(context)?;
                    assert_eq!(dialled, live, "the Pod knows its own address only");
                    let question = datagrams(client, live, 0)?;
                    for size in [100, 4000] {
                        let (_, answered) =
                            ask(&question, &answers, to, size).with_context(context)?;
                        assert_eq!(answered, to, "{}", context());
                    }
                    assert_eq!(ping(client, to).with_context(context)?, to);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn what_a_pod_begins_comes_from_the_promised_address() -> Result<()> {
    for (promised, method) in everywhere() {
        let scene = Scene::new(Some(method), promised)?;
        let host = scene.node.host()?;
        for (index, promised) in scene.promised.into_iter().enumerate() {
            let addr = |pod: &Pod| [IpAddr::from(pod.ip4()), IpAddr::from(pod.ip6())][index];
            for server in [&scene.peer, &scene.neighbour, &host] {
                let to = addr(server);
                let listener = listen(server, to)?;
                let context = || format!("{method:?}: to {}", server.name());
                let (seen, _) = talk(&scene.pod, &listener, to).with_context(context)?;
                assert_eq!(seen, promised, "{}", context());
                let answers = datagrams_at(server, at(to, PORT))?;
                let question = datagrams(&scene.pod, to, 0)?;
                for size in [100, 4000] {
                    let (seen, answered) =
                        ask(&question, &answers, to, size).with_context(context)?;
                    assert_eq!((seen, answered), (promised, to), "{}", context());
                }
                assert_eq!(ping(&scene.pod, to).with_context(context)?, to);
            }
        }
    }
    Ok(())
}

#[test]
fn connections_at_either_address_go_on_without_an_agent_and_with_the_next_one() -> Result<()> {
    for method in BOTH {
        let mut scene = Scene::new(Some(method), AFAR)?;
        let mut open = Vec::new();
        for (index, (promised, live)) in scene.promised.into_iter().zip(scene.live()).enumerate() {
            let server = listen(&scene.pod, live)?;
            for to in [promised, live] {
                let stream = dial(&scene.peer, at(to, PORT))?;
                open.push((stream, server.accept()?.0));
            }
            let server = listen(&scene.peer, live)?;
            let stream = dial(&scene.pod, at(scene.peers()[index], PORT))?;
            open.push((stream, server.accept()?.0));
        }
        for (one, other) in &mut open {
            exchange(one, other)?;
        }
        scene.restart()?;
        for (one, other) in &mut open {
            exchange(one, other)?;
        }
        scene.sync()?;
        for (one, other) in &mut open {
            exchange(other, one)?;
        }
    }
    Ok(())
}

#[test]
fn a_port_that_nobody_serves_is_refused_in_the_name_of_the_address_that_was_asked() -> Result<()> {
    let scene = Scene::new(None, AFAR)?;
    for (promised, live) in scene.promised.into_iter().zip(scene.live()) {
        for to in [promised, live] {
            let socket = datagrams(&scene.peer, to, 0)?;
            socket.connect(at(to, 9))?;
            socket.send(b"anybody?")?;
            let refused = socket.recv(&mut [0; 16]).unwrap_err();
            assert_eq!(
                refused.kind(),
                std::io::ErrorKind::ConnectionRefused,
                "{to}"
            );
            let dialled = scene
                .peer
                .netns()
                .run(|| TcpStream::connect_timeout(&at(to, 9), PATIENCE))?;
            assert_eq!(
                dialled.unwrap_err().kind(),
                std::io::ErrorKind::ConnectionRefused,
                "{to}"
            );
        }
    }
    // And the Pod is told of ports that others do not serve.
    for to in scene.peers() {
        let socket = datagrams(&scene.pod, to, 0)?;
        socket.connect(at(to, 9))?;
        socket.send(b"anybody?")?;
        let refused = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{to}"
        );
    }
    Ok(())
}

#[test]
fn a_path_that_takes_only_small_packets_is_found_out_by_the_pod() -> Result<()> {
    const BYTES: usize = 1 << 20;
    let scene = Scene::new(None, AFAR)?;
    // The way back to the peer is narrower than either end knows.
    scene.other_node.netns().ip("link set br0 mtu 1300\n")?;
    for (index, (promised, live)) in scene.promised.into_iter().zip(scene.live()).enumerate() {
        let server = listen(&scene.peer, live)?;
        let mut stream = dial(&scene.pod, at(scene.peers()[index], PORT))?;
        let (mut accepted, from) = server.accept()?;
        assert_eq!(from.ip(), promised);
        accepted.set_read_timeout(Some(PATIENCE))?;
        let sender = thread::spawn(move || -> Result<()> {
            stream.write_all(&vec![7; BYTES])?;
            stream.shutdown(Shutdown::Write)?;
            Ok(())
        });
        let mut received = Vec::new();
        accepted
            .read_to_end(&mut received)
            .context("it does not all arrive")?;
        assert_eq!(received.len(), BYTES);
        sender.join().expect("the sender panicked")?;
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself_at_the_promised_address() -> Result<()> {
    for (promised, method) in everywhere() {
        let scene = Scene::new(Some(method), promised)?;
        for (promised, live) in scene.promised.into_iter().zip(scene.live()) {
            let server = listen(&scene.pod, live)?;
            let context = || format!("{method:?}: {promised}");
            let (seen, _) = talk(&scene.pod, &server, promised).with_context(context)?;
            assert_eq!(seen, promised);
            assert_eq!(ping(&scene.pod, promised).with_context(context)?, promised);
        }
    }
    Ok(())
}

#[test]
fn a_pod_behind_a_device_without_a_bridge_is_reached_by_a_route_to_it() -> Result<()> {
    let mut scene = Scene::untranslated(None, AFAR)?;
    let (v4, v6) = (scene.pod.ip4(), scene.pod.ip6());
    // As ptp and calico set it up: the node answers for everybody.
    scene.node.netns().ip(&format!(
        "link set pod10 nomaster\n\
         addr add 169.254.1.1/32 dev pod10\n\
         addr add fe80::1/64 dev pod10 nodad\n\
         route add {v4}/32 dev pod10\n\
         route add {v6}/128 dev pod10\n"
    ))?;
    scene.pod.netns().ip(&format!(
        "addr flush dev eth0 scope global\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         route add 169.254.1.1 dev eth0\n\
         route replace default via 169.254.1.1\n\
         route replace default via fe80::1 dev eth0\n"
    ))?;
    let candidate = scene.candidate("pod10")?;
    scene.pods = vec![candidate];
    scene.sync()?;
    for (index, (promised, live)) in scene.promised.into_iter().zip(scene.live()).enumerate() {
        let server = listen(&scene.pod, live)?;
        let host = scene.node.host()?;
        for client in [&scene.peer, &host] {
            for to in [promised, live] {
                talk(client, &server, to).with_context(|| format!("{} to {to}", client.name()))?;
            }
        }
        talk(&scene.pod, &server, promised).context("itself")?;
        let server = listen(&scene.peer, live)?;
        let (seen, _) = talk(&scene.pod, &server, scene.peers()[index])?;
        assert_eq!(seen, promised);
    }
    Ok(())
}

#[test]
fn the_guard_lets_through_what_is_translated_whichever_of_the_two_came_first() -> Result<()> {
    for method in BOTH {
        for is_guard_first in [true, false] {
            let scene = Scene::untranslated(Some(method), AFAR)?;
            let guard = || -> Result<Guard> {
                let mut guard = Guard::load(&scene.node.bpffs(), Some(method))?;
                let candidate = &scene.pods[0];
                let addresses = [&candidate.live[..], &candidate.promised].concat();
                let pod = GuardedPod {
                    namespace: "shop".to_owned(),
                    name: "pod".to_owned(),
                    interface: "eth0".to_owned(),
                    mac: candidate.mac,
                    addresses,
                    host: candidate.host,
                    extra: Extra::default(),
                };
                let policy = yurt_net::pods::guard::Policy {
                    mode: Mode::Enforce,
                    ..Default::default()
                };
                let links = links(scene.node.netns())?;
                let (wanted, _) = yurt_net::pods::guard::compile(
                    &[pod],
                    &links,
                    &yurt_net::pods::guard::Reserved::default(),
                    &policy,
                );
                let bring = || guard.bring_to(&wanted);
                let applied = scene.node.netns().run(bring)??;
                ensure!(applied.failures.is_empty(), "{applied:?}");
                Ok(guard)
            };
            if !is_guard_first {
                scene.sync()?;
            }
            let guard = guard()?;
            scene.sync()?;
            for (index, (promised, live)) in
                scene.promised.into_iter().zip(scene.live()).enumerate()
            {
                let server = listen(&scene.pod, live)?;
                talk(&scene.peer, &server, promised)?;
                let server = listen(&scene.peer, live)?;
                talk(&scene.pod, &server, scene.peers()[index])?;
            }
            let spoofs = guard.counters()?.of_all()?;
            let found: u64 = spoofs.dropped.values().sum();
            assert_eq!(
                found, 0,
                "{method:?} {is_guard_first}: {:?}",
                spoofs.dropped
            );
        }
    }
    Ok(())
}

#[test]
fn what_is_taken_back_leaves_the_pod_with_its_own_address_and_nothing_behind() -> Result<()> {
    for method in BOTH {
        let scene = Scene::new(Some(method), AFAR)?;
        let bring_none = || -> Result<()> {
            let routes = Routes::open()?;
            bring(&scene.translate, &TranslateImage::default(), &routes)?;
            ensure!(routes.ours()?.is_empty());
            Ok(())
        };
        scene.inside(bring_none)??;
        let pins = crate::kernel::pins(&scene.node.bpffs().join("yurt-net/tc"))?;
        assert!(pins.is_empty(), "{pins:?}");
        for (index, (promised, live)) in scene.promised.into_iter().zip(scene.live()).enumerate() {
            let server = listen(&scene.peer, live)?;
            crate::guard::until(|| {
                // The kernel takes a link off a moment after its last reference has gone.
                let (seen, _) = talk(&scene.pod, &server, scene.peers()[index])?;
                Ok(seen == live)
            })?;
            let socket = datagrams(&scene.peer, promised, 0)?;
            socket.set_read_timeout(Some(SILENCE))?;
            let _server = datagrams(&scene.pod, live, PORT)?;
            socket.send_to(b"anybody?", at(promised, PORT))?;
            assert!(socket.recv(&mut [0; 16]).is_err(), "{promised}");
        }
    }
    Ok(())
}

#[test]
fn a_route_of_somebody_else_is_no_agents_to_replace() -> Result<()> {
    let scene = Scene::untranslated(None, AFAR)?;
    let device = scene.link("br0")?.ifindex;
    scene
        .node
        .netns()
        .ip("route add 10.99.0.5/32 via 192.0.2.254\n")?;
    let put = || -> Result<_> {
        let routes = Routes::open()?;
        let refused = routes.put("10.99.0.5".parse()?, device).is_err();
        let others = routes
            .known()?
            .into_iter()
            .filter(|route| route.prefix.prefix() == 32);
        Ok((
            refused,
            others.map(|route| route.link).collect::<Vec<_>>(),
            routes.ours()?.len(),
        ))
    };
    assert_eq!(scene.inside(put)??, (true, vec![None], 0));
    let sync = scene.sync().unwrap_err().to_string();
    assert!(sync.contains("leads 10.99.0.5 elsewhere"), "{sync}");
    Ok(())
}
