//! Objects of every kind: what is read of them and what is refused. `tests/` has Services and EndpointSlices.

use super::super::tests::{objects, rejections, yaml};
use super::super::{Decoded, Format, Located, decode as decode_all};
use super::*;

use ipnetwork::IpNetwork;
use serde_json::json;

mod services;
mod slices;

fn slice_text(text: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: web-x, labels: {{kubernetes.io/service-name: web}}}}\n{text}"
    )
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn nodes_pools_buckets_and_service_cidrs_are_decoded() {
    let decoded = yaml(
        "apiVersion: v1
kind: Node
metadata: {name: a, labels: {apps.openyurt.io/nodepool: hangzhou, other: ''}}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd01::1/64']}
status:
  addresses:
  - {type: Hostname, address: a}
  - {type: InternalIP, address: 192.0.2.11}
  - {type: ExternalIP, address: 198.51.100.11}
  - {type: InternalIP, address: 'fd02::11'}
---
{apiVersion: apps.openyurt.io/v1beta1, kind: NodePool, metadata: {name: hangzhou}, status: {nodes: [a, b]}}
---
{apiVersion: apps.openyurt.io/v1beta2, kind: NodePool, metadata: {name: empty}}
---
apiVersion: apps.openyurt.io/v1alpha1
kind: NodeBucket
metadata: {name: hangzhou-1, labels: {openyurt.io/pool-name: hangzhou}}
nodes: [{name: a}, {name: b}]
---
{apiVersion: networking.k8s.io/v1beta1, kind: ServiceCIDR, metadata: {name: k}, spec: {cidrs: [010.096.0.1/12]}}
",
    );
    assert_eq!(rejections(&decoded), [] as [&str; 0]);
    let objects: Vec<&Object> = decoded
        .objects
        .iter()
        .map(|located| &located.object)
        .collect();
    let [
        Object::Node(node),
        Object::NodePool(pool),
        Object::NodePool(empty),
        Object::NodeBucket(bucket),
        Object::ServiceCidr(cidr),
    ] = objects.as_slice()
    else {
        panic!("{decoded:?}")
    };
    assert_eq!(node.labels["apps.openyurt.io/nodepool"], "hangzhou");
    assert_eq!(node.labels.len(), 2);
    assert_eq!(node.internal_ips, addresses(&["192.0.2.11", "fd02::11"]));
    assert_eq!(node.external_ips, addresses(&["198.51.100.11"]));
    assert_eq!(
        node.pod_cidrs,
        [
            "10.1.0.0/24".parse().unwrap(),
            "fd01::/64".parse::<IpNetwork>().unwrap()
        ]
    );
    assert_eq!(pool.nodes, ["a", "b"]);
    assert_eq!((&*empty.name, empty.nodes.len()), ("empty", 0));
    assert_eq!((bucket.pool.as_str(), bucket.nodes.len()), ("hangzhou", 2));
    assert_eq!(cidr.cidrs, ["10.96.0.0/12".parse::<IpNetwork>().unwrap()]);
}

#[test]
fn a_node_that_is_deleted_or_about_to_be_is_leaving() {
    let is_leaving = |metadata: &str, spec: &str| {
        let decoded = yaml(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: a{metadata}}}\nspec: {{{spec}}}"
        ));
        match decoded.objects.as_slice() {
            [
                Located {
                    object: Object::Node(node),
                    ..
                },
            ] => node.is_leaving,
            _ => panic!("{decoded:?}"),
        }
    };
    let other = "taints: [{key: node.kubernetes.io/unreachable, effect: NoExecute}]";
    assert!(!is_leaving("", "") && !is_leaving("", other));
    let doomed = "taints: [{key: other}, {key: ToBeDeletedByClusterAutoscaler, value: '1'}]";
    assert!(is_leaving("", doomed));
    assert!(is_leaving(
        ", deletionTimestamp: '2026-01-02T03:04:05Z'",
        ""
    ));
}

#[test]
fn kinds_and_versions_that_no_rule_reads_are_ignored() {
    for (version, kind) in [
        ("v1", "ConfigMap"),
        ("v1", "Endpoints"),
        ("serving.knative.dev/v1", "Service"),
        ("example.com/v1", "AllowList"),
    ] {
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{ports: 7}}\n"
        );
        assert_eq!(yaml(&text), Decoded::default(), "{version} {kind}");
    }
}

#[test]
fn a_version_that_is_not_read_is_refused_with_the_one_to_write() {
    for (version, kind, wanted) in [
        (
            "discovery.k8s.io/v1beta1",
            "EndpointSlice",
            "discovery.k8s.io/v1",
        ),
        (
            "apps.openyurt.io/v1alpha1",
            "NodePool",
            "apps.openyurt.io/v1beta2",
        ),
        ("v2", "Service", "v1"),
        (
            "networking.k8s.io/v1alpha1",
            "ServiceCIDR",
            "networking.k8s.io/v1beta1",
        ),
    ] {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n");
        let refused = rejections(&yaml(&text));
        let reason = format!("apiVersion: expected {wanted}, found \"{version}\"");
        assert!(
            refused.len() == 1 && refused[0].ends_with(&reason),
            "{refused:?}"
        );
        assert!(refused[0].contains("/x "), "{refused:?}");
    }
}

