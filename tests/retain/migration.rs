//! From host-local, and from OpenYurt's patch of it.

use std::fs;

use serde_json::json;

use yurt_net_tests::runtime::{Network, Node, addresses, pod};

#[test]
fn pods_of_host_local_keep_their_addresses_and_nobody_else_gets_them() {
    let node = Node::alone();
    let host_local = json!({
        "type": "host-local", "dataDir": node.path("networks"), "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
    });
    let mut before = Network::new(&node, "1.0.0", node.bridged(host_local));
    before.plugins.truncate(1);
    let running = pod("web-0", "c1");
    assert_eq!(
        addresses(&before.add(&running.sandbox)),
        ["10.1.0.2", "fd00:1::2"]
    );
    // OpenYurt's patch has written down who had what: one that runs, one that is expected back.
    let directory = node.dir().join("networks/edge");
    for name in [
        "10.1.0.2_shop_web-0",
        "fd00:1::2_shop_web-0",
        "10.1.0.4_shop_web-2",
    ] {
        fs::write(directory.join(name), "").unwrap();
    }
    let other = pod("unnamed", "c2");
    assert_eq!(
        addresses(&before.add(&other.sandbox)),
        ["10.1.0.3", "fd00:1::3"]
    );

    let mut after = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let new = after.add(&pod("web-1", "c3").sandbox);
    assert_eq!(addresses(&new), ["10.1.0.5", "fd00:1::4"]);
    assert_eq!(node.entry("web-0")["state"], "active");
    assert_eq!(node.entry("web-2")["state"], "retained");
    assert_eq!(node.entry("c2")["state"], "active");

    after.del(&running.sandbox);
    assert_eq!(
        addresses(&after.add(&pod("web-0", "c4").sandbox)),
        ["10.1.0.2", "fd00:1::2"]
    );
    assert_eq!(
        addresses(&after.add(&pod("web-2", "c5").sandbox))[0],
        "10.1.0.4"
    );
    after.del(&other.sandbox);
    assert_eq!(node.entry("c2")["state"], "released");
}
