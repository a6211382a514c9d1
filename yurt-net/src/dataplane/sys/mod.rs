//! System calls.

mod bpf;
mod limits;
mod mapped;
mod maps;
pub(super) mod netlink;
mod packet;
mod run;
mod secluded;
pub(super) mod stack;
pub(super) mod tc;

pub use self::bpf::Hook;
pub(super) use self::bpf::{
    LINK_TYPE_CGROUP, MapInfo, array_of_maps_create, cgroup_links, has_tcx, is_passed_over,
    link_by_id, link_create, link_detach, link_info, link_update, map_delete, map_each,
    map_entries, map_info, map_lookup, map_update, map_update_all, map_update_per_cpu, name_of,
    object_get, object_id, object_pin, program_by_id, program_maps, program_name, tcx_create,
    tcx_links, tcx_program, tcx_programs,
};
pub(super) use self::limits::{possible_cpus, raise_memlock, raise_open_files};
pub(super) use self::mapped::{MappedArray, WindowedArray};
pub(super) use self::maps::{Ring, map_create, maps_named};
pub(super) use self::packet::packet_socket;
pub(super) use self::run::run_on_frame;
pub(super) use self::secluded::without_files;
