//! What Go programs write in many ways is read in one.

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::cni::protocol::*;
use crate::device::Mac;

/// How one field of an object is written.
#[derive(Clone, Debug)]
struct Style {
    /// Of each letter of the key.
    is_upper: Vec<bool>,
    /// Another key for the same field comes first, and counts for nothing.
    has_rival: bool,
}

fn styles() -> impl Strategy<Value = Vec<Style>> {
    let is_upper = prop::collection::vec(any::<bool>(), 12);
    let style = (is_upper, prop::bool::weighted(0.2)).prop_map(|(is_upper, has_rival)| Style {
        is_upper,
        has_rival,
    });
    prop::collection::vec(style, 1..24)
}

/// The fields that a Go program may write as nothing in several ways, by the section that they are in, and what stands
/// for nothing.
fn empty_fields() -> Vec<(&'static [&'static str], &'static str, Vec<Value>)> {
    let list = || vec![json!(null), json!([])];
    let text = || vec![json!(null), json!("")];
    let section = || vec![json!(null), json!({})];
    vec![
        (&["ipam"], "routes", list()),
        (&["ipam"], "ranges", list()),
        (&["ipam"], "rangeStart", text()),
        (&["ipam"], "rangeEnd", text()),
        (&["ipam"], "gateway", text()),
        (&["ipam"], "resolvConf", text()),
        (&["ipam"], "dataDir", text()),
        (&["ipam"], "runDir", text()),
        (&["ipam"], "ttlSeconds", vec![json!(null)]),
        (&[], "dataDir", text()),
        (&[], "mac", text()),
        (&[], "runtimeConfig", section()),
        (&[], "args", section()),
        (&["args"], "cni", section()),
        (
            &["args", "cni"],
            "ips",
            vec![json!(null), json!([]), json!([""]), json!([null])],
        ),
        (
            &["runtimeConfig"],
            "ips",
            vec![json!(null), json!([]), json!([""])],
        ),
        (&["runtimeConfig"], "ipRanges", list()),
        (&["runtimeConfig"], "mac", text()),
        (&["prevResult"], "routes", list()),
        (&["prevResult"], "dns", section()),
    ]
}

fn put(config: &mut Value, section: &[&str], name: &str, value: Value) {
    let mut at = config;
    for step in section {
        at = &mut at[*step];
        if at.is_null() {
            *at = json!({});
        }
    }
    // What says something stays.
    if at[name].is_null() {
        at[name] = value;
    }
}

/// Writes all keys of Go structs in other letters.
fn restyle(value: &Value, styles: &mut dyn Iterator<Item = &Style>) -> Value {
    match value {
        Value::Object(fields) => {
            let mut written = Map::new();
            for (key, value) in fields {
                let Some(style) = styles.next() else { break };
                let letters = key.chars().zip(style.is_upper.iter().cycle());
                let letters = letters.map(|(letter, is_upper)| match is_upper {
                    true => letter.to_ascii_uppercase(),
                    false => letter.to_ascii_lowercase(),
                });
                let other: String = letters.collect();
                let upper = key.to_ascii_uppercase();
                // libcni sorts the keys, and Go takes the last one.
                if style.has_rival && upper < other && !value.is_null() {
                    written.insert(upper, json!({"not": ["this", "one"]}));
                }
                written.insert(other, restyle(value, styles));
            }
            Value::Object(written)
        }
        Value::Array(values) => values.iter().map(|value| restyle(value, styles)).collect(),
        other => other.clone(),
    }
}

