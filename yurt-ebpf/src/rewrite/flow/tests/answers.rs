//! Who asked gets the answer, and nobody else does.

use super::*;

proptest! {
    /// Whatever is asked, in whatever order: who asked gets the answer, from the address that it dialled, and nobody
    /// else does. No two flows share a tuple, and none is dropped while there is a backend or a port for it.
    #[test]
    fn what_went_out_comes_back_to_who_sent_it(
        steps in proptest::collection::vec((0..4_u8, 0..3_u16, 0..3_usize, any::<bool>()), 1..60),
        seed in any::<u32>(),
        ports in 1..=8_u16,
    ) {
        let mut node = Node::new();
        node.random = Cell::new(seed);
        node.ports = (61000, ports);
        let frontends = ["192.0.2.11:30001", "192.0.2.11:30002", "203.0.113.9:80"];
        // Here, and on another node.
        let backends = ["10.244.1.5:80", "10.244.2.5:80"];
        for frontend in frontends {
            node.serve(UDP, &[frontend], &backends);
        }
        let (mut dialled_by, mut stands_for) = (BTreeMap::new(), BTreeMap::new());
        for (host, port, frontend, is_quiet) in steps {
            if is_quiet {
                node.now_s += FLOW_QUIET_S + 1;
                dialled_by.clear();
                stands_for.clear();
            }
            let client = SocketAddr::new(ip(&format!("198.51.100.{host}")), 61000 + port);
            let dialled = at(frontends[frontend]);
            let (verdict, after) = node.arrive(&udp(client, dialled, b"?"));
            match verdict {
                Verdict::Is(Handled::NewFlow | Handled::ToBackend) => {}
                other => {
                    prop_assert_eq!(other, Verdict::Is(Handled::DropClash));
                    for backend in backends {
                        prop_assert!(dialled_by.contains_key(&(client, at(backend))));
                    }
                    continue;
                }
            }
            let backend = ends(&after[14..]).1;
            prop_assert_eq!(*dialled_by.entry((client, backend)).or_insert(dialled), dialled);
            let is_here = backend == at(backends[0]);
            let mut answered = client;
            if !is_here {
                let (verdict, after) = node.leave(&udp(client, backend, b"?"), true);
                if verdict == Verdict::Is(Handled::DropNoPort) {
                    prop_assert_eq!(stands_for.len(), usize::from(ports));
                    dialled_by.remove(&(client, backend));
                    continue;
                }
                prop_assert_eq!(verdict, Verdict::Is(Handled::ToBackend));
                let seen = ends(&after[14..]).0;
                prop_assert_eq!(seen.ip(), ip("192.0.2.11"));
                prop_assert_eq!(*stands_for.entry(seen).or_insert(client), client);
                let (verdict, after) = node.arrive(&udp(backend, seen, b"!"));
                prop_assert_eq!(verdict, Verdict::Is(Handled::ToClient));
                answered = ends(&after[14..]).1;
            }
            prop_assert_eq!(answered, client);
            let (verdict, after) = node.leave(&udp(backend, answered, b"!"), true);
            prop_assert_eq!(verdict, Verdict::Is(Handled::ToClient));
            prop_assert_eq!(ends(&after[14..]), (dialled, client));
            prop_assert!(flaws(&after).is_empty());
        }
    }
}
