//! What a runtime is told when it does not work: a code of the specification, and words.

use serde_json::{Value, json};

use yurt_net_tests::runtime::{Node, pod};

#[track_caller]
fn assert_fails(node: &Node, verb: &str, config: &Value, code: u32, words: &str) {
    let sandbox = pod("web-0", "c1").sandbox;
    let answer = node.call(verb, &sandbox, config);
    let text = format!("{}: {}", answer.json["msg"], answer.json["details"]);
    assert!(
        !answer.is_ok && answer.json["code"] == code && text.contains(words),
        "{answer:?}"
    );
    assert!(answer.json["cniVersion"].is_string(), "{answer:?}");
}

#[test]
fn bad_configurations_are_told_by_code_and_in_words() {
    let node = Node::alone();
    let with = |key: &str, value: Value| {
        let mut config = node.ipam();
        config["cniVersion"] = json!("1.0.0");
        config["name"] = json!("edge");
        config[key] = value;
        config
    };
    assert_fails(
        &node,
        "ADD",
        &with("cniVersion", json!("0.2.0")),
        1,
        "0.2.0",
    );
    assert_fails(
        &node,
        "GC",
        &with("name", json!("edge")),
        1,
        "needs cniVersion 1.1.0",
    );
    assert_fails(
        &node,
        "UPDATE",
        &with("name", json!("edge")),
        4,
        "CNI_COMMAND",
    );
    assert_fails(
        &node,
        "ADD",
        &with("ranges", json!("10.1.0.0/24")),
        6,
        "configuration",
    );
    assert_fails(&node, "ADD", &with("name", json!("")), 7, "no name");
    assert_fails(
        &node,
        "ADD",
        &with("dataDir", json!("state")),
        7,
        "absolute",
    );
    assert_fails(&node, "ADD", &with("ranges", json!([])), 7, "no ranges");
    let bits = json!([[{"subnet": "10.1.0.5/24"}]]);
    assert_fails(&node, "ADD", &with("ranges", bits), 7, "write 10.1.0.0/24");
    let overlap = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]);
    assert_fails(&node, "ADD", &with("ranges", overlap), 7, "overlap");
    assert_fails(
        &node,
        "ADD",
        &with("runtimeConfig", json!({"ips": ["10.7.0.1"]})),
        100,
        "10.7.0.1",
    );
    assert_fails(
        &node,
        "ADD",
        &with("resolvConf", json!("/nowhere")),
        5,
        "/nowhere",
    );

    let mut chained = node.chained();
    chained["cniVersion"] = json!("1.0.0");
    chained["name"] = json!("edge");
    assert_fails(&node, "ADD", &chained, 7, "after the main plugin");
}

#[test]
fn a_ledger_of_a_newer_version_is_left_alone() {
    let node = Node::alone();
    let directory = node.dir().join("state/ledger");
    std::fs::create_dir_all(&directory).unwrap();
    let line = "bbe2bbf2 1 {\"yurt-net\":\"ledger\",\"version\":2,\"records\":0}\n";
    std::fs::write(directory.join("ledger"), line).unwrap();
    let mut config = node.ipam();
    config["cniVersion"] = json!("1.0.0");
    config["name"] = json!("edge");
    assert_fails(&node, "ADD", &config, 5, "use the yurt-net that wrote it");
    assert_eq!(
        std::fs::read_to_string(directory.join("ledger")).unwrap(),
        line
    );
}
