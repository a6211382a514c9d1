//! EndpointSlices.

use super::*;
use crate::model::Protocol;

fn slice(text: &str) -> Arc<EndpointSlice> {
    let decoded = yaml(&slice_text(text));
    match decoded.objects.as_slice() {
        [
            Located {
                object: Object::EndpointSlice(slice),
                ..
            },
        ] => Arc::clone(slice),
        _ => panic!("{text}: {decoded:?}"),
    }
}

#[test]
fn a_slice_keeps_what_kube_proxy_keeps() {
    let slice = slice(
        "ports:
- {name: http, port: 8080}
- {name: '', port: 9090, protocol: UDP}
- {name: null, port: 1}
- {port: 2}
- {name: zero, port: 0}
- {name: nil}
endpoints:
- {addresses: [10.1.0.2, ignored], nodeName: a}
- {addresses: [10.1.0.3], nodeName: '', conditions: {ready: false}}
- {addresses: [10.1.0.4], nodeName: a, conditions: {ready: null}}
- {addresses: []}
",
    );
    assert_eq!((&*slice.service, slice.family), ("web", AddressFamily::V4));
    let ports: Vec<_> = slice
        .ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port))
        .collect();
    assert_eq!(
        ports,
        [
            ("http", Protocol::Tcp, 8080),
            ("", Protocol::Udp, 9090),
            ("", Protocol::Tcp, 1),
            ("", Protocol::Tcp, 2)
        ]
    );
    let endpoints: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| {
            (
                e.address.to_string(),
                e.node_name().map(ToString::to_string),
                e.is_ready,
            )
        })
        .collect();
    assert_eq!(
        endpoints,
        [
            ("10.1.0.2".to_owned(), Some("a".to_owned()), true),
            ("10.1.0.3".to_owned(), None, false),
            ("10.1.0.4".to_owned(), Some("a".to_owned()), true)
        ]
    );
    let [first, last] = [0, 2].map(|index| slice.endpoints.get(index).unwrap());
    let [first, last] = [&first, &last].map(|endpoint| endpoint.node_name().unwrap());
    assert!(Arc::ptr_eq(first, last), "a node name is kept once");
}

#[test]
fn slices_that_serve_no_service_are_left_out_silently() {
    for metadata in [
        "{name: x}",
        "{name: x, labels: {kubernetes.io/service-name: ''}}",
    ] {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {metadata}\naddressType: IPv4\n"
        );
        assert_eq!(yaml(&text), Decoded::default(), "{metadata}");
    }
    let names = slice_text("endpoints: [{addresses: [a.example]}]").replace("IPv4", "FQDN");
    assert_eq!(yaml(&names), Decoded::default());
}

#[test]
fn the_slices_of_headless_services_are_kept_and_told_apart() {
    let labels = "labels: {kubernetes.io/service-name: web";
    let text = slice_text("endpoints: []");
    assert!(text.contains(labels), "{text}");
    let headless = format!("{labels}, service.kubernetes.io/headless: ''");
    for (text, is_headless) in [
        (text.clone(), false),
        (text.replace(labels, &headless), true),
    ] {
        let decoded = yaml(&text);
        let [located] = decoded.objects.as_slice() else {
            panic!("{decoded:?}")
        };
        let Object::EndpointSlice(slice) = &located.object else {
            panic!("{decoded:?}")
        };
        assert_eq!(slice.is_headless, is_headless);
    }
}

#[test]
fn conditions_and_hints_of_an_endpoint_have_the_defaults_of_the_api() {
    let slice = slice(
        "endpoints:
- {addresses: [10.1.0.1]}
- {addresses: [10.1.0.2], conditions: {ready: null, serving: null, terminating: null}, hints: {}}
- {addresses: [10.1.0.3], conditions: {ready: false, serving: false, terminating: true}, hints: {forZones: []}}
- addresses: [10.1.0.4]
  hints: {forZones: [{name: z1}, {name: z2}], forNodes: [{name: a}]}
",
    );
    let conditions: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.is_ready, e.is_serving, e.is_terminating))
        .collect();
    let usual = (true, true, false);
    assert_eq!(conditions, [usual, usual, (false, false, true), usual]);
    let last = slice.endpoints.get(3).unwrap();
    let hints = last.hints().unwrap();
    assert_eq!(*hints.zones, ["z1".into(), "z2".into()]);
    assert_eq!(*hints.nodes, ["a".into()]);
    assert!(slice.endpoints.iter().take(3).all(|e| e.hints().is_none()));
}

#[test]
fn a_hundred_thousand_endpoints_fit_a_small_board() {
    assert_eq!(size_of::<Endpoint>(), 32);
}

#[test]
fn of_endpoints_on_the_own_node_it_is_known_which_pods_they_are() {
    let slice = br#"{
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.1.0.1"], "nodeName": "a2", "targetRef": {"kind": "Pod", "name": "web-a"}},
            {"addresses": [], "nodeName": "a1", "targetRef": {"kind": "Pod", "name": "web-b"}},
            {"addresses": ["10.1.0.2"], "nodeName": "a1", "targetRef": {"kind": "Pod", "name": "web-c"}},
            {"addresses": ["10.1.0.3"], "nodeName": "a1", "targetRef": {"kind": "Node", "name": "a1"}},
            {"addresses": ["10.1.0.4"], "nodeName": "a1"}
        ]
    }"#;
    let pods = |names: &mut Names| {
        let object =
            crate::source::decode::item(slice, "EndpointSlice", "discovery.k8s.io/v1", names);
        let Ok(Some(Object::EndpointSlice(slice))) = object else {
            panic!("{object:?}");
        };
        let pods = slice.pods.iter();
        pods.map(|pod| (pod.endpoint, pod.name.to_string()))
            .collect::<Vec<_>>()
    };
    assert_eq!(pods(&mut Names::of_node("a1")), [(1, "web-c".to_owned())]);
    // Nobody has said which node that is.
    assert_eq!(pods(&mut Names::default()), []);
}
