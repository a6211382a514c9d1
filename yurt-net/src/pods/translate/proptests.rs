use proptest::prelude::*;

use super::*;

fn address(byte: u8) -> IpAddr {
    match byte % 2 {
        0 => Ipv4Addr::new(10, 99, 0, byte).into(),
        _ => Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, u16::from(byte)).into(),
    }
}

fn row() -> impl Strategy<Value = TranslateRow> {
    let v4 = prop::option::of(0u8..8);
    let v6 = prop::option::of(0u8..8);
    (v4, v6).prop_map(|(v4, v6)| TranslateRow {
        mac: [2; 6],
        v4: v4.map(|byte| Pair {
            live: Ipv4Addr::new(10, 244, 1, byte),
            promised: Ipv4Addr::new(10, 99, 0, byte * 2),
        }),
        v6: v6.map(|byte| Pair {
            live: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(byte)),
            promised: Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, u16::from(byte) * 2 + 1),
        }),
    })
}

/// What `compile` may say: programs where there are rows, routes by some device or another.
fn wanted() -> impl Strategy<Value = TranslateImage> {
    let rows = prop::collection::btree_map(1u32..6, row(), 0..5);
    (rows, 1u32..4).prop_map(|(rows, bridge)| {
        let mut image = TranslateImage::default();
        for (ifindex, row) in &rows {
            for direction in [Direction::ToPod, Direction::FromPod] {
                image.attached.insert((direction, *ifindex));
            }
            image.routes.extend(row.promised().map(|to| (to, bridge)));
        }
        image.rows = rows;
        image
    })
}

/// What there may be: whatever agents and others have left.
fn observed() -> impl Strategy<Value = TranslateImage> {
    let places = || {
        let direction = prop_oneof![Just(Direction::ToPod), Just(Direction::FromPod)];
        prop::collection::btree_set((direction, 1u32..6), 0..8)
    };
    let rows = prop::collection::btree_map(1u32..6, row(), 0..5);
    let routes = prop::collection::btree_set(((0u8..16).prop_map(address), 1u32..4), 0..6);
    (rows, places(), places(), routes).prop_map(|(rows, attached, lost, routes)| TranslateImage {
        lost: lost.difference(&attached).copied().collect(),
        rows,
        attached,
        routes,
    })
}

fn apply(image: &mut TranslateImage, op: &TranslateOp) {
    match op {
        TranslateOp::PutRoute(to, device) => {
            image.routes.insert((*to, *device));
        }
        TranslateOp::DeleteRoute(to, device) => {
            image.routes.remove(&(*to, *device));
        }
        TranslateOp::PutRow(ifindex, row) => {
            image.rows.insert(*ifindex, row.clone());
        }
        TranslateOp::DeleteRow(ifindex) => {
            image.rows.remove(ifindex);
        }
        TranslateOp::Attach(direction, ifindex) => {
            image.attached.insert((*direction, *ifindex));
            image.lost.remove(&(*direction, *ifindex));
        }
        TranslateOp::Detach(direction, ifindex) => {
            image.attached.remove(&(*direction, *ifindex));
            image.lost.remove(&(*direction, *ifindex));
        }
    }
}

/// Devices whose Pods appear with an address that does not come back to them.
fn unsafe_devices(image: &TranslateImage) -> BTreeSet<u32> {
    let from_pod = image.attached.iter();
    let from_pod = from_pod.filter(|(direction, _)| *direction == Direction::FromPod);
    let devices = from_pod.map(|(_, ifindex)| *ifindex);
    devices
        .filter(|ifindex| {
            let Some(row) = image.rows.get(ifindex) else {
                return false;
            };
            let comes_back = image.attached.contains(&(Direction::ToPod, *ifindex));
            let mut promised = row.promised();
            let is_led = promised.all(|to| image.routes.iter().any(|(led, _)| *led == to));
            row.promised().next().is_some() && !(comes_back && is_led)
        })
        .collect()
}

proptest! {
    #[test]
    fn applying_the_plan_gives_what_is_wanted_and_a_second_one_is_empty(mut image in observed(), wanted in wanted()) {
        for op in plan(&image, &wanted) {
            apply(&mut image, &op);
        }
        prop_assert_eq!(&image, &wanted);
        prop_assert_eq!(plan(&image, &wanted), []);
    }

    #[test]
    fn after_every_write_a_pod_appears_only_with_an_address_that_comes_back_to_it(
        before in wanted(), lost in prop::collection::btree_set(1u32..6, 0..3), wanted in wanted()
    ) {
        let mut image = before;
        // Somebody has taken programs off.
        for ifindex in lost {
            for direction in [Direction::FromPod, Direction::ToPod] {
                if image.attached.remove(&(direction, ifindex)) {
                    image.lost.insert((direction, ifindex));
                }
            }
        }
        prop_assert_eq!(unsafe_devices(&image), BTreeSet::new());
        for op in plan(&image, &wanted) {
            apply(&mut image, &op);
            prop_assert_eq!(unsafe_devices(&image), BTreeSet::new(), "after {:?}", op);
        }
    }
}
