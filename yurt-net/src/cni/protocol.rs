//! The language of container runtimes and plugins: requests and answers. Pure.
//!
//! Source: the CNI specification (containernetworking/cni, SPEC.md), versions 0.3.1 to 1.1.0. The configuration comes
//! on standard input, the rest in environment variables; the answer is JSON on standard output, and the exit code.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::CniError;
use crate::device::Mac;
use crate::go_json;
use crate::ledger::Key;
use crate::ledger::range::{Assigned, RangeConfig, RangeError, RangeSet};
use crate::ledger::rules::Attachment;
use crate::ledger::store::LedgerDirs;

/// A version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(&'static str);

/// In ascending order, also as text: `Version` compares them so.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

impl Version {
    /// The newest, used to answer configurations that cannot be read.
    pub(super) const NEWEST: Self = Self(VERSIONS[3]);

    pub(super) fn parse(text: &str) -> Result<Self, CniError> {
        let known = VERSIONS.into_iter().find(|&version| version == text);
        known.map(Self).ok_or_else(|| CniError::Version {
            version: text.to_owned(),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(super) fn parse(text: &str) -> Result<Self, CniError> {
        Ok(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => {
                return Err(CniError::Environment {
                    name: "CNI_COMMAND",
                    problem: "is not ADD, DEL, CHECK, GC, STATUS or VERSION",
                });
            }
        })
    }

    /// The first version that has this verb.
    pub(super) fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => "0.3.1",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }
}

/// The environment variables of a request.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`: a path, which may be empty or gone on DEL.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`.
    pub args: String,
}

impl Environment {
    /// The value of the last argument with this name, as in libcni's `LoadArgs`; empty if there is none.
    fn arg(&self, name: &str) -> &str {
        let pairs = self.args.split(';').filter_map(|pair| pair.split_once('='));
        let mut values = pairs.filter_map(|(key, value)| (key == name).then_some(value));
        values.next_back().unwrap_or("")
    }

    /// The interface that the request is for.
    pub fn attachment(&self, network: &str) -> Result<Attachment, CniError> {
        if !is_word(&self.container) {
            return Err(CniError::Environment {
                name: "CNI_CONTAINERID",
                problem: "is missing, or is not a container ID",
            });
        }
        let is_forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace();
        let is_interface = (1..=15).contains(&self.interface.len())
            && !self.interface.contains(is_forbidden)
            && !matches!(self.interface.as_str(), "." | "..");
        if !is_interface {
            return Err(CniError::Environment {
                name: "CNI_IFNAME",
                problem: "is missing, or is not the name of an interface",
            });
        }
        let [namespace, name, uid] =
            ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID"].map(|name| self.arg(name));
        let (namespace, name) = if namespace.is_empty() || name.is_empty() {
            ("", self.container.as_str())
        } else {
            (namespace, name)
        };
        Ok(Attachment {
            asker: None,
            key: Key {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                interface: self.interface.clone(),
            },
            uid: uid.to_owned(),
            container: self.container.clone(),
            network: network.to_owned(),
        })
    }

    /// The network namespace, which ADD and CHECK need.
    pub(super) fn netns(&self) -> Result<&str, CniError> {
        if self.netns.is_empty() {
            return Err(CniError::Environment {
                name: "CNI_NETNS",
                problem: "is missing",
            });
        }
        Ok(&self.netns)
    }
}

/// Whether a text is a container ID or the name of a network by libcni's rules. Both become parts of paths.
pub(super) fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && (text.bytes()).all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// The configuration on standard input.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    pub(super) cni_version: String,
    pub(super) name: String,
    /// `yurt-cni`'s policy. `yurt-ipam` gets the main plugin's configuration, where the key may mean anything: macvlan
    /// has a MAC there.
    mac: Value,
    pub(super) ipam: Option<Ipam>,
    runtime_config: RuntimeConfig,
    args: Args,
    /// The answer of the plugin before this one.
    pub prev_result: Option<Value>,
    /// `None` if the key is absent. Null is an empty list, as Go writes it.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub(super) valid_attachments: Option<Vec<ValidAttachment>>,
    /// Of `yurt-cni`, and of `yurt-ipam`. They stand beside what the plugin says otherwise.
    #[serde(skip)]
    pub(super) store: StoreConfig,
    #[serde(skip)]
    pub(super) ipam_store: StoreConfig,
}

/// Where the ledger is, and how long it retains addresses.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StoreConfig {
    pub(super) data_dir: String,
    pub(super) run_dir: String,
    /// Seconds after the last DEL.
    pub(super) ttl_seconds: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/yurt-net".to_owned(),
            run_dir: LedgerDirs::RUN_DIR.to_owned(),
            ttl_seconds: 24 * 3600,
        }
    }
}