/// What a plugin would do with it.
fn meaning(config: &Value) -> (Vec<String>, Value, Vec<IpAddr>, Value, [PathBuf; 2], u64) {
    let config = Config::parse(config.to_string().as_bytes()).unwrap();
    let environment = Environment {
        interface: "eth0".to_owned(),
        ..Environment::default()
    };
    let sets = config.range_sets().unwrap();
    let version = Version::parse(&config.cni_version).unwrap();
    let claimed = config.claimed("eth0").unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let result = claimed.result(config.prev_result.clone().unwrap(), mac);
    let interface = crate::go_json::field(&result, "interfaces")[0].clone();
    let request = Request::new(Plugin::Ipam, version, &environment, &config).unwrap();
    config.mac_policy().unwrap();
    assert_eq!(
        config.requested(&environment).unwrap(),
        Vec::<IpAddr>::new()
    );
    assert!(!config.is_mac_requested(&environment));
    assert_eq!(request.resolver().unwrap(), "");
    (
        sets.iter().map(ToString::to_string).collect(),
        ipam_result(version, &[], &config, ""),
        claimed.addresses,
        crate::go_json::field(&interface, "mac").clone(),
        [request.place.state_dir, request.place.run_dir],
        request.ttl,
    )
}

fn configuration() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "edge", "type": "bridge",
        "ipam": {"type": "yurt-ipam", "subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
        "prevResult": {
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"}],
            "ips": [{"interface": 0, "address": "10.1.0.2/24"}],
        },
    })
}

proptest! {
    #![proptest_config(crate::cases::cases(256))]

    #[test]
    fn a_configuration_means_the_same_however_go_writes_it(
        chosen in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..12),
        styles in styles(),
    ) {
        let fields = empty_fields();
        let mut config = configuration();
        for (field, value) in chosen {
            let (section, name, values) = field.get(&fields);
            put(&mut config, section, name, value.get(values).clone());
        }
        let mut plain = configuration();
        // Routes that are null are none, and so are those that are not there.
        plain["ipam"]["routes"] = config["ipam"]["routes"].clone();
        let written = restyle(&config, &mut styles.iter().cycle());
        prop_assert_eq!(meaning(&written), meaning(&plain), "{}", written);
    }
}

#[test]
fn results_and_lists_of_nothing_are_read() {
    let with = |key: &str, value: Value| {
        let mut config = configuration();
        config["prevResult"][key] = value;
        Config::parse(config.to_string().as_bytes())
            .unwrap()
            .claimed("eth0")
    };
    assert!(with("ips", json!(null)).unwrap().addresses.is_empty());
    assert_eq!(
        with("ips", json!([null, {"address": "10.1.0.7/24"}]))
            .unwrap()
            .addresses
            .len(),
        1
    );
    // Of an interface that is not there, as a negative index says.
    assert!(
        with("ips", json!([{"interface": -1, "address": "10.1.0.7/24"}]))
            .unwrap()
            .addresses
            .is_empty()
    );
    let nowhere = with("interfaces", json!(null)).unwrap();
    let previous = json!({"ips": null, "interfaces": null});
    assert_eq!(nowhere.result(previous.clone(), Mac([2; 6])), previous);
    let mapped = json!({"ipam": {"subnet": "10.1.0.0/24", "rangeStart": "::ffff:10.1.0.9"}});
    let mapped = Config::parse(mapped.to_string().as_bytes()).unwrap();
    assert_eq!(
        mapped.range_sets().unwrap()[0].name(),
        "10.1.0.9".parse::<IpAddr>().unwrap()
    );
    // Go takes bytes that are no text for U+FFFD.
    let strange = [&b"{\"name\": \"ed\xff\", \"cniVersion\": \"1.0.0\"}"[..]].concat();
    assert_eq!(Config::parse(&strange).unwrap().name, "ed\u{fffd}");
}

#[test]
fn an_error_names_the_field() {
    let wrong = json!({"ipam": {"ranges": [[{"subnet": "10.1.0.0/24", "Gateway": "ten"}]]}});
    let error = Config::parse(wrong.to_string().as_bytes()).unwrap_err();
    let error = chain(&error);
    assert!(error.contains("ipam: ranges: gateway: \"ten\""), "{error}");
    assert!(Config::parse(br#"{"ipam": {"routes": {}}}"#).is_err());
    assert!(Config::parse(br#"{"name": 5}"#).is_err());
}
