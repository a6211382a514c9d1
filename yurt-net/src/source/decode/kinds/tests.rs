use super::super::tests::{objects, rejections, yaml};
use super::super::{Decoded, Format, Located, decode as decode_all};
use super::*;
use crate::model::{Protocol, Service, ServiceType, TrafficPolicy};

use ipnetwork::IpNetwork;
use serde_json::json;
use std::sync::Arc;

fn service(text: &str) -> Arc<Service> {
    let decoded = yaml(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\n{text}"
    ));
    match decoded.objects.as_slice() {
        [
            Located {
                object: Object::Service(service),
                ..
            },
        ] => Arc::clone(service),
        _ => panic!("{text}: {decoded:?}"),
    }
}

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
fn a_service_is_decoded_with_every_field_that_a_rule_reads() {
    let decoded = yaml(
        "apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels: {service.kubernetes.io/service-proxy-name: ''}
  annotations:
    openyurt.io/topologyKeys: openyurt.io/nodepool
    other: ignored
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00::10']
  externalIPs: [192.0.2.7]
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP}
status:
  loadBalancer:
    ingress:
    - {ip: 198.51.100.1}
    - {ip: 198.51.100.2, ipMode: VIP}
    - {ip: 198.51.100.3, ipMode: Proxy}
    - {hostname: lb.example}
",
    );
    assert_eq!(rejections(&decoded), [] as [&str; 0]);
    let [located] = decoded.objects.as_slice() else {
        panic!("{decoded:?}")
    };
    let Object::Service(service) = &located.object else {
        panic!("{decoded:?}")
    };
    assert_eq!(service.name.to_string(), "shop/web");
    assert_eq!(service.service_type, ServiceType::LoadBalancer);
    assert_eq!(
        service.cluster_ips,
        addresses(&["10.96.0.10", "fd00::10"]).into()
    );
    assert_eq!(service.external_ips, addresses(&["192.0.2.7"]).into());
    assert_eq!(
        service.load_balancer_ips,
        addresses(&["198.51.100.1", "198.51.100.2"]).into()
    );
    assert_eq!(
        service.topology_keys.as_deref(),
        Some("openyurt.io/nodepool")
    );
    assert!(service.is_proxied_elsewhere);
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port, p.node_port))
        .collect();
    assert_eq!(
        ports,
        [
            ("http", Protocol::Tcp, 80, 30080),
            ("dns", Protocol::Udp, 53, 0)
        ]
    );
}

#[test]
fn absent_fields_of_a_service_have_the_defaults_of_the_api() {
    let bare = service("spec: {ports: [{port: 80}]}");
    assert_eq!(&*bare.name.namespace, "default");
    assert_eq!(bare.service_type, ServiceType::ClusterIp);
    assert_eq!(bare.ports[0].protocol, Protocol::Tcp);
    assert_eq!((&*bare.ports[0].name, bare.ports[0].node_port), ("", 0));
    assert_eq!(bare.topology_keys, None);
    assert!(!bare.is_proxied_elsewhere);
    for no_address in [
        "spec: {clusterIP: None}",
        "spec: {clusterIP: ''}",
        "spec: {clusterIPs: [None]}",
        "spec: {}",
    ] {
        assert_eq!(
            service(no_address).cluster_ips,
            Box::from([]),
            "{no_address}"
        );
    }
    assert_eq!(
        service("spec: {clusterIP: 10.96.0.1}").cluster_ips,
        addresses(&["10.96.0.1"]).into()
    );
}

#[test]
fn a_service_without_a_spec_is_refused_and_not_taken_for_one_without_ports() {
    for no_spec in ["", "spec:", "spec: null"] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\n{no_spec}\n");
        let reason = &yaml(&text).rejections[0].reason;
        assert_eq!(
            reason, "spec: expected an object, found nothing",
            "{no_spec}"
        );
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
        let text =
            format!("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {metadata}\n");
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
fn traffic_policies_affinity_and_source_ranges_are_read() {
    let service = service(
        "spec:
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  externalIPs: ['', ' ', 192.0.2.7]
  loadBalancerSourceRanges: [' 203.0.113.9/24 ', '', '010.0.0.0/8', 'fd00::/8']
",
    );
    assert_eq!(service.internal_policy, TrafficPolicy::Local);
    assert_eq!(service.external_policy, TrafficPolicy::Local);
    assert_eq!(service.affinity_seconds, 60);
    assert_eq!(service.external_ips, addresses(&["192.0.2.7"]).into());
    let ranges: Vec<_> = service
        .source_ranges
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges, ["203.0.113.0/24", "10.0.0.0/8", "fd00::/8"]);
}

