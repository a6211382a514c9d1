use proptest::prelude::*;

use super::*;

/// A small world, so that addresses and devices meet.
fn pod() -> impl Strategy<Value = GuardedPod> {
    let addresses = proptest::collection::vec(0u8..12, 0..4);
    let host = proptest::option::of((1u32..8, proptest::option::of(1u32..4)));
    let extra = proptest::collection::vec((0u8..4, 20u8..=32), 0..12);
    let extra_macs = proptest::collection::vec(mac(), 0..3);
    let mac = proptest::option::of(mac());
    let parts = (0u8..6, addresses, host, extra, mac, extra_macs);
    parts.prop_map(|(name, addresses, host, extra, mac, macs)| GuardedPod {
        namespace: format!("ns{}", name % 2),
        name: format!("pod{name}"),
        interface: "eth0".to_owned(),
        mac,
        addresses: addresses.into_iter().map(address).collect(),
        host: host.map(|(ifindex, other_end)| HostSide { ifindex, other_end }),
        extra: Extra {
            prefixes: extra
                .into_iter()
                .filter_map(|(net, bits)| IpNetwork::new([10, 244, net, 7].into(), bits).ok())
                .collect(),
            macs,
        },
    })
}

fn mac() -> impl Strategy<Value = [u8; 6]> {
    (0u8..8).prop_map(|last| [2, 0, 0, 0, 0, last])
}

fn address(number: u8) -> IpAddr {
    if number.is_multiple_of(2) {
        IpAddr::from([10, 244, 1, number])
    } else {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
    }
}

fn link() -> impl Strategy<Value = Link> {
    (1u32..8, 1u32..4, any::<bool>()).prop_map(|(ifindex, other_end, is_elsewhere)| Link {
        has_carrier: true,
        ifindex,
        name: format!("veth{ifindex}"),
        kind: "veth".to_owned(),
        other_end: Some(other_end),
        other_end_netns: is_elsewhere.then_some(0),
        ..Link::default()
    })
}

fn image() -> impl Strategy<Value = GuardImage> {
    let pods = proptest::collection::vec(pod(), 0..6);
    let links = proptest::collection::vec(link(), 0..6);
    (pods, links, any::<bool>()).prop_map(|(pods, links, is_enforced)| {
        let mut policy = Policy::default();
        if is_enforced {
            policy.enforced_namespaces.insert("ns1".to_owned());
        }
        compile(&pods, &links, &Reserved::default(), &policy).0
    })
}

fn write(image: &mut GuardImage, op: &GuardOp) {
    match op {
        GuardOp::PutRow(ifindex, row) => {
            image.rows.insert(*ifindex, row.clone());
        }
        GuardOp::PutOwner(addr, owner) => {
            image.owners.insert(*addr, *owner);
        }
        GuardOp::Attach(ifindex) => {
            image.attached.insert(*ifindex);
            image.lost.remove(ifindex);
        }
        GuardOp::Detach(ifindex) => {
            image.attached.remove(ifindex);
            image.lost.remove(ifindex);
        }
        GuardOp::DeleteRow(ifindex) => {
            image.rows.remove(ifindex);
        }
        GuardOp::DeleteOwner(addr) => {
            image.owners.remove(addr);
        }
    }
}

proptest! {
    #[test]
    fn a_plan_leads_from_any_image_to_any_other_and_from_anywhere_in_between(
        from in image(), to in image(), killed_after in 0usize..40,
    ) {
        let ops = plan(&from, &to);
        let mut image = from.clone();
        for op in ops.iter().take(killed_after) {
            write(&mut image, op);
        }
        for op in plan(&image, &to) {
            write(&mut image, &op);
        }
        prop_assert_eq!(image, to);
    }

    #[test]
    fn the_guard_is_never_on_a_device_before_its_row(from in image(), to in image()) {
        let mut image = from.clone();
        for op in plan(&from, &to) {
            write(&mut image, &op);
            for ifindex in image.attached.difference(&from.attached) {
                prop_assert_eq!(image.rows.get(ifindex), to.rows.get(ifindex));
            }
            // Nor does one that stays there lose its row on the way.
            for (ifindex, row) in &to.rows {
                if from.rows.get(ifindex) == Some(row) {
                    prop_assert_eq!(image.rows.get(ifindex), Some(row));
                }
            }
        }
    }

    /// Whatever Pods ask for, and whoever comes and goes.
    #[test]
    fn what_is_granted_holds_nothing_of_anybody_else(
        pods in proptest::collection::vec(pod(), 0..6), links in proptest::collection::vec(link(), 0..6),
    ) {
        let (image, _) = compile(&pods, &links, &Reserved::default(), &Policy::default());
        for (ifindex, row) in &image.rows {
            for (identity, owner) in &image.owners {
                let is_granted = match identity {
                    Identity::Ip(addr) => row.extra.iter().any(|prefix| prefix.contains(*addr)),
                    Identity::Mac(mac) => row.macs.iter().skip(1).any(|extra| extra == mac),
                };
                prop_assert!(!is_granted || owner.ifindex == Some(*ifindex), "{identity} {row:?}");
            }
        }
    }

    #[test]
    fn an_identity_has_one_owner_who_has_it_among_his_own(
        pods in proptest::collection::vec(pod(), 0..6), links in proptest::collection::vec(link(), 0..6),
    ) {
        let (image, _) = compile(&pods, &links, &Reserved::default(), &Policy::default());
        let has = |pod: &GuardedPod, identity: &Identity| match identity {
            Identity::Ip(addr) => pod.addresses.contains(addr),
            Identity::Mac(mac) => pod.mac == Some(*mac),
        };
        for (identity, owner) in &image.owners {
            prop_assert!(pods.iter().any(|pod| has(pod, identity)));
            if let Some(ifindex) = owner.ifindex {
                prop_assert!(image.attached.contains(&ifindex));
                let at = |pod: &&GuardedPod| pod.host.is_some_and(|host| host.ifindex == ifindex);
                prop_assert!(pods.iter().filter(at).any(|pod| has(pod, identity)));
            }
        }
        for row in image.rows.values() {
            let of = |is_v6| {
                let all = row.own.iter().chain(&row.extra);
                all.filter(|prefix| prefix.is_ipv6() == is_v6).count()
            };
            prop_assert!(of(false) <= MAX_PREFIXES && of(true) <= MAX_PREFIXES);
            prop_assert!(row.macs.len() <= MAX_MACS);
        }
    }
}
