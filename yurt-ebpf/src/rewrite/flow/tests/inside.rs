//! Pods of this node as clients.

use super::*;

/// Of one family: a Pod, what it dials, a backend elsewhere, and this node at the Pod's device.
struct Inside {
    pod: SocketAddr,
    dialled: SocketAddr,
    backend: SocketAddr,
    gateway: IpAddr,
}

fn insides() -> [Inside; 2] {
    let inside = |[pod, dialled, backend, gateway]: [&str; 4]| Inside {
        pod: at(pod),
        dialled: at(dialled),
        backend: at(backend),
        gateway: ip(gateway),
    };
    [
        inside([
            "10.244.1.9:40000",
            "10.96.0.10:80",
            "10.244.2.5:8080",
            "192.0.2.11",
        ]),
        inside([
            "[fd00:244:1::9]:40000",
            "[fd00:96::10]:80",
            "[fd00:244:2::5]:8080",
            "2001:db8::11",
        ]),
    ]
}

impl Node {
    /// A Service at a frontend for clients inside alone.
    fn serve_inside(&mut self, protocol: u8, at: SocketAddr, backends: &[SocketAddr]) {
        let backends: Vec<String> = backends.iter().map(SocketAddr::to_string).collect();
        let backends: Vec<&str> = backends.iter().map(|backend| &**backend).collect();
        let index = self.add(&backends);
        let key = (at.ip(), at.port(), protocol, SCOPE_INTERNAL);
        self.rows.insert(key, (u32::try_from(index).unwrap(), 0));
    }

    /// What a Pod sends: what is done, and from where to where it goes.
    #[track_caller]
    fn pod_sends(&mut self, packet: &Sent) -> (Verdict, (SocketAddr, SocketAddr)) {
        let (verdict, after) = self.arrive_at::<true>(packet);
        assert_eq!(flaws(&after), [""; 0]);
        (verdict, ends(&after[14..]))
    }

    /// What goes to a Pod, likewise.
    #[track_caller]
    fn pod_gets(&mut self, packet: &Sent) -> (Verdict, (SocketAddr, SocketAddr)) {
        let (verdict, after) = self.leave_at::<true>(packet, true);
        assert_eq!(flaws(&after), [""; 0]);
        (verdict, ends(&after[14..]))
    }
}

const NEW: Verdict = Verdict::Is(Handled::NewFlow);
const TO_BACKEND: Verdict = Verdict::Is(Handled::ToBackend);
const TO_CLIENT: Verdict = Verdict::Is(Handled::ToClient);

#[test]
fn a_pod_sees_only_what_it_dialled_and_a_backend_sees_the_pod_itself() {
    for Inside {
        pod,
        dialled,
        backend,
        ..
    } in insides()
    {
        let mut node = Node::new();
        for protocol in [TCP, UDP] {
            node.serve_inside(protocol, dialled, &[backend]);
        }
        for (first, later, answer) in [
            (
                tcp(pod, dialled, SYN, b""),
                tcp(pod, dialled, ACK, b"question"),
                tcp(backend, pod, SYN | ACK, b""),
            ),
            (
                udp(pod, dialled, b"question"),
                udp(pod, dialled, b"another one"),
                udp(backend, pod, b"answer"),
            ),
        ] {
            // The row is for clients inside.
            assert_eq!(node.arrive(&first).0, Verdict::Pass);
            assert_eq!(node.pod_sends(&first), (NEW, (pod, backend)));
            assert_eq!(node.pod_gets(&answer), (TO_CLIENT, (dialled, pod)));
            assert_eq!(node.pod_sends(&later), (TO_BACKEND, (pod, backend)));
        }
        for packet in [
            tcp(pod, backend, ACK, b"question"),
            udp(pod, backend, b"question"),
        ] {
            assert_eq!(node.leave(&packet, true).0, Verdict::Pass);
            // So it does where the backend is a Pod of this node.
            assert_eq!(node.pod_gets(&packet).0, Verdict::Pass);
        }
    }
}

#[test]
fn a_pod_that_is_led_to_itself_is_seen_as_this_node() {
    for Inside {
        pod,
        dialled,
        gateway,
        ..
    } in insides()
    {
        let mut node = Node::new();
        let itself = SocketAddr::new(pod.ip(), 8080);
        for protocol in [TCP, UDP] {
            node.serve_inside(protocol, dialled, &[itself]);
        }
        let tcp = |from, to, flags| tcp(from, to, flags, b"");
        let udp = |from, to, _: u8| udp(from, to, b"");
        let packets: [&dyn Fn(SocketAddr, SocketAddr, u8) -> Sent; 2] = [&tcp, &udp];
        for packet in packets {
            assert_eq!(
                node.pod_sends(&packet(pod, dialled, SYN)),
                (NEW, (pod, itself))
            );
            let (verdict, (seen, to)) = node.pod_gets(&packet(pod, itself, SYN));
            assert_eq!((verdict, seen.ip(), to), (TO_BACKEND, gateway, itself));
            let answer = packet(itself, seen, SYN | ACK);
            assert_eq!(node.pod_sends(&answer), (TO_CLIENT, (itself, pod)));
            let answer = packet(itself, pod, SYN | ACK);
            assert_eq!(node.pod_gets(&answer), (TO_CLIENT, (dialled, pod)));
            let later = packet(pod, dialled, ACK);
            assert_eq!(node.pod_sends(&later), (TO_BACKEND, (pod, itself)));
            let later = node.pod_gets(&packet(pod, itself, ACK));
            assert_eq!(later, (TO_BACKEND, (seen, itself)));
        }
    }
}

#[test]
fn a_port_is_never_led_to_itself() {
    for Inside {
        pod,
        dialled,
        backend,
        ..
    } in insides()
    {
        let mut node = Node::new();
        node.serve_inside(UDP, dialled, &[pod]);
        node.serve_inside(TCP, dialled, &[pod, backend]);
        let (verdict, _) = node.pod_sends(&udp(pod, dialled, b""));
        assert_eq!(verdict, Verdict::Is(Handled::DropClash));
        let syn = tcp(pod, dialled, SYN, b"");
        for _ in 0..20 {
            assert_eq!(node.pod_sends(&syn), (NEW, (pod, backend)));
        }
    }
}

#[test]
fn a_pod_is_refused_where_its_service_has_nobody_inside() {
    for Inside { pod, dialled, .. } in insides() {
        let mut node = Node::new();
        node.serve_inside(TCP, dialled, &[]);
        let (verdict, _) = node.pod_sends(&tcp(pod, dialled, SYN, b""));
        assert_eq!(verdict, Verdict::Is(Handled::RefuseNoEndpoint));
    }
}
