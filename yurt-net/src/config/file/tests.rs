use clap::CommandFactory as _;

use super::own::camel_case;
use super::proxy::FIELDS;
use super::*;
use crate::config::Cli;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const OWN_HEAD: &str =
    "---\napiVersion: yurt-net.openyurt.io/v1alpha1\nkind: YurtNetConfiguration\n";

fn decoded(text: &str) -> Decoded {
    let cli = Cli::command();
    decode(text, cli.find_subcommand("run").unwrap())
}

/// Settings, as words.
fn set(decoded: &Decoded) -> Vec<String> {
    let settings = decoded.settings.iter();
    settings
        .map(|setting| format!("--{}={}", setting.flag, setting.value))
        .collect()
}

fn said(remarks: &[Remark]) -> Vec<String> {
    remarks.iter().map(Remark::to_string).collect()
}

/// What a field does.
enum Does {
    /// It sets flags.
    Sets(&'static [&'static str]),
    /// It is done without.
    Nothing,
    /// It is ignored, and that is said.
    Warns,
}

/// A field of KubeProxyConfiguration; a value for it that is not kube-proxy's default; what else must be said; and what
/// comes of it.
type Row = (&'static str, &'static str, &'static str, Does);

use Does::{Nothing, Sets, Warns};

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("featureGates", "{AllAlpha: true}", "", Warns),
    ("clientConnection.kubeconfig", "/k", "", Sets(&["--kubeconfig=/k"])),
    ("clientConnection.acceptContentTypes", "application/json", "", Warns),
    ("clientConnection.contentType", "application/json", "", Warns),
    ("clientConnection.qps", "50", "", Warns),
    ("clientConnection.burst", "100", "", Warns),
    ("logging.format", "json", "", Sets(&["--log-format=json"])),
    ("logging.flushFrequency", "5s", "", Nothing),
    ("logging.verbosity", "4", "", Sets(&["--v=4"])),
    ("logging.vmodule", "[{filePattern: proxier, verbosity: 4}]", "", Warns),
    ("logging.options.text.splitStream", "true", "", Warns),
    ("logging.options.text.infoBufferSize", "1Mi", "", Warns),
    ("logging.options.json.splitStream", "true", "", Warns),
    ("logging.options.json.infoBufferSize", "1Mi", "", Warns),
    ("hostnameOverride", " Edge-A1", "", Sets(&["--node=edge-a1"])),
    ("bindAddress", "192.0.2.1", "", Warns),
    ("healthzBindAddress", "127.0.0.1", "", Sets(&["--healthz-bind-address=127.0.0.1:10256"])),
    ("metricsBindAddress", "0.0.0.0:9", "", Sets(&["--metrics-bind-address=0.0.0.0:9"])),
    ("bindAddressHardFail", "true", "", Warns),
    ("enableProfiling", "true", "", Warns),
    ("showHiddenMetricsForVersion", "'1.35'", "", Warns),
    ("mode", "nftables", "", Nothing),
    ("iptables.masqueradeBit", "15", "", Warns),
    ("iptables.masqueradeAll", "true", "", Warns),
    ("iptables.localhostNodePorts", "false", "", Warns),
    ("iptables.syncPeriod", "1m0s", "", Sets(&["--drift-interval=1m"])),
    ("iptables.minSyncPeriod", "10s", "", Warns),
    ("ipvs.syncPeriod", "1m0s", "mode: ipvs", Sets(&["--drift-interval=1m"])),
    ("ipvs.minSyncPeriod", "10s", "mode: ipvs", Warns),
    ("ipvs.scheduler", "sh", "mode: ipvs", Warns),
    ("ipvs.excludeCIDRs", "[192.0.2.0/24]", "mode: ipvs", Warns),
    ("ipvs.strictARP", "true", "mode: ipvs", Warns),
    ("ipvs.tcpTimeout", "1h", "mode: ipvs", Warns),
    ("ipvs.tcpFinTimeout", "1h", "mode: ipvs", Warns),
    ("ipvs.udpTimeout", "1h", "mode: ipvs", Warns),
    ("nftables.masqueradeBit", "15", "mode: nftables", Warns),
    ("nftables.masqueradeAll", "true", "mode: nftables", Warns),
    ("nftables.syncPeriod", "1m0s", "mode: nftables", Sets(&["--drift-interval=1m"])),
    ("nftables.minSyncPeriod", "10s", "mode: nftables", Warns),
    ("winkernel.networkName", "cbr0", "", Warns),
    ("winkernel.sourceVip", "192.0.2.1", "", Warns),
    ("winkernel.enableDSR", "true", "", Warns),
    ("winkernel.rootHnsEndpointName", "cbr0", "", Warns),
    ("winkernel.forwardHealthCheckVip", "true", "", Warns),
    ("detectLocalMode", "NodeCIDR", "", Nothing),
    ("detectLocal.bridgeInterface", "cni0", "detectLocalMode: BridgeInterface", Nothing),
    ("detectLocal.interfaceNamePrefix", "cali", "detectLocalMode: InterfaceNamePrefix", Sets(&["--device=cali*"])),
    ("clusterCIDR", "10.244.0.0/16,fd00:10:244::/56", "", Nothing),
    ("nodePortAddresses", "[192.0.2.0/24]", "", Warns),
    ("oomScoreAdj", "-998", "", Sets(&["--oom-score-adj=-998"])),
    ("conntrack.maxPerCore", "0", "", Warns),
    ("conntrack.min", "0", "", Warns),
    ("conntrack.tcpEstablishedTimeout", "1h", "", Warns),
    ("conntrack.tcpCloseWaitTimeout", "1m", "", Warns),
    ("conntrack.tcpBeLiberal", "true", "", Warns),
    ("conntrack.udpTimeout", "30s", "", Warns),
    ("conntrack.udpStreamTimeout", "5m", "", Warns),
    ("configSyncPeriod", "1m", "", Warns),
    ("portRange", "1000-2000", "", Warns),
    ("windowsRunAsService", "true", "", Warns),
];

