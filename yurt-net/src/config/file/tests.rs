use clap::CommandFactory as _;
use proptest::prelude::*;

use super::own::camel_case;
use super::proxy::{FIELDS, FLAGGED};
use super::*;
use crate::config::Cli;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const OWN_HEAD: &str =
    "---\napiVersion: yurt-net.openyurt.io/v1alpha1\nkind: YurtNetConfiguration\n";

fn decoded(text: &str) -> Decoded {
    let cli = Cli::command();
    decode(Some(text), &[], cli.find_subcommand("run").unwrap())
}

/// What flags of kube-proxy say, beside a file.
fn flagged(text: Option<&str>, flags: &[(&str, &str)]) -> Decoded {
    let cli = Cli::command();
    let flags = flags.iter();
    let flags: Vec<_> = flags
        .map(|(flag, value)| (*flag, vec![(*value).to_owned()]))
        .collect();
    decode(text, &flags, cli.find_subcommand("run").unwrap())
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
    ("nodePortAddresses", "[192.0.2.0/24, 'fd00::/64']", "", Sets(&["--nodeport-addresses=192.0.2.0/24,fd00::/64"])),
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
    assert_eq!(all.settings[1].line, 8);
    let cli = Cli::command();
    let run = cli.find_subcommand("run").unwrap();
    // Hidden are those of kube-proxy, which are fields of its own document.
    let ours = run.get_arguments().filter(|arg| !arg.is_hide_set());
    for flag in ours.filter_map(clap::Arg::get_long) {
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

/// The flags of kube-proxy 1.36, but for those of its log.
const FLAGS: &[&str] = &[
    "bind-address",
    "bind-address-hard-fail",
    "cleanup",
    "cluster-cidr",
    "config-sync-period",
    "conntrack-max-per-core",
    "conntrack-min",
    "conntrack-tcp-be-liberal",
    "conntrack-tcp-timeout-close-wait",
    "conntrack-tcp-timeout-established",
    "conntrack-udp-timeout",
    "conntrack-udp-timeout-stream",
    "detect-local-mode",
    "feature-gates",
    "healthz-bind-address",
    "healthz-port",
    "hostname-override",
    "init-only",
    "iptables-localhost-nodeports",
    "iptables-masquerade-bit",
    "iptables-min-sync-period",
    "iptables-sync-period",
    "ipvs-exclude-cidrs",
    "ipvs-min-sync-period",
    "ipvs-scheduler",
    "ipvs-strict-arp",
    "ipvs-sync-period",
    "ipvs-tcp-timeout",
    "ipvs-tcpfin-timeout",
    "ipvs-udp-timeout",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "kubeconfig",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-json-split-stream",
    "log-text-info-buffer-size",
    "log-text-split-stream",
    "logging-format",
    "masquerade-all",
    "master",
    "metrics-bind-address",
    "metrics-port",
    "nodeport-addresses",
    "oom-score-adj",
    "pod-bridge-interface",
    "pod-interface-name-prefix",
    "profiling",
    "proxy-mode",
    "show-hidden-metrics-for-version",
    "v",
    "vmodule",
    "write-config-to",
];

#[test]
fn every_flag_of_kube_proxy_is_taken_and_does_what_its_field_does() {
    let fields = FIELDS
        .iter()
        .map(|field| field.flag)
        .filter(|flag| !flag.is_empty());
    let mut known: Vec<&str> = fields.chain(FLAGGED.iter().map(|it| it.flag)).collect();
    known.sort_unstable();
    assert_eq!(known, FLAGS);
    for (field, (_, value, besides, does)) in FIELDS.iter().zip(ROWS) {
        if field.flag.is_empty() {
            continue;
        }
        let value = value
            .replace(['[', ']', '{', '}', '\''], "")
            .replace(": ", "=");
        let mut flags = vec![(field.flag, &*value)];
        match besides.split_once(": ") {
            Some(("mode", mode)) => flags.push(("proxy-mode", mode)),
            Some((_, mode)) => flags.push(("detect-local-mode", mode)),
            None => {}
        }
        // There are none for nftables.
        let decoded = flagged(None, &flags);
        assert_eq!(said(&decoded.problems), [""; 0], "{}", field.flag);
        let expected: &[&str] = if let Sets(words) = does { words } else { &[] };
        assert_eq!(set(&decoded), expected, "{}", field.flag);
        let warned: Vec<&str> = decoded.warnings.iter().map(|it| &*it.field).collect();
        let name = format!("--{}", field.flag);
        let expected: &[&str] = if let Warns = does { &[&name] } else { &[] };
        assert_eq!(warned, expected, "{}", field.flag);
    }
}

#[test]
fn a_flag_of_kube_proxy_wins_over_both_documents() {
    let text = format!(
        "{HEAD}iptables: {{syncPeriod: 1m}}\nhostnameOverride: a\n{OWN_HEAD}driftInterval: 2m\n"
    );
    let decoded = flagged(Some(&text), &[("iptables-sync-period", "3m0s")]);
    assert_eq!(set(&decoded), ["--node=a", "--drift-interval=3m"]);
}

#[test]
fn flags_of_kube_proxy_that_no_field_has_do_what_they_say_or_name_what_does() {
    let master = flagged(None, &[("master", "https://192.0.2.1:6443")]);
    assert_eq!(set(&master), ["--source=kube:https://192.0.2.1:6443"]);
    let both = [("master", "https://192.0.2.1:6443"), ("kubeconfig", "/k")];
    assert_eq!(flagged(None, &both).problems[0].field, "--master");
    let off = flagged(None, &[("healthz-port", "0"), ("metrics-port", "10249")]);
    assert_eq!(set(&off), ["--healthz-bind-address="]);
    for flag in ["cleanup", "init-only", "write-config-to"] {
        assert_eq!(
            flagged(None, &[(flag, "true")]).problems[0].field,
            format!("--{flag}")
        );
    }
    assert_eq!(flagged(None, &[("cleanup", "false")]), Decoded::default());
}

#[test]
fn flags_of_kube_proxy_are_wrong_under_their_own_names() {
    let flags = [
        ("iptables-sync-period", "soon"),
        ("feature-gates", "A=maybe"),
        ("cluster-cidr", "10.0.0.0"),
    ];
    let expected = [
        r#"--iptables-sync-period: "soon": expected a time such as 30s, 1m30s or 500ms, not below 0"#,
        r#"--feature-gates: "A=maybe": expected NAME=true or NAME=false"#,
        r#"--cluster-cidr: "10.0.0.0": expected a prefix, as 10.244.0.0/16"#,
    ];
    assert_eq!(said(&flagged(None, &flags).problems), expected);
}

proptest! {
    /// Whoever can write the file can make the agent refuse it, and no more.
    #[test]
    fn no_text_makes_the_decoder_panic(
        text in "([a-z]{1,9}: |iptables:|- |[\\[\\]{},]|\n|\n  |---\n|[0-9]{1,20}|['\"]|&a |\\*a|true|null|\\PC){0,40}",
    ) {
        for head in ["", HEAD, OWN_HEAD] {
            drop(decoded(&format!("{head}{text}")));
        }
    }
}
