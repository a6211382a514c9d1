//! What is kept of an object is bounded, whichever of its texts somebody makes long.

use serde_json::{Value as Json, json};

use super::super::{ItemError, Names, item};

/// Longer than an apiserver takes in most places, as a file may have it.
const LONG: usize = 200_000;
/// What a `Debug` of the object and of all names may have.
const MOST: usize = 16_000;

/// One object of each kind, with every text that is read of it.
fn objects() -> Vec<Json> {
    let flannel: serde_json::Map<_, _> = super::fields::FLANNEL
        .iter()
        .map(|key| ((*key).to_owned(), json!("x")))
        .collect();
    let metadata = |more: Json| {
        let mut all = json!({"namespace": "shop", "name": "web", "uid": "5f0c",
            "creationTimestamp": "2026-01-02T03:04:05Z"});
        let all_fields = all.as_object_mut().unwrap();
        all_fields.extend(more.as_object().unwrap().clone());
        all
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": metadata(json!({
                "labels": {"service.kubernetes.io/service-proxy-name": "x"},
                "annotations": {"openyurt.io/topologyKeys": "x", "nodeport.openyurt.io/listen": "x",
                    "svc.openyurt.io/discard": "x"}})),
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                "externalIPs": ["198.51.100.7"], "sessionAffinity": "None",
                "loadBalancerSourceRanges": ["10.0.0.0/8"], "internalTrafficPolicy": "Local",
                "externalTrafficPolicy": "Local",
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": "VIP"}]}}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": metadata(json!({"labels": {"kubernetes.io/service-name": "web",
                "service.kubernetes.io/headless": "x"}})),
            "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            "endpoints": [{"addresses": ["10.1.0.2"], "nodeName": "a1",
                "targetRef": {"kind": "Pod", "name": "web-0"},
                "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "a1"}]}}]}),
        json!({"apiVersion": "v1", "kind": "Node",
            "metadata": metadata(json!({"labels": {"pool": "x"}, "annotations": flannel})),
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}}),
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": metadata(json!({"annotations": {super::fields::OURS[0]: "x", super::fields::OURS[1]: "x"}})),
            "spec": {"nodeName": "a1", "containers": [
                {"ports": [{"name": "http", "containerPort": 80}], "readinessProbe": {"httpGet":
                    {"host": "", "port": "http", "path": "/", "scheme": "HTTP",
                        "httpHeaders": [{"name": "Host", "value": "x"}]}}},
                {"readinessProbe": {"grpc": {"port": 81, "service": "x"}}}]}}),
        json!({"apiVersion": "apps.openyurt.io/v1beta2", "kind": "NodePool", "metadata": metadata(json!({})),
            "status": {"nodes": ["a1"]}}),
        json!({"apiVersion": "apps.openyurt.io/v1alpha1", "kind": "NodeBucket",
            "metadata": metadata(json!({"labels": {"openyurt.io/pool-name": "x"}})), "nodes": [{"name": "a1"}]}),
        json!({"apiVersion": "network.openyurt.io/v1alpha1", "kind": "PoolService",
            "metadata": metadata(json!({"labels": {"openyurt.io/pool-name": "x", "openyurt.io/service-name": "web"}})),
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": metadata(json!({})),
            "spec": {"cidrs": ["10.96.0.0/16"]}}),
    ]
}

/// The object once for each of its texts and keys, with that one made long; and where it is.
fn with_each_made_long(object: &Json) -> Vec<(String, Json)> {
    let long = "x".repeat(LONG);
    let mut all = Vec::new();
    match object {
        Json::String(_) => all.push((String::new(), Json::String(long))),
        Json::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                for (at, changed) in with_each_made_long(element) {
                    let mut elements = elements.clone();
                    elements[index] = changed;
                    all.push((format!("[{index}]{at}"), Json::Array(elements)));
                }
            }
        }
        Json::Object(fields) => {
            for (key, value) in fields {
                for (at, changed) in with_each_made_long(value) {
                    let mut fields = fields.clone();
                    fields.insert(key.clone(), changed);
                    all.push((format!(".{key}{at}"), Json::Object(fields)));
                }
                if value.is_string() {
                    let mut fields = fields.clone();
                    fields.insert(format!("{key}{long}"), value.clone());
                    all.push((format!(".{key}..."), Json::Object(fields)));
                }
            }
        }
        _ => {}
    }
    all
}

#[test]
fn no_text_of_an_object_makes_it_take_much_whichever_it_is() {
    let mut cases = 0;
    for object in objects() {
        let kind = object["kind"].as_str().unwrap().to_owned();
        let version = object["apiVersion"].as_str().unwrap().to_owned();
        let read = |object: &Json, names: &mut Names| {
            item(object.to_string().as_bytes(), &kind, &version, names)
        };
        // What is to be made long is read at all.
        let whole = read(&object, &mut Names::of_node("a1"));
        assert!(matches!(whole, Ok(Some(_))), "{kind}: {whole:?}");
        for (at, changed) in with_each_made_long(&object) {
            let mut names = Names::of_node("a1");
            let kept = read(&changed, &mut names);
            let size = format!("{kept:?} {names:?}").len();
            assert!(size < MOST, "{kind}{at}: {size} bytes are kept");
            if let Err(ItemError::Rejected(rejection)) = kept {
                assert!(!rejection.reason.is_empty(), "{kind}{at}");
            }
            cases += 1;
        }
    }
    assert!(cases > 80, "{cases}");
}

#[test]
fn an_annotation_that_is_too_long_is_kept_as_a_word_that_says_so() {
    let listen = "pool-1,".repeat(600);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web",
        "annotations": {"nodeport.openyurt.io/listen": listen}}, "spec": {"ports": [{"port": 80}]}});
    let mut names = Names::default();
    let kept = item(service.to_string().as_bytes(), "Service", "v1", &mut names);
    let Ok(Some(super::Object::Service(service))) = kept else {
        panic!("{kept:?}");
    };
    assert_eq!(service.listen.as_deref(), Some(crate::model::TOO_LONG));
}
