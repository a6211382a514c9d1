use proptest::prelude::*;
use yurt_frames::guard::{Fixture, OTHER, POD, advertisement, fixtures, sent};
use yurt_frames::ip;

use super::tests::{Owned, find, row};
use super::*;

/// Fixtures with some bytes of theirs changed: close to what is judged, and not what anyone thought of.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let fixtures = fixtures().into_iter().map(|fixture: Fixture| fixture.frame);
    let fixtures: Vec<_> = fixtures.collect();
    let changes = proptest::collection::vec((0usize..160, any::<u8>()), 0..6);
    (proptest::sample::select(fixtures), changes).prop_map(|(mut frame, changes)| {
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame
    })
}

proptest! {
    #[test]
    fn no_frame_is_too_strange_to_be_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        find(&bytes, Some(&row(POD)), &Owned::new());
    }

    /// The kernel reads the first part of a frame only; the program reads on when it is told that this was not enough.
    #[test]
    fn a_part_of_a_wrong_frame_is_never_right(frame in frame(), cut in 0usize..160) {
        let row = row(POD);
        let whole = find(&frame, Some(&row), &Owned::new());
        let part = find(&frame[..cut.min(frame.len())], Some(&row), &Owned::new());
        prop_assert!(part.is_none() || part == whole, "{part:?} {whole:?}");
    }

    #[test]
    fn only_its_own_source_goes_on(source in any::<u32>(), destination in any::<u32>(), protocol in any::<u8>()) {
        let source = std::net::Ipv4Addr::from(source);
        let packet = ip(source, destination.to_be_bytes()).raw(protocol, &[0; 20]);
        let frame = sent(POD.mac, packet);
        let finding = find(&frame, Some(&row(POD)), &Owned::new());
        let is_right = finding.is_some_and(|finding| finding.reason.is_none());
        let is_group_of_nobody = source.is_unspecified() && protocol == 2 && destination >> 28 == 0xe;
        prop_assert_eq!(is_right, source == POD.v4 || is_group_of_nobody);
    }

    #[test]
    fn only_its_own_target_is_advertised(target in any::<u128>()) {
        let target = std::net::Ipv6Addr::from(target);
        let frame = sent(POD.mac, advertisement(POD.v6, target, POD.mac));
        let finding = find(&frame, Some(&row(POD)), &Owned::new()).unwrap();
        let is_own = target == POD.v6 || target == POD.link_local;
        prop_assert_eq!(finding.reason, (!is_own).then_some(Reason::Nd));
    }

    #[test]
    fn the_mode_of_an_owner_matters_only_where_something_is_wrong(frame in frame(), mode in 0u32..2) {
        let owner = OwnerRow { ifindex: 99, mode };
        let owners: Owned = [OTHER.v4.to_ipv6_mapped(), OTHER.v6]
            .map(|addr| (addr.octets(), owner))
            .into();
        let finding = find(&frame, Some(&row(POD)), &owners).unwrap_or_default();
        prop_assert!(finding.reason.is_some() || !finding.is_enforced_by_owner);
        prop_assert!(mode == GUARD_ENFORCE || !finding.is_enforced_by_owner);
    }
}