impl StoreConfig {
    /// As in host-local, an empty directory is the default one.
    fn read(section: &Value) -> Result<Self, serde_json::Error> {
        let mut read: Self = go_json::read(section)?;
        let default = Self::default();
        if read.data_dir.is_empty() {
            read.data_dir = default.data_dir;
        }
        if read.run_dir.is_empty() {
            read.run_dir = default.run_dir;
        }
        Ok(read)
    }
}

/// The MAC that `yurt-cni` gives an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacPolicy {
    /// The one that is made of its address.
    #[default]
    Address,
    /// The one that it had the first time.
    First,
}

/// The section `ipam`, as far as `yurt-ipam` reads it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Ipam {
    ranges: Vec<Vec<RangeConfig>>,
    /// One range without a list around it: this field and the next three.
    #[serde(deserialize_with = "go_json::network")]
    subnet: Option<IpNetwork>,
    #[serde(deserialize_with = "go_json::address")]
    range_start: Option<IpAddr>,
    #[serde(deserialize_with = "go_json::address")]
    range_end: Option<IpAddr>,
    #[serde(deserialize_with = "go_json::address")]
    gateway: Option<IpAddr>,
    routes: Vec<Option<Route>>,
    pub(super) resolv_conf: String,
    /// Where host-local keeps its files; empty if there are none to take over.
    pub(super) migrate_from: Option<String>,
}

/// Passed on, with the fields that `types.Route` has, in its spelling.
#[derive(Debug, Serialize, Deserialize)]
struct Route {
    #[serde(deserialize_with = "go_json::some_network")]
    dst: IpNetwork,
    #[serde(
        default,
        deserialize_with = "go_json::address",
        skip_serializing_if = "Option::is_none"
    )]
    gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    advmss: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    ips: Vec<String>,
    mac: String,
    ip_ranges: Vec<Vec<RangeConfig>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Vec<String>,
    mac: String,
}

/// One of `cni.dev/valid-attachments`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(super) container: String,
    #[serde(rename = "ifname")]
    pub(super) interface: String,
}

