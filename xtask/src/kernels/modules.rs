//! The modules that the lab needs on a kernel with hardly anything built in.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Devices of the lab, what attaches programs to devices, socket diagnosis. A module that is built into the kernel is
/// missing here.
const WANTED: [&str; 12] = [
    "veth",
    "bridge",
    "dummy",
    "vxlan",
    "8021q",
    "macvlan",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "tcp_diag",
    "udp_diag",
    "sctp",
];

/// Copies the modules to `to`, unpacked, with the modules that they need, and numbered in the order of loading.
pub(super) fn take(from: &Path, to: &Path) -> Result<()> {
    let mut found = BTreeMap::new();
    find(&from.join("kernel"), &mut found)?;
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &found, &mut order)?;
    }
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to)?;
    for (index, (name, content)) in order.iter().enumerate() {
        fs::write(to.join(format!("{index:03}-{name}.ko")), content)?;
    }
    Ok(())
}

/// The modules below a directory, by name.
fn find(directory: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, found)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = name.split_once(".ko")
        {
            found.insert(name.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

/// Adds a module, after those that it needs.
fn add(
    name: &str,
    found: &BTreeMap<String, PathBuf>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let Some(path) = found.get(name) else {
        return Ok(());
    };
    if order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let content = unpacked(path)?;
    for needed in needs(&content) {
        add(&needed, found, order)?;
    }
    order.push((name.to_owned(), content));
    Ok(())
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(path)?);
    }
    let output = Command::new("xz").arg("-dc").arg(path).output();
    let output = output.context("run xz (Debian package xz-utils)")?;
    ensure!(
        output.status.success(),
        "xz -dc {}: {}",
        path.display(),
        output.status
    );
    Ok(output.stdout)
}

/// The names after `depends=` in a module's information, separated by commas.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let begin = module.windows(KEY.len()).position(|bytes| bytes == KEY);
    let text = begin.and_then(|begin| module[begin + KEY.len()..].split(|byte| *byte == 0).next());
    let text = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
    let names = text.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_in_its_information() {
        assert_eq!(
            needs(b"x\0license=GPL\0depends=stp,llc\0retpoline=Y\0"),
            ["stp", "llc"]
        );
        assert!(needs(b"x\0depends=\0y").is_empty() && needs(b"x").is_empty());
    }
}