/// A field in a file, by its path.
fn written(path: &str, value: &str) -> String {
    let mut text = String::new();
    let mut parts = path.split('.').peekable();
    let mut indent = 0;
    while let Some(part) = parts.next() {
        let value = if parts.peek().is_none() { value } else { "" };
        text += &format!("{:indent$}{part}: {value}\n", "");
        indent += 2;
    }
    text
}

#[test]
fn every_field_of_kube_proxy_s_configuration_is_taken_mapped_or_ignored_by_name() {
    let rows: Vec<&str> = ROWS.iter().map(|row| row.0).collect();
    let fields: Vec<&str> = FIELDS.iter().map(|field| field.path).collect();
    assert_eq!(rows, fields);
    for (path, value, besides, does) in ROWS {
        let decoded = decoded(&format!("{HEAD}{besides}\n{}", written(path, value)));
        assert_eq!(said(&decoded.problems), [""; 0], "{path}");
        let expected: &[&str] = if let Sets(words) = does { words } else { &[] };
        assert_eq!(set(&decoded), expected, "{path}");
        let warned: Vec<&str> = decoded.warnings.iter().map(|it| &*it.field).collect();
        let expected: &[&str] = if let Warns = does { &[path] } else { &[] };
        assert_eq!(warned, expected, "{path}");
    }
}

#[test]
fn a_field_that_is_null_or_empty_is_as_if_it_were_absent() {
    for field in FIELDS {
        for value in ["null", "", "~"] {
            let decoded = decoded(&format!("{HEAD}{}", written(field.path, value)));
            assert_eq!(decoded, Decoded::default(), "{}: {value}", field.path);
        }
    }
}

#[test]
fn what_a_mode_that_is_not_in_force_has_is_ignored_as_kube_proxy_does() {
    for text in [
        "ipvs: {scheduler: sh, syncPeriod: 1m}",
        "mode: ipvs\niptables: {syncPeriod: 1m}",
    ] {
        assert_eq!(decoded(&format!("{HEAD}{text}")), Decoded::default());
    }
}

/// As `kubeadm init` writes it.
const KUBEADM: &str = r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, tcpTimeout: 0s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"#;

#[test]
fn what_kubeadm_writes_is_taken_without_a_word() {
    let decoded = decoded(KUBEADM);
    assert_eq!(said(&decoded.problems), [""; 0]);
    assert_eq!(said(&decoded.warnings), [""; 0]);
    assert_eq!(
        set(&decoded),
        ["--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf"]
    );
}

#[test]
fn ports_are_of_the_other_family_where_kube_proxy_s_own_address_is() {
    let decoded = decoded(&format!(
        "{HEAD}bindAddress: '::'\nmetricsBindAddress: '[::]:9'\n"
    ));
    let expected = [
        "--metrics-bind-address=[::]:9",
        "--healthz-bind-address=[::]:10256",
    ];
    assert_eq!(set(&decoded), expected);
}