#[test]
fn affinity_lasts_three_hours_unless_said_and_a_day_at_most() {
    for (spec, seconds) in [
        ("{}", 0),
        (
            "{sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}",
            0,
        ),
        ("{sessionAffinity: ClientIP}", 10_800),
        (
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: null}}",
            10_800,
        ),
        (
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}}",
            1,
        ),
        (
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}}",
            86_400,
        ),
    ] {
        assert_eq!(
            service(&format!("spec: {spec}")).affinity_seconds,
            seconds,
            "{spec}"
        );
    }
}

#[test]
fn what_the_api_does_not_admit_is_a_rejection_of_the_service() {
    let affinity = "sessionAffinity: ClientIP, sessionAffinityConfig";
    for (spec, reason) in [
        (
            "internalTrafficPolicy: local",
            "expected Cluster or Local, found \"local\"",
        ),
        (
            "externalTrafficPolicy: None",
            "expected Cluster or Local, found \"None\"",
        ),
        (
            "sessionAffinity: Cookie",
            "expected None or ClientIP, found \"Cookie\"",
        ),
        (
            &format!("{affinity}: {{clientIP: {{timeoutSeconds: 0}}}}"),
            "seconds from 1 to 86400, found 0",
        ),
        (
            &format!("{affinity}: {{clientIP: {{timeoutSeconds: 86401}}}}"),
            "seconds from 1 to 86400",
        ),
        (
            &format!("{affinity}: {{clientIP: {{timeoutSeconds: '5'}}}}"),
            "seconds from 1 to 86400",
        ),
        (
            "loadBalancerSourceRanges: [192.0.2.1]",
            "expected a prefix like 203.0.113.0/24",
        ),
    ] {
        let decoded = yaml(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}"
        ));
        assert_eq!(decoded.objects, []);
        let rejections = rejections(&decoded);
        assert!(rejections[0].contains(reason), "{rejections:?}");
    }
}

#[test]
fn openyurts_annotations_and_pool_services_are_read() {
    let service = |annotations: &str| {
        let decoded = yaml(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, annotations: {{{annotations}}}}}, spec: {{}}}}"
        ));
        match decoded.objects.into_iter().next().unwrap().object {
            Object::Service(service) => service,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(service("").listen, None);
    let listen = service("nodeport.openyurt.io/listen: ''").listen.clone();
    assert_eq!(listen.as_deref(), Some(""));
    assert!(service("svc.openyurt.io/discard: 'true'").is_discarded);
    assert!(!service("svc.openyurt.io/discard: 'True'").is_discarded);
    let decoded = yaml(
        "apiVersion: network.openyurt.io/v1alpha1
kind: PoolService
metadata:
  name: web-hangzhou
  namespace: shop
  labels: {openyurt.io/service-name: web, openyurt.io/pool-name: hangzhou}
status:
  loadBalancer:
    ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {hostname: a.example}]
---
{apiVersion: network.openyurt.io/v1alpha1, kind: PoolService, metadata: {name: stray}}
",
    );
    let [located] = decoded.objects.as_slice() else {
        panic!("{decoded:?}")
    };
    let Object::PoolService(found) = &located.object else {
        panic!("{decoded:?}")
    };
    assert_eq!(found.name.to_string(), "shop/web-hangzhou");
    assert_eq!((&*found.service, &*found.pool), ("web", "hangzhou"));
    assert_eq!(found.load_balancer_ips, addresses(&["198.51.100.1"]).into());
    assert_eq!(
        rejections(&decoded),
        [
            "PoolService default/stray web.yaml#2: metadata.labels[openyurt.io/service-name]: expected the name of a Service, found nothing"
        ]
    );
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
fn the_time_of_making_is_read_in_every_offset_and_one_that_is_none_is_told() {
    let decoded = |time: &str| {
        yaml(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, creationTimestamp: {time}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        ))
    };
    for (time, expected) in [
        ("2023-01-01T00:00:00Z", 1_672_531_200),
        ("'2023-01-01T08:00:00+08:00'", 1_672_531_200),
        ("'2023-01-01T00:00:00.5Z'", 1_672_531_200),
        ("'1969-01-01T00:00:00Z'", 1),
        ("null", 0),
        ("''", 0),
    ] {
        let decoded = decoded(time);
        let [
            Located {
                object: Object::Service(service),
                ..
            },
        ] = decoded.objects.as_slice()
        else {
            panic!("{time}: {decoded:?}");
        };
        assert_eq!(service.created_at, expected, "{time}");
    }
    for time in ["yesterday", "'2023-01-01'", "17"] {
        let decoded = decoded(time);
        let told = rejections(&decoded);
        assert!(decoded.objects.is_empty(), "{time}");
        assert!(told[0].contains("creationTimestamp"), "{told:?}");
    }
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
