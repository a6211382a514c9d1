//! What a runtime tells a CNI plugin, and what is in a node's CNI configuration.
//!
//! The first line is `CNI_ARGS`; a configuration follows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use yurt_net::cni::install::{Directories, calls, install, uninstall};
use yurt_net::cni::{Config, Environment};
use yurt_net::device::Mac;

const INTERFACE: &str = "eth0";

fuzz_target!(|data: &[u8]| {
    let line = data.iter().position(|byte| *byte == b'\n');
    let (args, text) = data.split_at(line.unwrap_or_default());
    let environment = Environment {
        command: "ADD".to_owned(),
        container: "c1".to_owned(),
        netns: "/run/netns/x".to_owned(),
        interface: INTERFACE.to_owned(),
        args: String::from_utf8_lossy(args).into_owned(),
    };
    let _who = environment.attachment("edge").expect("its words are good");
    let told = told(text, &environment);
    let Ok(value) = serde_json::from_slice::<Value>(text) else {
        return;
    };
    if let Some(shouted) = shouted(&value) {
        let again = shouted.to_string();
        assert_eq!(self::told(again.as_bytes(), &environment), told, "{again}");
    }
    in_a_list(&value);
});

/// What a plugin would go by; `None` where it refuses to read it.
fn told(text: &[u8], environment: &Environment) -> Option<[String; 5]> {
    let config = Config::parse(text).ok()?;
    let sets = config.range_sets().map(|sets| {
        let sets = sets.iter().map(ToString::to_string);
        sets.collect::<Vec<_>>()
    });
    let claimed = config.claimed(INTERFACE);
    if let (Ok(claimed), Some(previous)) = (&claimed, &config.prev_result) {
        let (ours, theirs) = (Mac([2, 0, 0, 0, 0, 9]), Mac([2, 0, 0, 0, 0, 8]));
        // Nothing else is changed, so the second leaves no trace.
        let twice = claimed.result(claimed.result(previous.clone(), theirs), ours);
        assert_eq!(twice, claimed.result(previous.clone(), ours));
    }
    let claimed = claimed.map(|claimed| (claimed.addresses, claimed.mac));
    Some([
        format!("{:?}", sets.ok()),
        format!("{:?}", config.requested(environment).ok()),
        format!("{:?}", config.mac_policy().ok()),
        format!("{:?}", config.is_mac_requested(environment)),
        format!("{:?}", claimed.ok()),
    ])
}

/// The same with all keys in capitals, which are the same ones to Go; `None` where two become one, or might.
fn shouted(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Object(fields) => {
            let mut shouted = Map::new();
            for (key, value) in fields {
                // Two letters of other alphabets are s and k to Go; which of several keys comes last depends on them.
                let other = shouted.insert(key.to_ascii_uppercase(), self::shouted(value)?);
                if !key.is_ascii() || other.is_some() {
                    return None;
                }
            }
            Value::Object(shouted)
        }
        Value::Array(values) => values.iter().map(shouted).collect::<Option<_>>()?,
        other => other.clone(),
    })
}

/// As a node's configuration. What is in it is left as it is, and what was put there can be taken out.
fn in_a_list(config: &Value) {
    let directories = Directories {
        data_dir: "/var/lib/yurt-net".to_owned(),
        run_dir: "/run/yurt-net".to_owned(),
    };
    let Ok(installed) = install(config, &directories) else {
        return;
    };
    let again = install(&installed.config, &directories).expect("what was installed can be");
    assert_eq!(again, installed);
    let _calls = calls(&installed.config);
    let without = uninstall(&installed.config).expect("what was installed can be taken out");
    assert_eq!(uninstall(&without).as_ref(), Ok(&without));
}