#[test]
fn all_that_is_wrong_is_said_at_once_with_its_lines() {
    let text = format!(
        "{HEAD}mode: 5\nclientConnection: x\niptables:\n  masqueradeBit: 32\n  syncPeriod: soon\nnodePortAddresses:\n- primary\n\
         - 192.0.2.0/24\nfeatureGates: {{A: maybe}}\noomScoreAdj: 1001\n{OWN_HEAD}nodepool: {{}}\nguard: [a, b]\nrepairPeers: maybe\n"
    );
    let decoded = decoded(&text);
    let expected = [
        r#"3: mode: "5": expected one of iptables, ipvs, nftables, userspace, kernelspace"#,
        "4: clientConnection: expected a map of fields",
        r#"6: iptables.masqueradeBit: "32": expected an integer from 0 to 31"#,
        r#"7: iptables.syncPeriod: "soon": expected a time such as 30s, 1m30s or 500ms, not below 0"#,
        r#"9: nodePortAddresses: "primary": expected a prefix, as 192.0.2.0/24, or the word primary and nothing else"#,
        "11: featureGates: A: expected true or false",
        r#"12: oomScoreAdj: "1001": expected an integer from -1000 to 1000"#,
        "16: nodepool: expected a value, and no map: one with a colon at its end needs quotes",
        "17: guard: expected one value, and no list",
        "18: repairPeers: expected true or false",
    ];
    assert_eq!(said(&decoded.problems), expected);
}

#[test]
fn a_field_that_nobody_knows_is_ignored_and_named() {
    let text = format!(
        "{HEAD}nodeportaddresses: [primary]\nipvs: {{speed: 9}}\nspeed: 9\n{OWN_HEAD}Guard: off\n"
    );
    let decoded = decoded(&text);
    assert_eq!(said(&decoded.problems), [""; 0]);
    let expected = [
        "3: nodeportaddresses: ignored: the field is written nodePortAddresses",
        "4: ipvs.speed: ignored: there is no such field",
        "5: speed: ignored: there is no such field",
        "9: Guard: ignored: the field is written guard",
    ];
    assert_eq!(said(&decoded.warnings), expected);
}

#[test]
fn our_own_document_has_a_field_for_each_flag_and_wins() {
    let text = format!(
        "{HEAD}metricsBindAddress: 127.0.0.1:9\n{OWN_HEAD}metricsBindAddress: ''\nsource: ['yurthub:', 'kube:']\nnodepool: hangzhou\n\
         repairPeers: true\nmaxSlots4: 1024\nvtep: []\n"
    );
    let all = decoded(&text);
    assert_eq!((&all.problems[..], &all.warnings[..]), (&[][..], &[][..]));
    let expected = [
        "--metrics-bind-address=",
        "--source=yurthub:",
        "--source=kube:",
        "--nodepool=hangzhou",
        "--repair-peers=true",
        "--max-slots4=1024",
    ];
    assert_eq!(set(&all), expected);
    assert_eq!(all.settings[1].line, 7);
    let cli = Cli::command();
    let run = cli.find_subcommand("run").unwrap();
    for flag in run.get_arguments().filter_map(clap::Arg::get_long) {
        let field = camel_case(flag);
        let decoded = decoded(&format!("{OWN_HEAD}{field}: x"));
        let is_known = decoded.warnings.is_empty();
        assert_eq!(
            is_known,
            !["config", "help", "version"].contains(&flag),
            "{flag}"
        );
    }
}

#[test]
fn a_file_has_one_document_of_each_kind_and_no_other() {
    let cases = [
        (
            "".to_owned(),
            "the file has neither a KubeProxyConfiguration nor a YurtNetConfiguration",
        ),
        (
            "- a".to_owned(),
            "1: expected a KubeProxyConfiguration or a YurtNetConfiguration",
        ),
        (
            format!("{HEAD}---\n{HEAD}"),
            "4: a second KubeProxyConfiguration: there may be one",
        ),
        (
            format!("{HEAD}mode: &a x\nportRange: *a\n"),
            "4: aliases are not read: write the value again",
        ),
        ("a: [".to_owned(), "1: YAML:"),
        (
            "[".repeat(40) + &"]".repeat(40),
            "1: more than 32 maps and lists in each other",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap".to_owned(),
            "1: apiVersion \"v1\", kind \"ConfigMap\": expected KubeProxyConfiguration of",
        ),
    ];
    for (text, expected) in cases {
        let problems = said(&decoded(&text).problems);
        let is_it = matches!(&problems[..], [only] if only.starts_with(expected));
        assert!(is_it, "{text:?}: {problems:?}");
    }
}

#[test]
fn json_is_taken_too() {
    let text = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "oomScoreAdj": 0}"#;
    assert_eq!(set(&decoded(text)), ["--oom-score-adj=0"]);
}
