//! System calls.

mod bpf;
mod limits;
mod load;
mod mapped;
pub(super) mod netlink;
mod packet;
pub(super) mod tc;

pub(super) use self::bpf::{
    LINK_TYPE_CGROUP, MapInfo, is_passed_over, link_by_id, link_create, link_detach, link_info,
    link_update, links_on_cgroup, map_delete, map_entries, map_ids_named, map_info, map_lookup,
    map_update, map_update_per_cpu, map_write_bytes, object_get, object_id, object_pin,
    program_by_id,
};
pub(super) use self::limits::{possible_cpus, raise_memlock, raise_open_files};
pub(super) use self::load::{
    MapTypes, PROG_TYPE_CGROUP_SOCK_ADDR, PROG_TYPE_SCHED_CLS, PROG_TYPE_SOCKET_FILTER,
    ProgramCode, Records, Rejected, btf_load, map_create, map_freeze, map_of_maps_create, name_of,
    program_info, program_load, program_maps,
};
pub(super) use self::mapped::MappedArray;
pub(super) use self::packet::packet_socket;
