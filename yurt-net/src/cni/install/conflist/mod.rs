//! The plugins in a node's CNI configuration: the configuration with them, and without.
//!
//! Pure: from the contents of the file to the contents that it should have. Everything else in it stays. `yurt-cni`
//! goes behind the main plugin; `yurt-ipam` replaces host-local, with its settings. Flannel's plugin has its section
//! `ipam` at the top, and not in `delegate`, which must not have one (flannel-io/cni-plugin flannel.go).

use serde_json::{Map, Value, json};

use crate::go_json;

/// Main plugins that work with any IPAM, and with a MAC that is changed afterwards.
const MAINS: [&str; 5] = ["bridge", FLANNEL, "ipvlan", "macvlan", "ptp"];
/// Main plugins that rely on an IPAM of their own, on the MAC that they gave, or on being alone in the file; and what
/// to do instead.
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
pub(super) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const IPAM: &str = "yurt-ipam";
const CHAINED: &str = "yurt-cni";
const HOST_LOCAL: &str = "host-local";
const FLANNEL: &str = "flannel";
/// Stands for ranges that come only with an ADD: a documentation prefix (RFC 5737), which no network uses.
const STAND_IN: &str = "192.0.2.0/24";

/// A configuration that the plugins cannot be put into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is a single plugin.
    #[error(
        "it is a single plugin, behind which nothing can be chained: make it a list (`.conflist`, with `plugins`)"
    )]
    Single,
    /// It is not a configuration.
    #[error("it is not a list of plugins")]
    NoPlugins,
    /// Its version is too old or too new.
    #[error("its cniVersion {version:?} is not one of 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
    Version {
        /// The version in the configuration.
        version: String,
    },
    /// Our plugins do not work with this main plugin.
    #[error("its main plugin is {plugin}: {reason}")]
    Owned {
        /// The main plugin.
        plugin: &'static str,
        /// The reason, and what to do.
        reason: &'static str,
    },
    /// The main plugin is unknown, and so is what it relies on.
    #[error(
        "its main plugin {plugin:?} may rely on its own IPAM, or on the MAC that it gives; if it does not, put {{\"type\": \"yurt-cni\"}} behind it by hand"
    )]
    Unknown {
        /// The main plugin.
        plugin: String,
    },
}

/// A configuration with the plugins in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Installed {
    /// The whole configuration.
    pub config: Value,
    /// The IPAM plugin, if it is not `yurt-ipam`. Pods then keep their MAC, and their addresses only as far as that
    /// plugin keeps them.
    pub other_ipam: Option<String>,
}

/// The directories of the plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// `dataDir`.
    pub data_dir: String,
    /// `runDir`.
    pub run_dir: String,
}

