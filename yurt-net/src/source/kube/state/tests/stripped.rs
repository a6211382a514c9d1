//! Objects that have lost what nobody takes away.

use super::*;

/// Objects of which the pool of this node is known, and each of them without what nobody takes away.
fn stripped_objects() -> Vec<(Resource, &'static str, Value, Value)> {
    let node = |labels: Value, cidrs: Value| json!({"metadata": {"name": "edge-a1", "labels": labels}, "spec": {"podCIDRs": cidrs}});
    let labels = json!({"kubernetes.io/hostname": "edge-a1", "apps.openyurt.io/nodepool": "a"});
    let cidrs = json!(["10.1.0.0/24"]);
    let pool = |nodes: Value| json!({"metadata": {"name": "a"}, "status": {"nodes": nodes}});
    let bucket = |nodes: Value| json!({"metadata": {"name": "a-1", "labels": {"openyurt.io/pool-name": "a"}}, "nodes": nodes});
    let whole = node(labels.clone(), cidrs.clone());
    vec![
        (
            Resource::Nodes,
            "labels",
            whole.clone(),
            node(json!({}), cidrs),
        ),
        (
            Resource::Nodes,
            "Pod CIDRs",
            whole,
            node(labels, Value::Null),
        ),
        (
            Resource::NodePools,
            "nodes",
            pool(json!(["edge-a1", "edge-a2"])),
            pool(Value::Null),
        ),
        (
            Resource::NodeBuckets,
            "nodes",
            bucket(json!([{"name": "edge-a2"}, {"name": "edge-a1"}])),
            bucket(json!([])),
        ),
        (
            Resource::ServiceCidrs,
            "CIDRs",
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
            json!({"metadata": {"name": "kubernetes"}, "spec": {}}),
        ),
    ]
}

#[test]
fn an_object_that_lost_what_nobody_takes_away_keeps_its_last_good_version() {
    for (resource, lost, whole, stripped) in stripped_objects() {
        let version = resource.api_versions()[0];
        let (whole, stripped) = (whole.to_string(), stripped.to_string());
        let mut state = live();
        let list = |state: &mut ClusterState, object: &str| {
            state.item(resource, version, object.as_bytes());
            state.listed(resource, "5", Duration::ZERO);
        };
        list(&mut state, &whole);
        let before = state.snapshot().clone();
        assert_eq!(before.rejections, []);
        let is_kept = |state: &ClusterState| {
            let mut now = state.snapshot().clone();
            let told = std::mem::take(&mut now.rejections);
            assert_eq!(now, before);
            let [told] = &told[..] else {
                panic!("{told:?}");
            };
            let reason = format!("it has no {lost} any more");
            assert!(told.reason.starts_with(&reason), "{}", told.reason);
            assert!(told.reason.ends_with("the last good version is kept"));
            assert_eq!(told.kind, resource.kind().name());
        };
        list(&mut state, &stripped);
        is_kept(&state);
        list(&mut state, &whole);
        assert_eq!(state.snapshot(), &before);
        assert!(state.put(resource, version, stripped.as_bytes(), "6"));
        is_kept(&state);
        assert!(!state.put(resource, version, stripped.as_bytes(), "7"));
        assert!(state.put(resource, version, whole.as_bytes(), "8"));
        assert_eq!(state.snapshot(), &before);
        // One that is made anew is another one.
        state.delete(resource, whole.as_bytes(), "9");
        state.put(resource, version, stripped.as_bytes(), "10");
        assert_eq!(state.snapshot().rejections, []);
        assert_ne!(state.snapshot(), &before);
    }
}

#[test]
fn what_an_operator_takes_away_from_a_node_or_a_pool_is_gone() {
    let mut state = live();
    let mut put = |resource: Resource, object: Value| {
        let version = resource.api_versions()[0];
        assert!(state.put(resource, version, object.to_string().as_bytes(), "5"));
        assert_eq!(state.snapshot().rejections, []);
    };
    let node = |labels: Value| json!({"metadata": {"name": "edge-a1", "labels": labels}});
    put(
        Resource::Nodes,
        node(json!({"kubernetes.io/hostname": "x", "apps.openyurt.io/nodepool": "a"})),
    );
    put(
        Resource::Nodes,
        node(json!({"kubernetes.io/hostname": "x"})),
    );
    let pool = |nodes: Value| json!({"metadata": {"name": "a"}, "status": {"nodes": nodes}});
    put(Resource::NodePools, pool(json!(["edge-a1", "edge-a2"])));
    put(Resource::NodePools, pool(json!(["edge-a2"])));
    // This node is not one of them.
    put(Resource::NodePools, pool(json!([])));
}

/// A Service and a slice that keep their names and lose what no apiserver lets one be without.
#[test]
fn a_service_or_a_slice_that_was_stripped_is_rejected_and_not_gone() {
    let service =
        |spec: Value| json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec});
    let slice = |labels: Value, family: Value| {
        json!({"metadata": {"namespace": "shop", "name": "web-1", "labels": labels},
        "addressType": family, "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.1.0.2"]}]})
    };
    let label = json!({"kubernetes.io/service-name": "web"});
    let cases = [
        (
            Resource::Services,
            service(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]})),
            vec![
                service(json!({})),
                service(json!({"clusterIP": "10.96.0.9"})),
                service(json!({"clusterIP": "10.96.0.9", "ports": []})),
                service(json!({"type": "LoadBalancer", "ports": null})),
            ],
        ),
        (
            Resource::EndpointSlices,
            slice(label.clone(), json!("IPv4")),
            vec![
                json!({"metadata": {"namespace": "shop", "name": "web-1"}}),
                slice(json!({}), Value::Null),
                slice(label, Value::Null),
            ],
        ),
    ];
    for (resource, whole, all_stripped) in cases {
        let version = resource.api_versions()[0];
        for stripped in all_stripped {
            let mut state = live();
            let other = json!({"metadata": {"namespace": "shop", "name": "other"}, "addressType": "FQDN",
                "spec": {"clusterIP": "None"}});
            let list = |state: &mut ClusterState, object: &Value| {
                for object in [object, &other] {
                    state.item(resource, version, object.to_string().as_bytes());
                }
                state.listed(resource, "5", Duration::ZERO);
            };
            list(&mut state, &whole);
            let before = state.snapshot().clone();
            assert_eq!(before.rejections, []);
            let is_kept = |state: &ClusterState| {
                let mut now = state.snapshot().clone();
                let told = std::mem::take(&mut now.rejections);
                assert_eq!(now, before, "{stripped}");
                assert!(
                    matches!(&told[..], [one] if one.reason.ends_with("; the last good version is kept")),
                    "{told:?}"
                );
            };
            list(&mut state, &stripped);
            is_kept(&state);
            list(&mut state, &whole);
            state.put(resource, version, stripped.to_string().as_bytes(), "6");
            is_kept(&state);
        }
    }
}

#[test]
fn services_that_need_no_ports_are_read() {
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"clusterIPs": ["None"], "selector": {"a": "b"}}),
        json!({"type": "ExternalName", "externalName": "example.org"}),
    ] {
        let mut state = live();
        let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec});
        state.put(Resource::Services, "v1", object.to_string().as_bytes(), "5");
        assert_eq!(state.snapshot().rejections, [], "{spec}");
        assert_eq!(state.snapshot().services.len(), 1);
    }
}
