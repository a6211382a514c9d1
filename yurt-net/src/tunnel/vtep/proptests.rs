//! Whatever happens, it is no fight; and when nothing happens any more, the device is right.

use proptest::prelude::*;

use super::tests::{VTEP, announced, keeper, mac, vxlan};
use super::*;
use crate::host::limit::{MINUTE, REPAIRS};

#[derive(Clone, Debug)]
enum Event {
    /// Somebody makes, changes or deletes the device.
    Device(Option<(u32, u8)>),
    /// The cloud says something, or is gone.
    Word(u8, bool),
    /// The next request of ours fails.
    Fail,
    /// Nothing.
    Rest,
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        4 => (1u32..4, 1u8..4).prop_map(|device| Event::Device(Some(device))),
        1 => Just(Event::Device(None)),
        2 => (1u8..4, any::<bool>()).prop_map(|(mac, is_fresh)| Event::Word(mac, is_fresh)),
        1 => Just(Event::Fail),
        2 => Just(Event::Rest),
    ];
    let pause = prop_oneof![3 => 0u64..50, 3 => 0u64..6_000, 1 => 0u64..90_000];
    proptest::collection::vec((pause, event), 0..120)
}

/// A device, and what was done to it.
struct World {
    keeper: Keeper,
    device: Option<Device>,
    fails: bool,
    /// When a MAC was set.
    set_at: Vec<u64>,
    /// When somebody else changed something, last.
    stirred_at: u64,
    /// It was left alone after the last decision.
    was_left_alone: bool,
}

impl World {
    fn is_left_alone(&self) -> bool {
        let report = self.keeper.report();
        let mut devices = report.devices.iter();
        devices.any(|device| device.name == VTEP && device.is_left_alone)
    }

    fn decide(&mut self, now: u64) {
        for action in self.keeper.decide(now) {
            let Action::SetMac { ifindex, to, .. } = action else {
                continue;
            };
            if self.was_left_alone {
                assert!(
                    now - self.stirred_at >= MINUTE,
                    "a fight at {now}: stirred at {}",
                    self.stirred_at
                );
            }
            self.set_at.push(now);
            let last = self
                .set_at
                .iter()
                .rev()
                .take_while(|&&at| now - at < MINUTE);
            assert!(last.count() <= REPAIRS, "{:?}", self.set_at);
            let device = self.device.as_mut().filter(|_| !self.fails);
            match device {
                Some(device) => {
                    assert_eq!(device.ifindex, ifindex);
                    device.mac = to;
                    self.keeper.see(VTEP, self.device, now);
                }
                None => self.keeper.failed(VTEP, now),
            }
        }
        self.was_left_alone = self.is_left_alone();
    }

    /// Time goes by, and what is due is decided.
    fn pass(&mut self, from: u64, to: u64) {
        let mut now = from;
        while let Some(due) = self.keeper.due().filter(|&due| due > now && due <= to) {
            now = due;
            self.decide(now);
        }
    }
}

proptest! {
    #[test]
    fn no_sequence_of_events_makes_a_fight_and_a_quiet_device_becomes_right(
        record in proptest::option::of(1u8..4),
        events in events(),
    ) {
        let records: Vec<_> = record.iter().map(|&last| (VTEP, last)).collect();
        let mut world = World {
            keeper: keeper(&records),
            device: None,
            fails: false,
            set_at: Vec::new(),
            stirred_at: 0,
            was_left_alone: false,
        };
        let mut now = 0;
        for (pause, event) in events {
            world.pass(now, now + pause);
            now += pause;
            match event {
                Event::Device(device) => {
                    let device = device.map(|(ifindex, last)| vxlan(ifindex, last));
                    if device != world.device {
                        world.stirred_at = now;
                    }
                    world.device = device;
                    world.keeper.see(VTEP, device, now);
                }
                Event::Word(last, is_fresh) => world.keeper.hear(announced(last), is_fresh, now),
                Event::Fail => world.fails = true,
                Event::Rest => world.fails = false,
            }
            world.decide(now);
        }
        world.fails = false;
        world.device = Some(vxlan(9, 9));
        world.stirred_at = now;
        world.keeper.see(VTEP, world.device, now);
        world.keeper.hear(announced(2), true, now);
        world.decide(now);
        world.pass(now, now + 3 * MINUTE);
        prop_assert_eq!(world.device.map(|device| device.mac), Some(mac(2)));
        prop_assert_eq!(world.keeper.records().get(VTEP).copied(), Some(mac(2)));
        prop_assert!(!world.is_left_alone());
    }
}