impl Config {
    /// Text that is not UTF-8 is taken as Go takes it, with U+FFFD in its place.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        let text = String::from_utf8_lossy(text);
        let value: Value = serde_json::from_str(&text).map_err(CniError::Decode)?;
        Self::read(&value).map_err(CniError::Decode)
    }

    fn read(value: &Value) -> Result<Self, serde_json::Error> {
        const VALID: &str = "cni.dev/valid-attachments";
        let mut config: Self = go_json::read(value)?;
        config.store = StoreConfig::read(value)?;
        config.ipam_store = StoreConfig::read(go_json::field(value, "ipam"))?;
        let has_valid = value
            .as_object()
            .is_some_and(|fields| go_json::key(fields, VALID).is_some());
        if has_valid && config.valid_attachments.is_none() {
            config.valid_attachments = Some(Vec::new());
        }
        Ok(config)
    }

    /// The addresses of an interface: those that the runtime brings along first.
    pub fn range_sets(&self) -> Result<Vec<RangeSet>, RangeError> {
        let ipam = self.ipam.as_ref();
        let single = ipam.and_then(|ipam| {
            Some(vec![RangeConfig {
                subnet: ipam.subnet?,
                range_start: ipam.range_start,
                range_end: ipam.range_end,
                gateway: ipam.gateway,
            }])
        });
        let listed = ipam.map_or(&[][..], |ipam| &ipam.ranges);
        let brought = self.runtime_config.ip_ranges.iter();
        let sets: Vec<_> = brought
            .cloned()
            .chain(single)
            .chain(listed.iter().cloned())
            .collect();
        RangeSet::all(&sets)
    }

    /// Addresses that somebody asks for, each once.
    pub fn requested(&self, environment: &Environment) -> Result<Vec<IpAddr>, CniError> {
        let args = environment.arg("IP").split(',');
        let others = self.runtime_config.ips.iter().chain(&self.args.cni.ips);
        let mut requested = Vec::new();
        let texts = args.chain(others.map(String::as_str));
        for text in texts.filter(|text| !text.is_empty()) {
            let address = text.split_once('/').map_or(text, |(address, _)| address);
            let address: IpAddr = address.parse().map_err(|source| CniError::Requested {
                text: text.to_owned(),
                source,
            })?;
            let address = address.to_canonical();
            if !requested.contains(&address) {
                requested.push(address);
            }
        }
        Ok(requested)
    }

    /// Reads which MAC to give.
    pub fn mac_policy(&self) -> Result<MacPolicy, CniError> {
        // A word, and not a map of one key, which serde takes for a variant as well.
        let word = Option::<String>::deserialize(&self.mac).map_err(CniError::Decode)?;
        match word.filter(|word| !word.is_empty()) {
            None => Ok(MacPolicy::default()),
            Some(word) => MacPolicy::deserialize(Value::from(word)).map_err(CniError::Decode),
        }
    }

    /// A MAC that somebody asked the main plugin for.
    pub fn is_mac_requested(&self, environment: &Environment) -> bool {
        let asked = [
            environment.arg("MAC"),
            &self.runtime_config.mac,
            &self.args.cni.mac,
        ];
        asked.iter().any(|mac| !mac.is_empty())
    }

    /// The addresses that a previous result gives to this interface.
    pub fn claimed(&self, interface: &str) -> Result<Claimed, CniError> {
        let result = self
            .prev_result
            .as_ref()
            .ok_or(CniError::NoPreviousResult)?;
        let result: PrevResult = go_json::read(result).map_err(CniError::Decode)?;
        let index = (result.interfaces.iter())
            .position(|other| other.name == interface && !other.sandbox.is_empty());
        let is_here = |ip: &&PrevIp| match ip.interface {
            // An address of no interface is one of this one, as that of an IPAM plugin is.
            None => true,
            Some(of) => usize::try_from(of).ok() == index && index.is_some(),
        };
        let ips = result.ips.iter().flatten().filter(is_here);
        Ok(Claimed {
            addresses: ips.filter_map(|ip| Some(ip.address?.ip())).collect(),
            mac: index.and_then(|index| result.interfaces[index].mac.parse().ok()),
            index,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PrevResult {
    interfaces: Vec<PrevInterface>,
    ips: Vec<Option<PrevIp>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PrevInterface {
    name: String,
    mac: String,
    sandbox: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PrevIp {
    interface: Option<i64>,
    #[serde(deserialize_with = "go_json::network")]
    address: Option<IpNetwork>,
}

/// What a previous result says of an interface.
#[derive(Debug)]
pub struct Claimed {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC, where the result says one.
    pub mac: Option<Mac>,
    index: Option<usize>,
}

impl Claimed {
    /// The previous result with this MAC in it, and nothing else changed.
    pub fn result(&self, mut previous: Value, mac: Mac) -> Value {
        let interface = self.index.and_then(|index| {
            let interfaces = go_json::field_mut(&mut previous, "interfaces")?.get_mut(index)?;
            interfaces.as_object_mut()
        });
        if let Some(interface) = interface {
            let key = go_json::key(interface, "mac").unwrap_or("mac").to_owned();
            interface.insert(key, json!(mac));
        }
        previous
    }
}

/// The answer of `yurt-ipam`.
pub(super) fn ipam_result(
    version: Version,
    assigned: &[Assigned],
    config: &Config,
    resolver: &str,
) -> Value {
    let ips = assigned.iter().map(|Assigned { address, gateway }| {
        let mut ip = json!({ "address": address, "gateway": gateway });
        if version < Version("1.0.0") {
            ip["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
        }
        ip
    });
    let routes = config
        .ipam
        .iter()
        .flat_map(|ipam| ipam.routes.iter().flatten());
    json!({
        "cniVersion": version.0,
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": dns(resolver),
    })
}

/// What a `resolv.conf` says (resolv.conf(5)).
fn dns(resolver: &str) -> Value {
    let mut dns = json!({});
    for line in resolver.lines() {
        let mut words = line.split_whitespace();
        let (name, values) = (words.next(), words.map(str::to_owned).collect::<Vec<_>>());
        match name {
            Some("nameserver") => match &mut dns["nameservers"] {
                Value::Array(known) => known.extend(values.into_iter().take(1).map(Value::from)),
                none => *none = json!(values.get(..1).unwrap_or_default()),
            },
            Some("domain") => dns["domain"] = json!(values.first()),
            Some("search") => dns["search"] = json!(values),
            Some("options") => dns["options"] = json!(values),
            _ => {}
        }
    }
    dns
}

/// The answer to VERSION.
pub(super) fn versions() -> Value {
    json!({ "cniVersion": Version::NEWEST.0, "supportedVersions": VERSIONS })
}

/// The answer to a request that fails.
pub(super) fn failure(version: Version, error: &CniError) -> Value {
    let mut details = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if !details.is_empty() {
            details.push_str(": ");
        }
        details.push_str(&error.to_string());
        cause = error.source();
    }
    json!({ "cniVersion": version.0, "code": error.code(), "msg": error.to_string(), "details": details })
}
