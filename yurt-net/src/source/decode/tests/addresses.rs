//! Addresses and prefixes as Kubernetes reads them.

use std::net::IpAddr;

use super::*;

#[test]
fn addresses_are_read_as_kubernetes_reads_them() {
    for (text, expected) in [
        ("10.96.0.10", Some("10.96.0.10")),
        ("010.096.000.010", Some("10.96.0.10")),
        ("0000010.1.1.1", Some("10.1.1.1")),
        ("fd00::1", Some("fd00::1")),
        ("::ffff:010.0.0.1", Some("10.0.0.1")),
        ("64:ff9b::010.0.0.1", Some("64:ff9b::a00:1")),
        ("256.0.0.1", None),
        ("10.0.0", None),
        ("10.0.0.1.1", None),
        ("10.0.0.+1", None),
        ("10.0..1", None),
        (" 10.0.0.1", None),
        ("fe80::1%eth0", None),
        ("", None),
        (":", None),
        ("None", None),
    ] {
        assert_eq!(
            parse_address(text),
            expected.map(|e| e.parse().unwrap()),
            "{text:?}"
        );
    }
}

#[test]
fn prefixes_are_masked_and_may_have_leading_zeros() {
    assert_eq!(
        parse_cidr("010.096.1.1/012"),
        Some("10.96.0.0/12".parse().unwrap())
    );
    assert_eq!(
        parse_cidr("fd00::1/108"),
        Some("fd00::/108".parse().unwrap())
    );
    for wrong in [
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/",
        "fd00::/129",
        "/8",
    ] {
        assert_eq!(parse_cidr(wrong), None, "{wrong}");
    }
}

proptest! {
    #[test]
    fn addresses_survive_printing(address: IpAddr) {
        prop_assert_eq!(parse_address(&address.to_string()), Some(address.to_canonical()));
    }
}
