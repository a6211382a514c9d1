//! KubeProxyConfiguration: its fields, and what becomes of each. Pure.

use std::collections::BTreeMap;

use super::said::{Decoded, Remark, Setting};
use super::values::Shape;
use super::yaml::{Node, Value};

/// A field of KubeProxyConfiguration, as Kubernetes 1.36 has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Its place in the file.
    pub(crate) path: &'static str,
    shape: Shape,
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
    shape: Shape,
    defaults: &'static [&'static str],
    effect: Effect,
) -> Field {
    Field {
        path,
        shape,
        defaults,
        effect,
    }
}

const I32: Shape = Shape::Integer(0, i32::MAX as i64);
const BIT: Shape = Shape::Integer(0, 31);

/// Every field.
#[rustfmt::skip]
pub(crate) const FIELDS: &[Field] = &[
    field("featureGates", Shape::Switches, &[], Ignored("these are kube-proxy's own")),
    field("clientConnection.kubeconfig", Shape::Text, &[], Flag("kubeconfig")),
    field("clientConnection.acceptContentTypes", Shape::Text, &[], Ignored(API)),
    field("clientConnection.contentType", Shape::Text, &["application/vnd.kubernetes.protobuf"], Ignored(API)),
    field("clientConnection.qps", Shape::Number, &["0", "5"], Ignored(API)),
    field("clientConnection.burst", I32, &["0", "10"], Ignored(API)),
    field("logging.format", Shape::OneOf(&["", "text", "json"]), &[], Flag("log-format")),
    field("logging.flushFrequency", Shape::Time, &[], Needless),
    field("logging.verbosity", I32, &["0"], Flag("v")),
    field("logging.vmodule", Shape::Anything, &[], Ignored("RUST_LOG has levels by module")),
    field("logging.options.text.splitStream", Shape::Bool, FALSE, Ignored(LOGS)),
    field("logging.options.text.infoBufferSize", Shape::Text, &["0"], Ignored(LOGS)),
    field("logging.options.json.splitStream", Shape::Bool, FALSE, Ignored(LOGS)),
    field("logging.options.json.infoBufferSize", Shape::Text, &["0"], Ignored(LOGS)),
    field("hostnameOverride", Shape::Text, &[], NodeName),
    field("bindAddress", Shape::Address, &["0.0.0.0", "::"], Ignored("the addresses of this node are those of its Node object")),
    field("healthzBindAddress", Shape::Bind(10256), &[], Flag("healthz-bind-address")),
    field("metricsBindAddress", Shape::Bind(10249), &[], Flag("metrics-bind-address")),
    field("bindAddressHardFail", Shape::Bool, FALSE, Ignored("a port that is taken is tried again, and status says so")),
    field("enableProfiling", Shape::Bool, FALSE, Ignored("there is no profiler")),
    field("showHiddenMetricsForVersion", Shape::Text, &[], Ignored("no metric is hidden")),
    field("mode", Shape::OneOf(&["", "iptables", "ipvs", "nftables", "userspace", "kernelspace"]), &[], Needless),
    field("iptables.masqueradeBit", BIT, &["14"], IgnoredIn("iptables", NAT)),
    field("iptables.masqueradeAll", Shape::Bool, FALSE, IgnoredIn("iptables", NAT)),
    field("iptables.localhostNodePorts", Shape::Bool, &["true"], IgnoredIn("iptables", "processes of the node itself reach NodePorts at 127.0.0.1")),
    field("iptables.syncPeriod", Shape::Time, ZERO, Period("iptables")),
    field("iptables.minSyncPeriod", Shape::Time, &["0s", "1s"], IgnoredIn("iptables", "a change is written when it comes")),
    field("ipvs.syncPeriod", Shape::Time, ZERO, Period("ipvs")),
    field("ipvs.minSyncPeriod", Shape::Time, ZERO, IgnoredIn("ipvs", "a change is written when it comes")),
    field("ipvs.scheduler", Shape::Text, &["rr"], IgnoredIn("ipvs", "the endpoint of a connection is chosen at random")),
    field("ipvs.excludeCIDRs", Shape::Cidrs, &[], IgnoredIn("ipvs", IPVS)),
    field("ipvs.strictARP", Shape::Bool, FALSE, IgnoredIn("ipvs", "no address of a Service is on a device, so none is answered for")),
    field("ipvs.tcpTimeout", Shape::Time, ZERO, IgnoredIn("ipvs", IPVS)),
    field("ipvs.tcpFinTimeout", Shape::Time, ZERO, IgnoredIn("ipvs", IPVS)),
    field("ipvs.udpTimeout", Shape::Time, ZERO, IgnoredIn("ipvs", IPVS)),
    field("nftables.masqueradeBit", BIT, &["14"], IgnoredIn("nftables", NAT)),
    field("nftables.masqueradeAll", Shape::Bool, FALSE, IgnoredIn("nftables", NAT)),
    field("nftables.syncPeriod", Shape::Time, ZERO, Period("nftables")),
    field("nftables.minSyncPeriod", Shape::Time, &["0s", "1s"], IgnoredIn("nftables", "a change is written when it comes")),
    field("winkernel.networkName", Shape::Text, &[], Ignored(WINDOWS)),
    field("winkernel.sourceVip", Shape::Text, &[], Ignored(WINDOWS)),
    field("winkernel.enableDSR", Shape::Bool, FALSE, Ignored(WINDOWS)),
    field("winkernel.rootHnsEndpointName", Shape::Text, &[], Ignored(WINDOWS)),
    field("winkernel.forwardHealthCheckVip", Shape::Bool, FALSE, Ignored(WINDOWS)),
    field("detectLocalMode", Shape::OneOf(&["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]), &[], Needless),
    field("detectLocal.bridgeInterface", Shape::Text, &[], Needless),
    field("detectLocal.interfaceNamePrefix", Shape::Text, &[], Prefix),
    field("clusterCIDR", Shape::Cidrs, &[], Needless),
    field("nodePortAddresses", Shape::NodePorts, &["primary"], Ignored("a NodePort is served at the primary addresses of the node")),
    field("oomScoreAdj", Shape::Integer(-1000, 1000), &[], Flag("oom-score-adj")),
    field("conntrack.maxPerCore", I32, &["32768"], Ignored(CONNTRACK)),
    field("conntrack.min", I32, &["131072"], Ignored(CONNTRACK)),
    field("conntrack.tcpEstablishedTimeout", Shape::Time, &["1day"], Ignored(CONNTRACK)),
    field("conntrack.tcpCloseWaitTimeout", Shape::Time, &["1h"], Ignored(CONNTRACK)),
    field("conntrack.tcpBeLiberal", Shape::Bool, FALSE, Ignored(CONNTRACK)),
    field("conntrack.udpTimeout", Shape::Time, ZERO, Ignored(CONNTRACK)),
    field("conntrack.udpStreamTimeout", Shape::Time, ZERO, Ignored(CONNTRACK)),
    field("configSyncPeriod", Shape::Time, &["0s", "15m"], Ignored("changes are watched, and a watch that is silent is renewed")),
    field("portRange", Shape::Text, &[], Ignored("kube-proxy has not used it for years, either")),
    field("windowsRunAsService", Shape::Bool, FALSE, Ignored(WINDOWS)),
];

/// What was said, and where.
struct Given {
    line: usize,
    /// As flags take it; none: nothing was said.
    values: Vec<String>,
}

impl Given {
    fn first(&self) -> &str {
        self.values.first().map_or("", |value| value)
    }
}

/// Takes a document in.
pub(super) fn decode(document: &[(super::yaml::Name, Node)], decoded: &mut Decoded) {
    let mut given = BTreeMap::new();
    collect("", document, &mut given, decoded);
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
        let mut set = |flag: &str, value: &str| {
            decoded.settings.push(Setting {
                flag: flag.to_owned(),
                value: value.to_owned(),
                line: said.line,
                field: field.path.to_owned(),
            });
        };
        match field.effect {
            Flag(flag) => said.values.iter().for_each(|value| set(flag, value)),
            NodeName => set("node", &said.first().trim().to_lowercase()),
            Period(of) if of == mode => set("drift-interval", said.first()),
            Prefix if looks_for_names => set("device", &format!("{}*", said.first())),
            Ignored(why) => decoded.ignore(said.line, field.path, why),
            IgnoredIn(of, why) if of == mode => decoded.ignore(said.line, field.path, why),
            Needless | Period(_) | Prefix | IgnoredIn(..) => {}
        }
    }
    // Where kube-proxy's own address is of the other family, its ports are, too.
    if text("bindAddress").contains(':') {
        let line = given.get("bindAddress").map_or(0, |said| said.line);
        for (path, flag, address) in [
            ("healthzBindAddress", "healthz-bind-address", "[::]:10256"),
            ("metricsBindAddress", "metrics-bind-address", "[::1]:10249"),
        ] {
            if text(path).is_empty() {
                decoded.settings.push(Setting {
                    flag: flag.to_owned(),
                    value: address.to_owned(),
                    line,
                    field: "bindAddress".to_owned(),
                });
            }
        }
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
                    let line = name.line;
                    if given.insert(field.path, Given { line, values }).is_some() {
                        decoded.ignore(line, &path, "it is there twice: the last one counts");
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
