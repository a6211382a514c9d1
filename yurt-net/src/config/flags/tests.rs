use super::*;
use crate::model::Protocol;
use crate::policy::{PolicyConfig, ViaHub};

#[test]
fn destinations_are_read_in_both_families() {
    let v4: Destination = "10.96.0.10:80/tcp".parse().unwrap();
    assert_eq!((v4.address.port(), v4.protocol), (80, Protocol::Tcp));
    let v6: Destination = "[fd00::10]:53/UDP".parse().unwrap();
    assert_eq!(
        (v6.address.to_string().as_str(), v6.protocol),
        ("[fd00::10]:53", Protocol::Udp)
    );
    for bad in [
        "10.96.0.10:80",
        "10.96.0.10/TCP",
        "fd00::10:53/UDP",
        "1.2.3.4:1/ICMP",
    ] {
        assert!(bad.parse::<Destination>().is_err(), "{bad}");
    }
}

#[test]
fn metrics_are_served_where_kube_proxy_has_them_unless_told_otherwise() {
    let parse = |more: &[&str]| {
        let words = ["yurt-net", "run", "--node", "a1", "--source", "file:x"];
        let cli = Cli::try_parse_from(words.iter().chain(more));
        match cli.map(|cli| cli.command) {
            Ok(Command::Run(args)) => Ok(args.metrics_bind_address.0),
            Ok(_) => unreachable!(),
            Err(error) => Err(error.to_string()),
        }
    };
    let at = |text: &str| Ok(Some(text.parse().unwrap()));
    assert_eq!(parse(&[]), at("127.0.0.1:10249"));
    assert_eq!(parse(&["--metrics-bind-address=[::]:9"]), at("[::]:9"));
    assert_eq!(parse(&["--metrics-bind-address="]), Ok(None));
    assert_eq!(parse(&["--metrics-bind-address", "0.0.0.0:0"]), Ok(None));
    assert_eq!(parse(&["--metrics-bind-address=::1"]), at("[::1]:10249"));
    let error = parse(&["--metrics-bind-address=10249"]).unwrap_err();
    assert!(error.contains("expected ADDR:PORT"), "{error}");
}

#[test]
fn the_nodes_health_is_served_where_kube_proxy_has_it_unless_told_otherwise() {
    let parse = |more: &[&str]| {
        let words = ["yurt-net", "run", "--node", "a1", "--source", "file:x"];
        match Cli::parse_from(words.iter().chain(more)).command {
            Command::Run(args) => args.config().healthz,
            _ => unreachable!(),
        }
    };
    assert_eq!(parse(&[]), Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(parse(&["--healthz-bind-address="]), None);
    assert_eq!(parse(&["--healthz-bind-address=0.0.0.0:0"]), None);
}

#[test]
fn times_are_read_with_units_and_a_number_alone_is_seconds() {
    for (text, millis) in [
        ("10", 10_000),
        ("0", 0),
        ("10s", 10_000),
        ("1m", 60_000),
        ("1m30s", 90_000),
        ("2h", 7_200_000),
        ("500ms", 500),
    ] {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["soon", "", "10x", "-1s", "1e3", "99999999999999999999s"] {
        assert!(
            duration(text).unwrap_err().contains("such as 30s"),
            "{text}"
        );
    }
}

#[test]
fn maps_are_compared_once_a_second_at_most() {
    for (text, expected) in [
        ("0", None),
        ("1ns", Some(1)),
        ("1s", Some(1)),
        ("30s", Some(30)),
    ] {
        let words = [
            "yurt-net",
            "run",
            "--node=a1",
            "--source=kube:",
            "--drift-interval",
            text,
        ];
        let Command::Run(args) = Cli::try_parse_from(words).unwrap().command else {
            unreachable!()
        };
        let expected = expected.map(Duration::from_secs);
        assert_eq!(args.config().drift_interval, expected, "{text}");
    }
}

#[test]
fn what_the_plugins_are_told_stands_before_or_behind_what_to_do() {
    for words in [
        "cni --cni-conf-dir /c --state-dir /s install",
        "cni install --cni-conf-dir /c --state-dir /s",
    ] {
        let words = std::iter::once("yurt-net").chain(words.split(' '));
        let Command::Cni(args) = Cli::try_parse_from(words).unwrap().command else {
            unreachable!()
        };
        let (conf_dir, state_dir) = (args.cni.cni_conf_dir, args.state_dir);
        assert_eq!((conf_dir, state_dir), ("/c".into(), "/s".into()));
    }
}

#[test]
fn run_plan_and_explain_take_the_same_policy() {
    let flags = [
        "--kubernetes-via-hub=off",
        "--compat-drop-service",
        "--compat-all-vips",
    ];
    let source = ["--node", "a1", "--source", "file:x"];
    let flow = ["--from", "10.1.0.2", "--to", "10.96.0.10:80/TCP"];
    for (verb, more) in [("run", &[][..]), ("plan", &[]), ("explain", &flow)] {
        let parse = |flags: &[&str]| {
            let head = ["yurt-net", verb];
            let all = head.iter().chain(&source).chain(more).chain(flags);
            match Cli::try_parse_from(all).unwrap().command {
                Command::Run(args) => args.policy,
                Command::Plan(args) => args.policy,
                Command::Explain(args) => args.policy,
                _ => unreachable!(),
            }
            .config("a1")
        };
        assert_eq!(parse(&[]), PolicyConfig::new("a1"), "{verb}");
        let config = parse(&flags);
        assert_eq!(config.kubernetes_via_hub, ViaHub::Off);
        assert!(config.compat_drop_service && config.compat_all_vips);
    }
}
