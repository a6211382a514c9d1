//! The programs of others that run before ours on a hook of a device.
//!
//! Only for links (Linux 6.6), which have an order. Before that, filters have priorities, and ours get the lowest one
//! that is free.

use std::os::fd::AsFd as _;

use crate::dataplane::load::hooks::PACKET;
use crate::dataplane::sys::tc::devices;
use crate::dataplane::sys::{name_of, program_by_id, program_name, tcx_links};

/// Names of the programs of others that run before those of the packet path on a device. A program that ends the hook
/// with a verdict of its own keeps packets from ours.
pub fn others_before(device: &str) -> Vec<String> {
    let devices = devices().unwrap_or_default();
    let device = devices.iter().find(|one| one.name == device);
    let found = device.iter().flat_map(|device| {
        PACKET.iter().flat_map(|(ours, hook, _)| {
            let links = tcx_links(*hook, device.ifindex).unwrap_or_default();
            let names: Vec<[u8; 16]> = links.iter().map(|(id, _)| name(*id)).collect();
            let ours = names.iter().position(|name| *name == name_of(ours));
            names[..ours.unwrap_or(0)].to_vec()
        })
    });
    found
        .map(|name| {
            String::from_utf8_lossy(&name)
                .trim_end_matches('\0')
                .to_owned()
        })
        .collect()
}

fn name(id: u32) -> [u8; 16] {
    let program = program_by_id(id);
    let name = program.and_then(|program| program_name(program.as_fd()));
    // The program has just gone.
    name.unwrap_or_default()
}
