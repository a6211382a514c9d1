//! Embeds the eBPF object, so that the agent is one file.
//!
//! A debug build without the object gets an empty stand-in: `cargo check`, `clippy` and the tests
//! of everything above the kernel need no BPF tool. A release build without it is an error.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Another object than the one `cargo xtask build-ebpf` leaves.
const OVERRIDE: &str = "YURT_EBPF_OBJECT";

fn main() -> ExitCode {
    // At a fixed address nothing has to be relocated: 700 kB of tables and rewritten pages less in every process. For
    // musl .cargo/config.toml says so to the compiler: told only to the linker, the start files are of the other kind.
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|kind| kind == "gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    // The standard library refers weakly to what a C library may lack. Link-time optimization can merge a plain call of
    // the same function into that: then nothing takes it out of the archive, and the call leads to address 0. So what
    // musl has of it is asked for by name.
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|kind| kind == "musl") {
        for function in ["copy_file_range", "getrandom", "gettid"] {
            println!("cargo::rustc-link-arg-bins=-u{function}");
        }
    }
    // Which functions are mapped together: xtask/src/layout/ says why. These targets are linked by lld
    // (.cargo/config.toml).
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|kind| kind == "musl") {
        let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{directory}/layout.ld");
        println!("cargo::rerun-if-changed=layout.ld");
    }
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let chosen = env::var_os(OVERRIDE).map(PathBuf::from);
    let object = match &chosen {
        Some(path) => path.clone(),
        None => Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../target/bpf/yurt-ebpf.o"),
    };
    watch(&object)?;

    let bytes = match fs::read(&object) {
        Ok(bytes) if bytes.starts_with(b"\x7fELF") => bytes,
        Ok(_) => return Err(format!("{} is not an ELF object", object.display())),
        Err(error) if chosen.is_some() => {
            return Err(format!("{OVERRIDE}={}: {error}", object.display()));
        }
        Err(_) if variable("PROFILE")? != "release" => Vec::new(),
        Err(error) => {
            return Err(format!(
                "no eBPF object for a release build ({}: {error}); run `cargo xtask build-ebpf`, \
                 or `cargo xtask build` for both",
                object.display()
            ));
        }
    };
    let compressed = match bytes.as_slice() {
        [] => bytes,
        _ => lz4_flex::compress_prepend_size(&bytes),
    };
    let embedded = Path::new(&variable("OUT_DIR")?).join("yurt-ebpf.o.lz4");
    fs::write(&embedded, compressed).map_err(|error| format!("{}: {error}", embedded.display()))
}

/// Has this script run again when the object comes, changes or goes.
///
/// Cargo takes a watched file that does not exist for one that always changes, and would rebuild
/// the agent every time; so it is the directory that is watched, which holds nothing else.
fn watch(object: &Path) -> Result<(), String> {
    let watched = match object.parent() {
        Some(dir) if !object.exists() => {
            fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            dir
        }
        _ => object,
    };
    println!("cargo::rerun-if-changed={}", watched.display());
    Ok(())
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set; build with cargo"))
}
