//! The embedded object on its way into the kernel: maps first, then programs that point to them.
//!
//! aya parses and relocates it. Its loader would also read every type of the kernel first, which no program of ours
//! uses: 5 MB of file, and as much again in memory.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use aya_obj::{EbpfSectionKind, Map};

use crate::dataplane::sys::{self, MapInfo, MapTypes, ProgramCode, Records, Rejected};
use crate::dataplane::{DataplaneError, LoadError};

/// How a map is made where the object says otherwise.
pub(super) struct MapPlan {
    /// 0 leaves what the object says.
    pub(super) max_entries: u32,
    /// Opened if it is there, else made and pinned.
    pub(super) pin: Option<PathBuf>,
}

/// An object whose maps exist. They live as long as their pins, a program that uses them, or this.
pub(super) struct Object {
    parsed: aya_obj::Object,
    btf: Option<OwnedFd>,
    maps: BTreeMap<String, OwnedFd>,
}

fn failed(error: impl Into<LoadError>) -> DataplaneError {
    DataplaneError::Load(error.into())
}

impl Object {
    /// Opens or makes the maps of `plans`, for the functions that are wanted; nothing else of the object is loaded.
    /// `switches` are values of statics, set before the programs can see them.
    pub(super) fn new(
        bytes: &[u8],
        is_wanted: impl Fn(&str) -> bool,
        switches: &[(&str, u32)],
        plans: &BTreeMap<&str, MapPlan>,
    ) -> Result<Self, DataplaneError> {
        let mut parsed = aya_obj::Object::parse(bytes).map_err(failed)?;
        parsed.programs.retain(|name, _| is_wanted(name));
        parsed
            .functions
            .retain(|_, function| is_wanted(&function.name));
        let values: Vec<_> = switches
            .iter()
            .map(|(name, value)| (*name, value.to_ne_bytes()))
            .collect();
        let values = values
            .iter()
            .map(|(name, value)| (*name, (&value[..], true)));
        parsed.patch_map_data(values.collect()).map_err(failed)?;
        let features = aya::features();
        let types = match features.btf() {
            Some(features) => parsed.fixup_and_sanitize_btf(features).map_err(failed)?,
            None => None,
        };
        let btf = types.map(|types| sys::btf_load(&types.to_bytes()));
        let btf = btf.transpose().map_err(failed)?;
        let mut maps = Vec::new();
        for (name, map) in parsed.maps.drain() {
            let plan = plans.get(name.as_str());
            // Statics are maps without a plan; their names begin with a dot.
            if plan.is_none() && !name.starts_with('.') {
                continue;
            }
            let fd = open_or_make(&name, &map, plan, btf.as_ref()).map_err(|source| {
                failed(io::Error::new(
                    source.kind(),
                    format!("map {name}: {source}"),
                ))
            })?;
            maps.push((name, fd, map));
        }
        let sections = parsed.functions.keys().map(|(index, _)| *index).collect();
        let references = maps
            .iter()
            .map(|(name, fd, map)| (name.as_str(), fd.as_raw_fd(), map));
        parsed
            .relocate_maps(references, &sections)
            .map_err(failed)?;
        parsed.relocate_calls(&sections).map_err(failed)?;
        parsed.sanitize_functions(features);
        Ok(Self {
            parsed,
            btf,
            maps: maps.into_iter().map(|(name, fd, _)| (name, fd)).collect(),
        })
    }

    /// Takes one of the maps out, to be kept; `None` when it is not among them.
    pub(super) fn take_map(&mut self, name: &str) -> Option<OwnedFd> {
        self.maps.remove(name)
    }

    /// Loads a program; `None` when the object has none of that name.
    pub(super) fn load(
        &self,
        name: &str,
        program_type: u32,
        attach_type: u32,
    ) -> Option<Result<OwnedFd, Rejected>> {
        let program = self.parsed.programs.get(name)?;
        let function = self.parsed.functions.get(&program.function_key())?;
        let license: &CStr = &program.license;
        Some(sys::program_load(&ProgramCode {
            name,
            instructions: &function.instructions,
            license,
            program_type,
            attach_type,
            btf: self.btf.as_ref().map(|btf| btf.as_fd()),
            functions: Records {
                bytes: &function.func_info.func_info_bytes(),
                size: function.func_info_rec_size,
            },
            lines: Records {
                bytes: &function.line_info.line_info_bytes(),
                size: function.line_info_rec_size,
            },
        }))
    }
}

fn open_or_make(
    name: &str,
    map: &Map,
    plan: Option<&MapPlan>,
    btf: Option<&OwnedFd>,
) -> io::Result<OwnedFd> {
    let pin = plan.and_then(|plan| plan.pin.as_ref());
    if let Some(pin) = pin
        && let Ok(pinned) = sys::object_get(pin)
    {
        return Ok(pinned);
    }
    let wanted = plan.map_or(0, |plan| plan.max_entries);
    let info = MapInfo {
        map_type: map.map_type(),
        id: 0,
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: if wanted > 0 {
            wanted
        } else {
            map.max_entries()
        },
        map_flags: map.map_flags(),
    };
    let types = match (map, btf) {
        (Map::Btf(map), Some(btf)) => Some(MapTypes {
            btf: btf.as_fd(),
            key: map.def.btf_key_type_id,
            value: map.def.btf_value_type_id,
        }),
        _ => None,
    };
    let fd = sys::map_create(name, &info, types)?;
    if !map.data().is_empty() {
        // Statics are the one entry of an array, whose value may be larger than they are.
        let mut value = map.data().to_vec();
        value.resize(info.value_size as usize, 0);
        sys::map_write_bytes(fd.as_fd(), 0, &value)?;
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        sys::map_freeze(fd.as_fd())?;
    }
    if let Some(pin) = pin {
        sys::object_pin(fd.as_fd(), pin)?;
    }
    Ok(fd)
}
