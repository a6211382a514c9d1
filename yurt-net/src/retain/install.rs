//! The plugins in a node's CNI configuration: how it looks with them, and without.
//!
//! Pure. In: what is in the file. Out: what should be. Everything else in it stays. `yurt-cni` goes behind the main plugin; `yurt-ipam` takes the
//! place of host-local, with its settings. Of flannel's plugin the section `ipam` is at the top and not in `delegate`, which must not have
//! one (flannel-io/cni-plugin flannel.go). [`files`] reads and writes.

use serde_json::{Map, Value, json};

pub mod files;
#[cfg(test)]
mod tests;

/// Main plugins that take any IPAM's addresses, and do not mind what becomes of the MAC.
const MAINS: [&str; 5] = ["bridge", FLANNEL, "ipvlan", "macvlan", "ptp"];
/// Main plugins that rely on an IPAM of their own, on the MAC that they gave, or on being alone in the file; with what to do instead.
const OWNERS: [(&str, &str); 4] = [
    (
        "antrea",
        "its flows let a Pod send from the MAC that it gave only; to keep addresses, use its own AntreaIPAM",
    ),
    (
        "calico",
        "Felix makes a permanent ARP entry with the MAC that it gave, and calico-ipam owns the addresses; to keep them, use the annotation `cni.projectcalico.org/ipAddrs`",
    ),
    (
        "cilium-cni",
        "Cilium writes its file anew at every start of its agent; chain yurt-cni with its `cni.chainingMode`",
    ),
    (
        "multus",
        "Multus calls other configurations: install into the one that it delegates to",
    ),
];
/// Versions of the specification that the plugins speak.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const IPAM: &str = "yurt-ipam";
const CHAINED: &str = "yurt-cni";
const HOST_LOCAL: &str = "host-local";
const FLANNEL: &str = "flannel";

/// A configuration that the plugins cannot be put into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// One plugin.
    #[error(
        "it is a single plugin, behind which nothing can be chained: make it a list (`.conflist`, with `plugins`)"
    )]
    Single,
    /// Not a configuration.
    #[error("it is no list of plugins")]
    NoPlugins,
    /// Too old, or too new.
    #[error("its cniVersion {version:?} is not one of 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
    Version {
        /// What it says.
        version: String,
    },
    /// Somebody else's.
    #[error("its main plugin is {plugin}: {reason}")]
    Owned {
        /// The main plugin.
        plugin: &'static str,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// Nobody here knows what it relies on.
    #[error(
        "its main plugin {plugin:?} may rely on its own IPAM, or on the MAC that it gives; if it does not, put {{\"type\": \"yurt-cni\"}} behind it by hand"
    )]
    Unknown {
        /// The main plugin.
        plugin: String,
    },
}

/// What a configuration should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Installed {
    /// All of it.
    pub config: Value,
    /// The IPAM plugin that gives addresses where it is not `yurt-ipam`: Pods keep their MAC then, and their address as far as that one sees to it.
    pub other_ipam: Option<String>,
}

/// Where the plugins keep things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// `dataDir`.
    pub data_dir: String,
    /// `runDir`.
    pub run_dir: String,
}

/// The configuration with the plugins in it. Behind a main plugin that is not known a person has put them; that is left as it is.
pub fn install(config: &Value, directories: &Directories) -> Result<Installed, Refusal> {
    let mut config = config.clone();
    let version = config["cniVersion"].as_str().unwrap_or_default().to_owned();
    let plugins = plugins(&mut config)?;
    let main = plugins.first_mut().ok_or(Refusal::NoPlugins)?;
    let kind = main["type"].as_str().unwrap_or_default().to_owned();
    let mut owners = OWNERS.iter();
    if let Some((plugin, reason)) = owners.find(|(plugin, _)| *plugin == kind) {
        return Err(Refusal::Owned { plugin, reason });
    }
    if !VERSIONS.contains(&version.as_str()) {
        return Err(Refusal::Version { version });
    }
    if !MAINS.contains(&kind.as_str()) {
        let other_ipam = main["ipam"]["type"].as_str().unwrap_or("none");
        let other_ipam = (other_ipam != IPAM).then(|| other_ipam.to_owned());
        let is_by_hand = plugins.iter().skip(1).any(is_chained);
        return match is_by_hand {
            true => Ok(Installed { config, other_ipam }),
            false => Err(Refusal::Unknown { plugin: kind }),
        };
    }
    let other_ipam = replace_ipam(main, &kind, directories);
    if !plugins.iter().any(is_chained) {
        let mut chained = Map::new();
        chained.insert("type".to_owned(), json!(CHAINED));
        chained.extend(directories.settings());
        plugins.insert(1, Value::Object(chained));
    }
    Ok(Installed { config, other_ipam })
}

/// The configuration without them, and with host-local where `yurt-ipam` was.
pub fn uninstall(config: &Value) -> Result<Value, Refusal> {
    let mut config = config.clone();
    let plugins = plugins(&mut config)?;
    plugins.retain(|plugin| !is_chained(plugin));
    for plugin in plugins {
        let Some(ipam) = plugin.get_mut("ipam").and_then(Value::as_object_mut) else {
            continue;
        };
        if ipam.get("type").is_some_and(|kind| kind == IPAM) {
            ipam.insert("type".to_owned(), json!(HOST_LOCAL));
            for key in ["dataDir", "runDir", "ttlSeconds"] {
                ipam.remove(key);
            }
            if let Some(directory) = ipam.remove("migrateFrom") {
                ipam.insert("dataDir".to_owned(), directory);
            }
        }
    }
    Ok(config)
}

fn is_chained(plugin: &Value) -> bool {
    plugin["type"] == CHAINED
}

fn plugins(config: &mut Value) -> Result<&mut Vec<Value>, Refusal> {
    if config.get("plugins").is_none() && config.get("type").is_some() {
        return Err(Refusal::Single);
    }
    let plugins = config.get_mut("plugins").and_then(Value::as_array_mut);
    plugins.ok_or(Refusal::NoPlugins)
}

/// Returns the IPAM plugin that stays.
fn replace_ipam(main: &mut Value, kind: &str, directories: &Directories) -> Option<String> {
    let main = main.as_object_mut()?;
    if kind == FLANNEL {
        // Without one it uses host-local.
        main.entry("ipam").or_insert_with(|| json!({}));
    }
    let ipam = main.get_mut("ipam").and_then(Value::as_object_mut)?;
    match ipam.get("type").and_then(Value::as_str) {
        Some(IPAM) => None,
        None | Some(HOST_LOCAL) if kind == FLANNEL || ipam.contains_key("type") => {
            ipam.insert("type".to_owned(), json!(IPAM));
            // Where host-local has kept its files: they are taken over, and it finds them again.
            if let Some(directory) = ipam.remove("dataDir") {
                ipam.insert("migrateFrom".to_owned(), directory);
            }
            ipam.extend(directories.settings());
            None
        }
        other => Some(other.unwrap_or("none").to_owned()),
    }
}

impl Directories {
    fn settings(&self) -> [(String, Value); 2] {
        [
            ("dataDir".to_owned(), json!(self.data_dir)),
            ("runDir".to_owned(), json!(self.run_dir)),
        ]
    }
}
