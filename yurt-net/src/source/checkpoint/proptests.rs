use std::sync::Arc;

use proptest::prelude::*;

use super::tests::{cluster, provenance};
use super::*;
use crate::host::disk::memory::{Memory, Trouble};
use crate::model::NamespacedName;

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    Slice(u8, u8),
    NoSlice(u8),
    Service(u8, u16),
    NoService(u8),
    Node(u8, u8),
    NoNode(u8),
    Everything,
    /// The state is saved.
    Save(Occasion),
    /// The n-th operation on the disk from now on fails, or is the last.
    Trouble(usize, Trouble),
    /// The agent starts anew.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let occasion = prop_oneof![Just(Occasion::Changes), Just(Occasion::Everything)];
    let trouble = prop_oneof![Just(Trouble::Fails), Just(Trouble::Crashes)];
    prop_oneof![
        4 => (0u8..6, 0u8..5).prop_map(|(slice, endpoints)| Event::Slice(slice, endpoints)),
        1 => (0u8..6).prop_map(Event::NoSlice),
        1 => (0u8..6, 1u16..4).prop_map(|(service, port)| Event::Service(service, port)),
        1 => (0u8..6).prop_map(Event::NoService),
        1 => (0u8..3, 0u8..3).prop_map(|(node, label)| Event::Node(node, label)),
        1 => (0u8..3).prop_map(Event::NoNode),
        1 => Just(Event::Everything),
        6 => occasion.prop_map(Event::Save),
        3 => (1usize..12, trouble).prop_map(|(operation, trouble)| Event::Trouble(operation, trouble)),
        1 => Just(Event::Restart),
    ]
}

fn apply(snapshot: &mut Snapshot, template: &Snapshot, event: &Event) {
    let name = |i: &u8| NamespacedName::new("shop", format!("object-{i}"));
    match event {
        Event::Slice(i, endpoints) => {
            let mut slice = (**template.slices.first_key_value().unwrap().1).clone();
            slice.name = name(i);
            slice.endpoints.truncate(usize::from(*endpoints));
            snapshot.slices.insert(name(i), Arc::new(slice));
        }
        Event::NoSlice(i) => {
            snapshot.slices.remove(&name(i));
        }
        Event::Service(i, port) => {
            let mut service = (**template.services.first_key_value().unwrap().1).clone();
            service.name = name(i);
            service.ports[0].port = *port;
            snapshot.services.insert(name(i), Arc::new(service));
        }
        Event::NoService(i) => {
            snapshot.services.remove(&name(i));
        }
        Event::Node(i, label) => {
            let mut node = (**template.nodes.first_key_value().unwrap().1).clone();
            node.name = format!("node-{i}").into();
            node.labels.insert("zone".to_owned(), label.to_string());
            snapshot.nodes.insert(node.name.clone(), Arc::new(node));
        }
        Event::NoNode(i) => {
            snapshot.nodes.remove(&*format!("node-{i}"));
        }
        Event::Everything => snapshot.clone_from(template),
        Event::Save(_) | Event::Trouble(..) | Event::Restart => {}
    }
}

proptest! {
    #![proptest_config(crate::cases::cases(512))]

    /// Whatever fails, and whenever the power is cut: what is loaded is a whole state that was to be saved, and not
    /// older than the last one that the saver called saved.
    #[test]
    fn what_is_loaded_is_the_last_state_saved_or_one_that_was_being_saved(
        events in prop::collection::vec(event(), 1..60),
        luck in any::<usize>(),
    ) {
        let template = cluster();
        let mut disk = Memory::default();
        let (mut saver, _) = Saver::on(disk.clone());
        let mut snapshot = Snapshot::default();
        // The last state that was saved, and all that were tried after it.
        let mut allowed: Vec<Option<(Snapshot, Provenance)>> = vec![None];
        for (step, event) in (0u64..).zip(events.iter().chain([&Event::Restart])) {
            apply(&mut snapshot, &template, event);
            match event {
                Event::Trouble(operation, trouble) => disk.expect(*operation, *trouble),
                Event::Save(occasion) => {
                    let state = (snapshot.clone(), provenance(step));
                    match saver.save(Contents::of(&snapshot), &state.1, *occasion) {
                        Ok(true) => allowed = vec![Some(state)],
                        Ok(false) => {
                            let is_saved = |saved: &Option<(Snapshot, _)>| {
                                saved.as_ref().is_some_and(|(saved, _)| *saved == snapshot)
                            };
                            prop_assert!(allowed.iter().any(is_saved));
                        }
                        Err(_) => allowed.push(Some(state)),
                    }
                }
                _ => {}
            }
            let was_off = disk.is_off();
            if was_off || matches!(event, Event::Restart) {
                if was_off {
                    disk = disk.after_power_cut(luck.wrapping_add(usize::try_from(step)?));
                }
                let found;
                (saver, found) = Saver::on(disk.clone());
                let loaded = found.loaded.map(|loaded| (loaded.snapshot, loaded.provenance));
                prop_assert!(allowed.contains(&loaded), "{loaded:?}\nof {allowed:?}\n{:?}", found.problems);
                if let Some((loaded, _)) = &loaded {
                    snapshot.clone_from(loaded);
                }
                // Without a power cut, an unfinished attempt may be readable without being on the medium.
                if was_off {
                    allowed = vec![loaded];
                }
            }
        }
    }

    /// Bytes that are no checkpoint give an error and no panic.
    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200), is_ours: bool) {
        let mut file = Vec::new();
        if is_ours {
            file = Encoder::begin(file).unwrap().finish(&provenance(0)).unwrap().0;
        }
        let length = file.len();
        file.extend(&bytes);
        let replayed = codec::replay(file.as_slice());
        prop_assert_eq!(replayed.state.is_some(), is_ours);
        prop_assert_eq!(replayed.flaw.is_none(), is_ours && bytes.is_empty());
        if is_ours {
            prop_assert_eq!(replayed.end.length, u64::try_from(length)?);
        }
    }

    /// The records of any frame, under a right checksum: forged, or of another version.
    #[test]
    fn any_records_can_be_read(records in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..40) {
        let template = cluster();
        let mut bytes = Vec::new();
        for record in Contents::of(&template).records() {
            bytes = postcard::to_extend(&record, bytes).unwrap();
        }
        let keep = bytes.len() * cut / 40;
        bytes.truncate(keep);
        bytes.extend(&records);
        let mut file = Encoder::begin(Vec::new()).unwrap().finish(&provenance(0)).unwrap().0;
        let end = codec::replay(file.as_slice()).end;
        file = Encoder::resume(file, end).raw_frame(&bytes).unwrap();
        let replayed = codec::replay(file.as_slice());
        prop_assert!(replayed.state.is_some());
    }
}