#[test]
fn what_is_wrong_with_an_object_is_said_with_its_field() {
    let service = |rest: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {rest}")
    };
    for (text, expected) in [
        (
            service("{ports: [{port: 80}, {port: 70000}]}"),
            "Service default/web web.yaml#1: spec.ports[1].port: expected a port up to 65535, found 70000",
        ),
        (
            service("{ports: [{name: http}]}"),
            "Service default/web web.yaml#1: spec.ports[0].port: expected a port from 1 to 65535, found nothing",
        ),
        (
            service("{ports: [{port: http}]}"),
            "Service default/web web.yaml#1: spec.ports[0].port: expected a port up to 65535, found \"http\"",
        ),
        (
            service("{ports: [{port: 80, nodePort: -1}]}"),
            "Service default/web web.yaml#1: spec.ports[0].nodePort: expected a port up to 65535, found -1",
        ),
        (
            service("{ports: [{port: 80, port: 81}]}"),
            "Service default/web web.yaml#1: spec.ports[0].port: expected a port up to 65535, found the field twice",
        ),
        (
            service("{ports: [{port: 80, protocol: tcp}]}"),
            "Service default/web web.yaml#1: spec.ports[0].protocol: expected TCP, UDP or SCTP, found \"tcp\"",
        ),
        (
            service("{ports: {port: 80}}"),
            "Service default/web web.yaml#1: spec.ports: expected a list, found an object",
        ),
        (
            service("{externalIPs: [192.0.2.256]}"),
            "Service default/web web.yaml#1: spec.externalIPs[0]: expected an IP address, found \"192.0.2.256\"",
        ),
        (
            service("{type: Nodeport}"),
            "Service default/web web.yaml#1: spec.type: expected ClusterIP, NodePort, LoadBalancer or ExternalName, \
             found \"Nodeport\"",
        ),
        (
            slice_text("endpoints: [{addresses: [web.example]}]"),
            "EndpointSlice default/web-x web.yaml#1: endpoints[0].addresses[0]: expected an IP address, \
             found \"web.example\"",
        ),
        (
            slice_text("endpoints: [{addresses: [10.0.0.1], conditions: {ready: perhaps}}]"),
            "EndpointSlice default/web-x web.yaml#1: endpoints[0].conditions.ready: expected true or false, \
             found \"perhaps\"",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: {tier/x: 1}}".to_owned(),
            "Node /a web.yaml#1: metadata.labels[tier/x]: expected a string (in quotes), found 1",
        ),
        (
            "apiVersion: apps.openyurt.io/v1alpha1\nkind: NodeBucket\nmetadata: {name: a}"
                .to_owned(),
            "NodeBucket /a web.yaml#1: metadata.labels[openyurt.io/pool-name]: expected the name of the bucket's \
             pool, found nothing",
        ),
        (
            "kind: Service\nmetadata: {name: web}".to_owned(),
            "Service default/web web.yaml#1: apiVersion: expected the API version of the object, found nothing",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop}".to_owned(),
            "Service shop/ web.yaml#1: metadata.name: expected the name of the object, found nothing",
        ),
        (
            "apiVersion: v1\nmetadata: {name: web}".to_owned(),
            " / web.yaml#1: kind: expected the kind of the object, found nothing",
        ),
    ] {
        let decoded = yaml(&text);
        assert_eq!(rejections(&decoded), [expected], "{text}");
        assert_eq!(objects(&decoded), [] as [&str; 0], "{text}");
    }
}

#[test]
fn of_a_pod_its_identity_and_what_its_author_tells_yurt_net_are_read() {
    let pod = br#"{
        "metadata": {"namespace": "shop", "name": "web-0", "uid": "5f0c",
                     "annotations": {"yurt-net.openyurt.io/keep-address": "y", "yurt-net.openyurt.io/x": "z",
                                     "example.com/x": "z"}},
        "spec": {"nodeName": "a1", "containers": [{"name": 7}]}
    }"#;
    let object = crate::source::decode::item(pod, "Pod", "v1", &mut Names::default());
    let Ok(Some(Object::Pod(pod))) = object else {
        panic!("{object:?}");
    };
    assert_eq!((&*pod.uid, &*pod.node_name), ("5f0c", "a1"));
    let annotations: Vec<_> = pod.annotations.iter().collect();
    assert_eq!(
        annotations,
        [(
            &"yurt-net.openyurt.io/keep-address".to_owned(),
            &"y".to_owned()
        )]
    );
}

#[test]
fn a_name_that_no_apiserver_would_take_costs_its_object_and_no_other() {
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "d"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}})
    };
    let long = "a".repeat(253);
    let right = ["a", "0", "web-1", "a.b-c.d", &long];
    let wrong = [
        "\u{1f600}\u{0}x",
        "web\u{202e}",
        "w\u{e9}b",
        "Web",
        "a_b",
        "-a",
        "a-",
        "a..b",
        ".",
        "a b",
        "a\nb",
    ];
    let all = right
        .iter()
        .chain(&wrong)
        .map(|name| service(name).to_string());
    let decoded = decode_all(
        &all.collect::<String>(),
        Format::Json,
        "a",
        &mut Names::default(),
    );
    let told = rejections(&decoded);
    assert_eq!(decoded.objects.len(), right.len(), "{told:?}");
    assert_eq!(told.len(), wrong.len(), "{told:?}");
    assert!(
        told.iter().all(|why| why.contains("metadata.name")),
        "{told:?}"
    );
    let mut elsewhere = service("web");
    elsewhere["metadata"]["namespace"] = json!("n\u{0}");
    let decoded = decode_all(
        &elsewhere.to_string(),
        Format::Json,
        "a",
        &mut Names::default(),
    );
    assert!(
        rejections(&decoded)[0].contains("metadata.namespace"),
        "{decoded:?}"
    );
}
