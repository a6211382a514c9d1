//! The decision over sets, ranges and words made up at random.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::Fake;
use super::*;
use crate::abi::mapped;

proptest! {
    #[test]
    fn the_search_finds_what_is_in_the_set_and_nothing_else(
        set in proptest::collection::btree_set((0..40u8, 0..3u8), 1..300),
        wanted in (0..40u8, 0..3u8),
        before in 0..5usize,
        after in 0..3usize,
    ) {
        let set: BTreeSet<(u8, u8)> = set;
        let backend4 = |&(id, port): &(u8, u8)| Backend4 {
            addr: [id % 3 * 100, 0, 0, id], port_be: [0, port], pad: [0; 2],
        };
        let backend6 = |&(id, port): &(u8, u8)| {
            let mut addr = [id % 2 * 255; 16];
            addr[15] = id;
            Backend6 { addr, port_be: [port, 0], pad: [0; 6] }
        };
        let mut four: Vec<Backend4> = set.iter().map(backend4).collect();
        four.sort_by_key(|b| (b.addr, b.port_be));
        let mut six: Vec<Backend6> = set.iter().map(backend6).collect();
        six.sort_by_key(|b| (b.addr, b.port_be));
        // Neighbours hold what is wanted, and must not be looked at.
        let count = u16::try_from(set.len()).unwrap();
        let around4 = |n| vec![backend4(&wanted); n];
        let around6 = |n| vec![backend6(&wanted); n];
        let fake = Fake {
            backends4: [around4(before), four, around4(after)].concat(),
            backends6: [around6(before), six, around6(after)].concat(),
            ..Fake::default()
        };
        let word = PublishWord::new(u32::try_from(before).unwrap(), count, 1);
        prop_assert_eq!(contains4(&fake, word, &backend4(&wanted)), set.contains(&wanted));
        prop_assert_eq!(contains6(&fake, word, &backend6(&wanted)), set.contains(&wanted));
    }

    #[test]
    fn an_ipv6_range_admits_what_shares_its_prefix(addr: u128, client: u128, shared in 0..=128u32, length in 0..=128u8) {
        // Clients that agree with the range in the first bits.
        let mask = |length: u32| u128::MAX.checked_shl(128 - length).unwrap_or(0);
        let client = (addr & mask(shared)) | (client & !mask(shared));
        let network = addr & mask(u32::from(length));
        let range = Backend6::range(network.to_be_bytes(), length);
        let is_inside = client & mask(u32::from(length)) == network;
        prop_assert_eq!(range.admits(&client.to_be_bytes()), is_inside);
    }

    #[test]
    fn a_client_is_admitted_if_one_of_the_ranges_has_it(
        ranges in proptest::collection::vec((0..32u8, 24..=32u8), 1..100),
        client in 1..=255u8,
    ) {
        // Small networks close to each other, and none inside another, as plans write them.
        let mask = |length: u8| u32::MAX << (32 - u32::from(length));
        let network = |&(number, length): &(u8, u8)| (0x0a00_0000 | ((u32::from(number) * 8) & mask(length)), length);
        let ranges: BTreeSet<(u32, u8)> = ranges.iter().map(network).collect();
        let mut kept: Vec<(u32, u8)> = Vec::new();
        for (addr, length) in ranges {
            if kept.last().is_none_or(|(last, length)| addr & mask(*length) != *last) {
                kept.push((addr, length));
            }
        }
        let range4 = |(addr, length): &(u32, u8)| Backend4::range(addr.to_be_bytes(), mask(*length).to_be_bytes());
        let range6 = |(addr, length): &(u32, u8)| Backend6::range(mapped(addr.to_be_bytes()), 96 + length);
        let addr4 = (0x0a00_0000 | u32::from(client)).to_be_bytes();
        let word = PublishWord::new(1, 0, 1).with_ranges(u8::try_from(kept.len()).unwrap());
        let fake = Fake {
            backends4: std::iter::once(Backend4::default()).chain(kept.iter().map(range4)).collect(),
            backends6: std::iter::once(Backend6::default()).chain(kept.iter().map(range6)).collect(),
            client: Some(NetnsRow { addr4, addr6: mapped(addr4), ..NetnsRow::default() }),
            ..Fake::default()
        };
        let is_inside = kept.iter().any(|range| range4(range).admits(addr4));
        let expected = if is_inside { Admission::Admitted } else { Admission::Outside };
        prop_assert!(admit4(&fake, &fake, word) == expected);
        prop_assert!(admit6(&fake, &fake, word) == expected);
    }

    #[test]
    fn borrowing_is_comparing(a in any::<u64>(), b in any::<u64>(), is_borrowed in any::<bool>()) {
        let lent = u64::from(is_borrowed);
        let is_less = u128::from(a) < u128::from(b) + u128::from(lent);
        prop_assert_eq!(borrow(a, b, lent), u64::from(is_less));
        prop_assert_eq!(borrow(a, a, lent), lent);
    }

    #[test]
    fn an_affinity_keeps_its_parts(seconds in 0..1u32 << 17, identity in 0..1u64 << 47) {
        let affinity = Affinity::new(seconds, identity);
        prop_assert_eq!((affinity.seconds(), affinity.identity()), (seconds, identity));
        prop_assert_eq!(affinity.is_none(), seconds == 0);
    }

    #[test]
    fn packed_words_keep_their_parts(base in 0..1u32 << 24, count: u16, generation: u16, svc: u32, flags: u8) {
        let word = PublishWord::new(base, count, generation);
        prop_assert_eq!((word.base(), word.count(), word.generation()), (base, count, generation));
        let drop = word.with_ranges(generation as u8 & 0x7f).with_drop();
        prop_assert_eq!((drop.ranges(), drop.is_drop()), (generation as u8 & 0x7f, true));
        prop_assert_eq!((drop.base(), drop.count(), drop.generation()), (base, count, generation));
        let value = FrontendValue::new(svc, u32::MAX, flags);
        prop_assert_eq!((value.service(), value.fingerprint(), value.flags()), (svc, 0xff_ffff, flags));
    }
}
