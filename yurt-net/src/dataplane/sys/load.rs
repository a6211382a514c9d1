//! The calls that make maps and programs.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::bpf::{MapInfo, address, bpf, info, info_of, owned, raw};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_MAP_FREEZE: libc::c_long = 22;

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
pub(in crate::dataplane) const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_PROG_TYPE_SOCKET_FILTER`.
pub(in crate::dataplane) const PROG_TYPE_SOCKET_FILTER: u32 = 1;
/// `BPF_PROG_TYPE_SCHED_CLS`.
pub(in crate::dataplane) const PROG_TYPE_SCHED_CLS: u32 = 3;
/// Room for what the verifier says of a program that it rejects; touched only then.
const LOG_BYTES: usize = 1 << 24;

/// `BPF_OBJ_NAME_LEN` bytes, the last one a NUL.
pub(in crate::dataplane) fn name_of(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

#[repr(C)]
struct BtfAttr {
    btf: u64,
    log_buf: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
    pad: u32,
}

/// Loads the types of an object.
pub(in crate::dataplane) fn btf_load(bytes: &[u8]) -> io::Result<OwnedFd> {
    owned(bpf(
        BPF_BTF_LOAD,
        &mut BtfAttr {
            btf: address(bytes),
            log_buf: 0,
            btf_size: u32::try_from(bytes.len()).map_err(io::Error::other)?,
            log_size: 0,
            log_level: 0,
            pad: 0,
        },
    )?)
}

/// Key and value of a map, as types of an object that was loaded.
#[derive(Clone, Copy)]
pub(in crate::dataplane) struct MapTypes<'a> {
    pub(in crate::dataplane) btf: BorrowedFd<'a>,
    pub(in crate::dataplane) key: u32,
    pub(in crate::dataplane) value: u32,
}

#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_fd: u32,
    btf_key: u32,
    btf_value: u32,
}

/// Makes a map; `info.id` does not matter.
pub(in crate::dataplane) fn map_create(
    name: &str,
    info: &MapInfo,
    types: Option<MapTypes<'_>>,
) -> io::Result<OwnedFd> {
    create(name, info, types, 0)
}

/// Makes a map whose values are maps like `inner`; `info.id` does not matter.
pub(in crate::dataplane) fn map_of_maps_create(
    name: &str,
    info: &MapInfo,
    inner: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    create(name, info, None, raw(inner))
}

fn create(
    name: &str,
    info: &MapInfo,
    types: Option<MapTypes<'_>>,
    inner_map_fd: u32,
) -> io::Result<OwnedFd> {
    let MapInfo {
        map_type,
        id: _,
        key_size,
        value_size,
        max_entries,
        map_flags,
    } = *info;
    let (btf_fd, btf_key, btf_value) =
        types.map_or((0, 0, 0), |types| (raw(types.btf), types.key, types.value));
    owned(bpf(
        BPF_MAP_CREATE,
        &mut MapAttr {
            map_type,
            key_size,
            value_size,
            max_entries,
            map_flags,
            inner_map_fd,
            numa_node: 0,
            name: name_of(name),
            ifindex: 0,
            btf_fd,
            btf_key,
            btf_value,
        },
    )?)
}

/// Lets nobody write a map any more, so that the verifier takes its values for constants.
pub(in crate::dataplane) fn map_freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_MAP_FREEZE, &mut raw(map)).map(drop)
}

/// Records that say where functions or lines of the source begin.
#[derive(Clone, Copy, Default)]
pub(in crate::dataplane) struct Records<'a> {
    pub(in crate::dataplane) bytes: &'a [u8],
    pub(in crate::dataplane) size: usize,
}

/// What is loaded.
pub(in crate::dataplane) struct ProgramCode<'a, I> {
    pub(in crate::dataplane) name: &'a str,
    /// Eight bytes each.
    pub(in crate::dataplane) instructions: &'a [I],
    pub(in crate::dataplane) license: &'a CStr,
    pub(in crate::dataplane) program_type: u32,
    /// 0 for types that are not bound to one.
    pub(in crate::dataplane) attach_type: u32,
    pub(in crate::dataplane) btf: Option<BorrowedFd<'a>>,
    pub(in crate::dataplane) functions: Records<'a>,
    /// Only for the verifier's words.
    pub(in crate::dataplane) lines: Records<'a>,
}

#[repr(C)]
#[derive(Default)]
struct ProgramAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
    btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// Why a program was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("{source}; the verifier's last words:\n{words}")]
pub(in crate::dataplane) struct Rejected {
    source: io::Error,
    words: String,
}

/// Loads a program.
pub(in crate::dataplane) fn program_load<I>(
    code: &ProgramCode<'_, I>,
) -> Result<OwnedFd, Rejected> {
    const { assert!(size_of::<I>() == 8) };
    let silent = |source| Rejected {
        source,
        words: String::new(),
    };
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let attr = || ProgramAttr {
        prog_type: code.program_type,
        insn_cnt: count(code.instructions.len()),
        insns: address(code.instructions),
        license: address(code.license),
        name: name_of(code.name),
        expected_attach_type: code.attach_type,
        btf_fd: code.btf.map_or(0, raw),
        func_info_rec_size: count(code.functions.size),
        func_info: address(code.functions.bytes),
        func_info_cnt: count(code.functions.bytes.len() / code.functions.size.max(1)),
        ..ProgramAttr::default()
    };
    let first = match bpf(BPF_PROG_LOAD, &mut attr()) {
        Ok(program) => return owned(program).map_err(silent),
        Err(error) => error,
    };
    // Once more, to learn why. (Lines take memory in the kernel as long as the program lives.)
    let mut log = vec![0u8; LOG_BYTES];
    let again = bpf(
        BPF_PROG_LOAD,
        &mut ProgramAttr {
            log_level: 1,
            log_size: count(log.len()),
            log_buf: log.as_mut_ptr().addr() as u64,
            line_info_rec_size: count(code.lines.size),
            line_info: address(code.lines.bytes),
            line_info_cnt: count(code.lines.bytes.len() / code.lines.size.max(1)),
            ..attr()
        },
    );
    match again {
        Ok(program) => owned(program).map_err(silent),
        Err(_) => Err(Rejected {
            source: first,
            words: last_words(&log),
        }),
    }
}

/// The end of a log: what it was that the verifier did not like.
fn last_words(log: &[u8]) -> String {
    const LINES: usize = 24;
    let text = CStr::from_bytes_until_nul(log).unwrap_or_default();
    let text = text.to_string_lossy();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The part of `struct bpf_prog_info` up to the last field that is read.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawProgramInfo {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited_to_load_time: [u64; 3],
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
    to_prog_tags: [u64; 14],
    run: [u64; 3],
    verified_insns: u32,
    pad: u32,
}
const _: () = assert!(std::mem::offset_of!(RawProgramInfo, verified_insns) == 216);

/// What the kernel made of a program.
#[derive(Clone, Copy)]
pub(in crate::dataplane) struct ProgramInfo {
    pub(in crate::dataplane) id: u32,
    /// Ends in zeros.
    pub(in crate::dataplane) name: [u8; 16],
    /// Instructions that the verifier looked at; 0 below kernel 5.16.
    pub(in crate::dataplane) verified: u32,
    /// Bytes after translation.
    pub(in crate::dataplane) translated: u32,
}

/// The numbers of the maps that a program reads or writes.
pub(in crate::dataplane) fn program_maps(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    /// `MAX_USED_MAPS` of the verifier.
    const MOST: u32 = 64;
    let mut ids = vec![0u32; MOST as usize];
    let asked = RawProgramInfo {
        nr_map_ids: MOST,
        map_ids: ids.as_mut_ptr().addr() as u64,
        ..RawProgramInfo::default()
    };
    let found = info_of(program, asked)?.nr_map_ids;
    ids.truncate(found as usize);
    Ok(ids)
}

/// Describes a program.
pub(in crate::dataplane) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let info: RawProgramInfo = info(program)?;
    Ok(ProgramInfo {
        id: info.id,
        name: info.name,
        verified: info.verified_insns,
        translated: info.xlated_len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_end_of_the_log() {
        let lines: Vec<String> = (0..100).map(|line| format!("line {line}")).collect();
        let mut log = lines.join("\n").into_bytes();
        log.extend([0, b'x']);
        let words = last_words(&log);
        assert!(
            words.starts_with("line 76\n") && words.ends_with("line 99"),
            "{words}"
        );
        assert_eq!(last_words(&[0; 4]), "");
    }
}
