//! KubeProxyConfiguration: its fields, the flags of kube-proxy that say the same, and what becomes of each. Pure.

use std::collections::BTreeMap;

use super::said::{Decoded, Remark, Setting};
use super::values::Shape;
use super::yaml::{Node, Value};

/// A field of KubeProxyConfiguration, as Kubernetes 1.36 has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Its place in the file.
    pub(crate) path: &'static str,
    /// The flag of kube-proxy that says the same; "": there is none.
    pub(crate) flag: &'static str,
    pub(crate) shape: Shape,
    /// Values that say what kube-proxy does anyway.
    defaults: &'static [&'static str],
    effect: Effect,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It is this flag of ours.
    Flag(&'static str),
    /// It is the name of a node, which Kubernetes writes in small letters.
    Node,
    /// It is `--drift-interval` where kube-proxy's mode is this one, and nothing elsewhere.
    Period(&'static str),
    /// It is the beginning of the names of devices, where kube-proxy would look for local clients behind them.
    Prefix,
    /// What it is for is done without it.
    Needless,
    /// It has no effect, and why.
    Ignored(&'static str),
    /// The same, where kube-proxy's mode is this one. Elsewhere kube-proxy ignores it, too.
    IgnoredIn(&'static str, &'static str),
}

use Effect::{Flag, Ignored, IgnoredIn, Needless, Node as NodeName, Period, Prefix};

const NAT: &str = "a socket dials its backend itself, and needs neither NAT nor marks";
const CONNTRACK: &str = "connections are not tracked for Services; set net.netfilter.nf_conntrack_* by sysctl where others need it";
const IPVS: &str = "there is no IPVS";
const WINDOWS: &str = "this is not Windows";
const API: &str = "each kind of object is listed once and then watched, as JSON";
const LOGS: &str = "each line of the log is written at once, to stderr";

/// Values that mean the default, besides an empty text.
const ZERO: &[&str] = &["0", "0s"];
const FALSE: &[&str] = &["false"];

const fn field(
    path: &'static str,
    flag: &'static str,
    shape: Shape,
    defaults: &'static [&'static str],
    effect: Effect,
) -> Field {
    Field {
        path,
        flag,
        shape,
        defaults,
        effect,
    }
}

const I32: Shape = Shape::Integer(0, i32::MAX as i64);
const BIT: Shape = Shape::Integer(0, 31);
const PORT: Shape = Shape::Integer(0, 65535);

/// Every field.
#[rustfmt::skip]
pub(crate) const FIELDS: &[Field] = &[
    field("featureGates", "feature-gates", Shape::Switches, &[], Ignored("these are kube-proxy's own")),
    field("clientConnection.kubeconfig", "kubeconfig", Shape::Text, &[], Flag("kubeconfig")),
    field("clientConnection.acceptContentTypes", "", Shape::Text, &[], Ignored(API)),
    field("clientConnection.contentType", "kube-api-content-type", Shape::Text, &["application/vnd.kubernetes.protobuf"], Ignored(API)),
    field("clientConnection.qps", "kube-api-qps", Shape::Number, &["0", "5"], Ignored(API)),
    field("clientConnection.burst", "kube-api-burst", I32, &["0", "10"], Ignored(API)),
    field("logging.format", "logging-format", Shape::OneOf(&["", "text", "json"]), &[], Flag("log-format")),
    field("logging.flushFrequency", "log-flush-frequency", Shape::Time, &[], Needless),
    field("logging.verbosity", "v", I32, &["0"], Flag("v")),
    field("logging.vmodule", "vmodule", Shape::Anything, &[], Ignored("RUST_LOG has levels by module")),
    field("logging.options.text.splitStream", "log-text-split-stream", Shape::Bool, FALSE, Ignored(LOGS)),
    field("logging.options.text.infoBufferSize", "log-text-info-buffer-size", Shape::Text, &["0"], Ignored(LOGS)),
    field("logging.options.json.splitStream", "log-json-split-stream", Shape::Bool, FALSE, Ignored(LOGS)),
    field("logging.options.json.infoBufferSize", "log-json-info-buffer-size", Shape::Text, &["0"], Ignored(LOGS)),
    field("hostnameOverride", "hostname-override", Shape::Text, &[], NodeName),
    field("bindAddress", "bind-address", Shape::Address, &["0.0.0.0", "::"], Ignored("the addresses of this node are those of its Node object")),
    field("healthzBindAddress", "healthz-bind-address", Shape::Bind(10256), &[], Flag("healthz-bind-address")),
    field("metricsBindAddress", "metrics-bind-address", Shape::Bind(10249), &[], Flag("metrics-bind-address")),
    field("bindAddressHardFail", "bind-address-hard-fail", Shape::Bool, FALSE, Ignored("a port that is taken is tried again, and status says so")),
    field("enableProfiling", "profiling", Shape::Bool, FALSE, Ignored("there is no profiler")),
    field("showHiddenMetricsForVersion", "show-hidden-metrics-for-version", Shape::Text, &[], Ignored("no metric is hidden")),
    field("mode", "proxy-mode", Shape::OneOf(&["", "iptables", "ipvs", "nftables", "userspace", "kernelspace"]), &[], Needless),
    field("iptables.masqueradeBit", "iptables-masquerade-bit", BIT, &["14"], IgnoredIn("iptables", NAT)),
    field("iptables.masqueradeAll", "masquerade-all", Shape::Bool, FALSE, IgnoredIn("iptables", NAT)),
    field("iptables.localhostNodePorts", "iptables-localhost-nodeports", Shape::Bool, &["true"], IgnoredIn("iptables", "processes of the node itself reach NodePorts at 127.0.0.1")),
    field("iptables.syncPeriod", "iptables-sync-period", Shape::Time, ZERO, Period("iptables")),
    field("iptables.minSyncPeriod", "iptables-min-sync-period", Shape::Time, &["0s", "1s"], IgnoredIn("iptables", "a change is written when it comes")),
    field("ipvs.syncPeriod", "ipvs-sync-period", Shape::Time, ZERO, Period("ipvs")),
    field("ipvs.minSyncPeriod", "ipvs-min-sync-period", Shape::Time, ZERO, IgnoredIn("ipvs", "a change is written when it comes")),
    field("ipvs.scheduler", "ipvs-scheduler", Shape::Text, &["rr"], IgnoredIn("ipvs", "the endpoint of a connection is chosen at random")),
    field("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", Shape::Cidrs, &[], IgnoredIn("ipvs", IPVS)),
    field("ipvs.strictARP", "ipvs-strict-arp", Shape::Bool, FALSE, IgnoredIn("ipvs", "no address of a Service is on a device, so none is answered for")),
    field("ipvs.tcpTimeout", "ipvs-tcp-timeout", Shape::Time, ZERO, IgnoredIn("ipvs", IPVS)),
    field("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", Shape::Time, ZERO, IgnoredIn("ipvs", IPVS)),
    field("ipvs.udpTimeout", "ipvs-udp-timeout", Shape::Time, ZERO, IgnoredIn("ipvs", IPVS)),
    field("nftables.masqueradeBit", "", BIT, &["14"], IgnoredIn("nftables", NAT)),
    field("nftables.masqueradeAll", "", Shape::Bool, FALSE, IgnoredIn("nftables", NAT)),
    field("nftables.syncPeriod", "", Shape::Time, ZERO, Period("nftables")),
    field("nftables.minSyncPeriod", "", Shape::Time, &["0s", "1s"], IgnoredIn("nftables", "a change is written when it comes")),
    field("winkernel.networkName", "", Shape::Text, &[], Ignored(WINDOWS)),
    field("winkernel.sourceVip", "", Shape::Text, &[], Ignored(WINDOWS)),
    field("winkernel.enableDSR", "", Shape::Bool, FALSE, Ignored(WINDOWS)),
    field("winkernel.rootHnsEndpointName", "", Shape::Text, &[], Ignored(WINDOWS)),
    field("winkernel.forwardHealthCheckVip", "", Shape::Bool, FALSE, Ignored(WINDOWS)),
    field("detectLocalMode", "detect-local-mode", Shape::OneOf(&["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]), &[], Needless),
    field("detectLocal.bridgeInterface", "pod-bridge-interface", Shape::Text, &[], Needless),
    field("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix", Shape::Text, &[], Prefix),
    field("clusterCIDR", "cluster-cidr", Shape::Cidrs, &[], Needless),
    field("nodePortAddresses", "nodeport-addresses", Shape::NodePorts, &[], Flag("nodeport-addresses")),
    field("oomScoreAdj", "oom-score-adj", Shape::Integer(-1000, 1000), &[], Flag("oom-score-adj")),
    field("conntrack.maxPerCore", "conntrack-max-per-core", I32, &["32768"], Ignored(CONNTRACK)),
    field("conntrack.min", "conntrack-min", I32, &["131072"], Ignored(CONNTRACK)),
    field("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established", Shape::Time, &["1day"], Ignored(CONNTRACK)),
    field("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", Shape::Time, &["1h"], Ignored(CONNTRACK)),
    field("conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal", Shape::Bool, FALSE, Ignored(CONNTRACK)),
    field("conntrack.udpTimeout", "conntrack-udp-timeout", Shape::Time, ZERO, Ignored(CONNTRACK)),
    field("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", Shape::Time, ZERO, Ignored(CONNTRACK)),
    field("configSyncPeriod", "config-sync-period", Shape::Time, &["0s", "15m"], Ignored("changes are watched, and a watch that is silent is renewed")),
    field("portRange", "", Shape::Text, &[], Ignored("kube-proxy has not used it for years, either")),
    field("windowsRunAsService", "", Shape::Bool, FALSE, Ignored(WINDOWS)),
];

/// A flag of kube-proxy that no field has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flagged {
    pub(crate) flag: &'static str,
    pub(crate) shape: Shape,
    becomes: Becomes,
}

/// What becomes of such a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// It is the apiserver, where no kubeconfig says which.
    Source,
    /// With 0 it is this flag of ours with no address.
    Nowhere(&'static str),
    /// It asks for something else than to run: what does that here.
    Refused(&'static str),
}

/// Every flag without a field, but `--config`.
#[rustfmt::skip]
pub(crate) const FLAGGED: &[Flagged] = &[
    Flagged { flag: "master", shape: Shape::Text, becomes: Becomes::Source },
    Flagged { flag: "healthz-port", shape: PORT, becomes: Becomes::Nowhere("healthz-bind-address") },
    Flagged { flag: "metrics-port", shape: PORT, becomes: Becomes::Nowhere("metrics-bind-address") },
    Flagged { flag: "write-config-to", shape: Shape::Text, becomes: Becomes::Refused("defaults are written nowhere: see yurt-net run --help") },
    Flagged { flag: "cleanup", shape: Shape::Bool, becomes: Becomes::Refused("yurt-net cleanup removes what yurt-net has left") },
    Flagged { flag: "init-only", shape: Shape::Bool, becomes: Becomes::Refused("there is nothing to prepare: the agent needs its capabilities while it runs") },
];

/// What was said, and where.
struct Given {
    line: usize,
    /// The field or the flag.
    name: String,
    /// As flags take it; none: nothing was said.
    values: Vec<String>,
}

impl Given {
    fn sets(&self, flag: &str, value: &str) -> Setting {
        Setting {
            flag: flag.to_owned(),
            value: value.to_owned(),
            line: self.line,
            field: self.name.clone(),
        }
    }

    fn first(&self) -> &str {
        self.values.first().map_or("", |value| value)
    }
}

/// Takes in a document, which may be empty, and kube-proxy's flags, which win over it: their names and values.
pub(super) fn decode(
    document: &[(super::yaml::Name, Node)],
    flags: &[(&str, Vec<String>)],
    decoded: &mut Decoded,
) {
    let mut given = BTreeMap::new();
    collect("", document, &mut given, decoded);
    for (flag, values) in flags {
        take_flag(flag, values, &mut given, decoded);
    }
    let text = |path: &str| given.get(path).map_or("", Given::first);
    let mode = match text("mode") {
        "" => "iptables",
        mode => mode,
    };
    let looks_for_names = text("detectLocalMode") == "InterfaceNamePrefix";
    for field in FIELDS {
        let Some(said) = given.get(field.path) else {
            continue;
        };
        let is_default = said.values.iter().all(|value| {
            let mut defaults = field.defaults.iter();
            value.is_empty() && field.shape != Shape::Anything
                || defaults.any(|default| default == value)
        });
        if is_default {
            continue;
        }
        // There are no flags for nftables: kube-proxy takes those for iptables.
        let is_flag = said.line == 0;
        let is_in_force =
            |of: &str| of == mode || is_flag && (of, mode) == ("iptables", "nftables");
        let mut set = |flag: &str, value: &str| decoded.settings.push(said.sets(flag, value));
        match field.effect {
            Flag(flag) => set(flag, &said.values.join(",")),
            NodeName => set("node", &said.first().trim().to_lowercase()),
            Period(of) if is_in_force(of) => set("drift-interval", said.first()),
            Prefix if looks_for_names => set("device", &format!("{}*", said.first())),
            Ignored(why) => decoded.ignore(said.line, &said.name, why),
            IgnoredIn(of, why) if is_in_force(of) => decoded.ignore(said.line, &said.name, why),
            Needless | Period(_) | Prefix | IgnoredIn(..) => {}
        }
    }
    let has = |flag: &str| flags.iter().any(|(given, _)| *given == flag);
    // Where kube-proxy's own address is of the other family, its ports are, too.
    if let Some(said) = given
        .get("bindAddress")
        .filter(|said| said.first().contains(':'))
    {
        for (path, flag, off, address) in [
            (
                "healthzBindAddress",
                "healthz-bind-address",
                "healthz-port",
                "[::]:10256",
            ),
            (
                "metricsBindAddress",
                "metrics-bind-address",
                "metrics-port",
                "[::1]:10249",
            ),
        ] {
            if text(path).is_empty() && !has(off) {
                decoded.settings.push(said.sets(flag, address));
            }
        }
    }
    if has("master") && !text("clientConnection.kubeconfig").is_empty() {
        decoded.problems.push(Remark {
            line: 0,
            field: "--master".to_owned(),
            what: "the kubeconfig says where the apiserver is: give one of both".to_owned(),
        });
    }
}

/// Takes a flag of kube-proxy in.
fn take_flag(
    flag: &str,
    values: &[String],
    given: &mut BTreeMap<&'static str, Given>,
    decoded: &mut Decoded,
) {
    let name = format!("--{flag}");
    let wrong = |what: String| Remark {
        line: 0,
        field: name.clone(),
        what,
    };
    let field = FIELDS.iter().find(|field| field.flag == flag);
    let flagged = FLAGGED.iter().find(|flagged| flagged.flag == flag);
    let shape = match (field, flagged) {
        (Some(field), _) => field.shape,
        (None, Some(flagged)) => flagged.shape,
        (None, None) => return,
    };
    let said = match shape.read_flag(values) {
        Ok(values) => Given {
            line: 0,
            name: name.clone(),
            values,
        },
        Err(what) => return decoded.problems.push(wrong(what)),
    };
    if let Some(field) = field {
        given.insert(field.path, said);
        return;
    }
    match (flagged.map(|flagged| flagged.becomes), said.first()) {
        (Some(Becomes::Source), url) if !url.is_empty() => {
            decoded
                .settings
                .push(said.sets("source", &format!("kube:{url}")));
        }
        (Some(Becomes::Nowhere(flag)), "0") => decoded.settings.push(said.sets(flag, "")),
        (Some(Becomes::Refused(why)), value) if !["", "false"].contains(&value) => {
            decoded.problems.push(wrong(why.to_owned()));
        }
        _ => {}
    }
}

/// Reads the fields below a path, each by its type.
fn collect(
    above: &str,
    fields: &[(super::yaml::Name, Node)],
    given: &mut BTreeMap<&'static str, Given>,
    decoded: &mut Decoded,
) {
    for (name, node) in fields {
        let path = match above {
            "" => name.text.clone(),
            above => format!("{above}.{}", name.text),
        };
        if above.is_empty() && ["apiVersion", "kind"].contains(&&*name.text) {
            continue;
        }
        if let Some(field) = FIELDS.iter().find(|field| field.path == path) {
            match field.shape.read(node) {
                Ok(values) => {
                    let said = Given {
                        line: name.line,
                        name: path.clone(),
                        values,
                    };
                    if given.insert(field.path, said).is_some() {
                        decoded.ignore(name.line, &path, "it is there twice: the last one counts");
                    }
                }
                Err(what) => decoded.problems.push(Remark {
                    line: node.line,
                    field: path,
                    what,
                }),
            }
            continue;
        }
        let is_section = FIELDS.iter().any(|field| {
            let below = field.path.strip_prefix(&*path);
            below.is_some_and(|below| below.starts_with('.'))
        });
        match (&node.value, is_section) {
            (Value::Map(below), true) => collect(&path, below, given, decoded),
            (Value::Null, true) => {}
            (_, true) => decoded.problems.push(Remark {
                line: node.line,
                field: path,
                what: "expected a map of fields".to_owned(),
            }),
            (_, false) => {
                let known = FIELDS.iter().map(|field| field.path);
                decoded.unknown(name.line, &path, known);
            }
        }
    }
}
