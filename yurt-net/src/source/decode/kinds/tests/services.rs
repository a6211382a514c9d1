//! Services and what OpenYurt adds to them.

use super::*;
use crate::model::{Protocol, Service, ServiceType, TrafficPolicy};

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
fn a_health_check_port_is_read_and_a_wrong_one_costs_the_service() {
    let port = |spec: &str| {
        service(&format!("spec: {{ports: [{{port: 80}}], {spec}}}")).health_check_node_port
    };
    assert_eq!([port("healthCheckNodePort: 30999"), port("")], [30999, 0]);
    let wrong =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {healthCheckNodePort: 70000}";
    assert_eq!(
        rejections(&yaml(wrong)),
        [
            "Service default/web web.yaml#1: spec.healthCheckNodePort: expected a port up to 65535, found 70000"
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
        "spec: {clusterIP: '', ports: [{port: 80}]}",
        "spec: {clusterIPs: [None]}",
        "spec: {ports: [{port: 80}]}",
    ] {
        assert_eq!(
            service(no_address).cluster_ips,
            Box::from([]),
            "{no_address}"
        );
    }
    assert_eq!(
        service("spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}").cluster_ips,
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
fn traffic_policies_affinity_and_source_ranges_are_read() {
    let service = service(
        "spec:
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  externalIPs: ['', ' ', 192.0.2.7]
  ports: [{port: 80}]
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
        ("{clusterIP: None}", 0),
        (
            "{clusterIP: None, sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}",
            0,
        ),
        ("{clusterIP: None, sessionAffinity: ClientIP}", 10_800),
        (
            "{clusterIP: None, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: null}}",
            10_800,
        ),
        (
            "{clusterIP: None, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}}",
            1,
        ),
        (
            "{clusterIP: None, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}}",
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
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, annotations: {{{annotations}}}}}, spec: {{ports: [{{port: 80}}]}}}}"
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
