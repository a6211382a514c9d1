//! The packet path's programs, without any device.

use std::fs;

use anyhow::Result;
use yurt_net::dataplane::packet::PacketOptions;
use yurt_net::dataplane::packet::Packets;
use yurt_net_tests::lab::Lab;

#[test]
fn the_packet_path_is_not_loaded_where_the_table_of_services_is_missing() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    let error = Packets::load(&node.bpffs(), PacketOptions::DEFAULT, None).unwrap_err();
    let pins = node.bpffs().join("yurt-net");
    assert!(error.to_string().contains("yurt_conf"), "{error}");
    for dir in fs::read_dir(&pins)? {
        let dir = dir?.path();
        assert_eq!(fs::read_dir(&dir)?.count(), 0, "{}", dir.display());
    }
    Ok(())
}