/// The configuration with the plugins in it. If a person has put them behind a main plugin that is unknown, it is left
/// as it is.
pub fn install(config: &Value, directories: &Directories) -> Result<Installed, Refusal> {
    let mut config = config.clone();
    let version = version(&config);
    let plugins = plugins(&mut config)?;
    let main = plugins.first_mut().ok_or(Refusal::NoPlugins)?;
    let kind = go_json::text(main, "type").to_owned();
    let mut owners = OWNERS.iter();
    if let Some((plugin, reason)) = owners.find(|(plugin, _)| *plugin == kind) {
        return Err(Refusal::Owned { plugin, reason });
    }
    version?;
    if !MAINS.contains(&kind.as_str()) {
        let other_ipam = ipam_of(main).unwrap_or("none");
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

/// The configuration without the plugins, and with host-local in place of `yurt-ipam`.
pub fn uninstall(config: &Value) -> Result<Value, Refusal> {
    let mut config = config.clone();
    let plugins = plugins(&mut config)?;
    plugins.retain(|plugin| !is_chained(plugin));
    for plugin in plugins {
        if ipam_of(plugin) != Some(IPAM) {
            continue;
        }
        let ipam = go_json::field_mut(plugin, "ipam").and_then(Value::as_object_mut);
        let Some(ipam) = ipam else {
            continue;
        };
        set(ipam, "type", json!(HOST_LOCAL));
        for key in ["dataDir", "runDir", "ttlSeconds"] {
            take(ipam, key);
        }
        if let Some(directory) = take(ipam, "migrateFrom") {
            set(ipam, "dataDir", directory);
        }
    }
    Ok(config)
}

fn is_chained(plugin: &Value) -> bool {
    go_json::text(plugin, "type") == CHAINED
}

fn ipam_of(main: &Value) -> Option<&str> {
    let kind = go_json::text(go_json::field(main, "ipam"), "type");
    (!kind.is_empty()).then_some(kind)
}

/// Sets a field, under the key that Go reads it from.
fn set(fields: &mut Map<String, Value>, name: &str, value: Value) {
    let key = go_json::key(fields, name).unwrap_or(name).to_owned();
    fields.insert(key, value);
}

/// Removes a field under all keys that Go reads it from, and returns the value that Go would have read.
fn take(fields: &mut Map<String, Value>, name: &str) -> Option<Value> {
    let mut taken = None;
    while let Some(key) = go_json::key(fields, name).map(str::to_owned) {
        let value = fields.remove(&key);
        taken = taken.or(value);
    }
    taken.filter(|value| !value.is_null() && *value != "")
}

/// The version that a runtime speaks with the plugins (libcni `NetworkConfFromBytes`): the newest of `cniVersions` and
/// `cniVersion` that it knows. A runtime from before `cniVersions` reads only the other one.
fn version(config: &Value) -> Result<&'static str, Refusal> {
    let single = config["cniVersion"].as_str().unwrap_or_default();
    let listed = config["cniVersions"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let refused = |version: &str| Refusal::Version {
        version: version.to_owned(),
    };
    let known = VERSIONS
        .iter()
        .rfind(|known| single == **known || listed.iter().any(|one| one == **known));
    match known {
        Some(version) => Ok(version),
        None if listed.is_empty() => Err(refused(single)),
        None => Err(refused(&config["cniVersions"].to_string())),
    }
}

fn plugins(config: &mut Value) -> Result<&mut Vec<Value>, Refusal> {
    if config.get("plugins").is_none() && !go_json::text(config, "type").is_empty() {
        return Err(Refusal::Single);
    }
    let plugins = config.get_mut("plugins").and_then(Value::as_array_mut);
    plugins.ok_or(Refusal::NoPlugins)
}

/// Replaces host-local, and returns the IPAM plugin if it is another one.
fn replace_ipam(main: &mut Value, kind: &str, directories: &Directories) -> Option<String> {
    let found = ipam_of(main).map(str::to_owned);
    let fields = main.as_object_mut()?;
    if kind == FLANNEL && go_json::key(fields, "ipam").is_none_or(|key| fields[key].is_null()) {
        // Without a section `ipam` it uses host-local.
        set(fields, "ipam", json!({}));
    }
    match found.as_deref() {
        Some(IPAM) => None,
        None if kind != FLANNEL => Some("none".to_owned()),
        None | Some(HOST_LOCAL) => {
            let ipam = go_json::field_mut(main, "ipam").and_then(Value::as_object_mut)?;
            set(ipam, "type", json!(IPAM));
            // The files of host-local are taken over from there, and host-local finds them again.
            if let Some(directory) = take(ipam, "dataDir") {
                ipam.insert("migrateFrom".to_owned(), directory);
            }
            ipam.extend(directories.settings());
            None
        }
        Some(other) => Some(other.to_owned()),
    }
}

/// A call of one of our plugins, as a runtime would make it.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Which plugin.
    pub plugin: &'static str,
    /// The configuration on standard input.
    pub config: Value,
}

/// The calls that a runtime would make with this configuration. Ranges that come only with an ADD have a stand-in.
pub fn calls(config: &Value) -> Vec<Call> {
    // STATUS exists since 1.1.0; nothing that it examines depends on the version.
    let version = VERSIONS[VERSIONS.len() - 1];
    let plugins = config["plugins"].as_array().map_or(&[][..], Vec::as_slice);
    let of = |plugin: &'static str, conf: &Value| {
        let mut conf = conf.clone();
        // Flannel's plugin or the runtime supplies them.
        let is_brought = go_json::text(&conf, "type") == FLANNEL
            || go_json::field(&conf, "capabilities")["ipRanges"] == true;
        if let Some(fields) = conf.as_object_mut() {
            set(fields, "name", config["name"].clone());
            set(fields, "cniVersion", json!(version));
            if is_brought {
                set(
                    fields,
                    "runtimeConfig",
                    json!({"ipRanges": [[{"subnet": STAND_IN}]]}),
                );
            }
        }
        Call {
            plugin,
            config: conf,
        }
    };
    let ipam = plugins
        .iter()
        .filter(|plugin| ipam_of(plugin) == Some(IPAM));
    let chained = plugins.iter().filter(|plugin| is_chained(plugin));
    ipam.map(|plugin| of(IPAM, plugin))
        .chain(chained.map(|plugin| of(CHAINED, plugin)))
        .collect()
}

impl Directories {
    fn settings(&self) -> [(String, Value); 2] {
        [
            ("dataDir".to_owned(), json!(self.data_dir)),
            ("runDir".to_owned(), json!(self.run_dir)),
        ]
    }
}

#[cfg(test)]
mod tests;
