//! What the fuzz targets share: how inputs are cut, and the way that every decoded object goes.

use yurt_net::dataplane::Dataplane as _;
use yurt_net::dataplane::service::memory::MemoryDataplane;
use yurt_net::explain::rows::{Paint, plan_json, plan_table};
use yurt_net::explain::verdict::{Dial, Explanation, OwnAddresses, explain};
use yurt_net::model::{Snapshot, Touched};
use yurt_net::plan::{Capacity, MapImage, plan};
use yurt_net::policy::{Memo, Memory, NodeView, PolicyConfig, Reasons, compile};
use yurt_net::source::decode::Object;
use yurt_net::source::objects;
use yurt_net::table::ServiceTable;

const NODE: &str = "edge-a1";
const CAPACITY: Capacity = Capacity {
    frontends4: 64,
    frontends6: 64,
    services: 32,
    slots4: 64,
    slots6: 64,
};

/// Cuts bytes as a network does: `seed` says where. 0 leaves them whole.
pub fn pieces(mut bytes: &[u8], seed: u8) -> Vec<&[u8]> {
    let longest = usize::from(seed);
    if longest == 0 {
        return vec![bytes];
    }
    let mut pieces = Vec::new();
    let mut luck = u32::from(seed);
    while !bytes.is_empty() {
        luck = luck.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = (luck >> 16) as usize % longest + 1;
        let (piece, rest) = bytes.split_at(length.min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// A snapshot of these objects: of two of one name, the last.
pub fn snapshot<'a>(all: impl IntoIterator<Item = &'a Object>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for object in all {
        objects::put(&mut snapshot, object);
    }
    snapshot
}

/// Goes the whole way of a snapshot: compiled, printed, explained, written to maps. The written table must be the one
/// that was compiled.
pub fn follow(snapshot: &Snapshot) {
    if snapshot.services.is_empty() {
        return;
    }
    let config = PolicyConfig::new(NODE);
    let (view, memory) = (NodeView::default(), Memory::default());
    let mut memo = Memo::default();
    let touched = Touched::Anything;
    let table = compile(snapshot, &touched, &config, &view, &memory, &mut memo).table;
    let reasons = Reasons::new(snapshot, &config, &view, &memory);
    let printed = serde_json::to_string(&plan_json(table, &reasons));
    printed.expect("a plan can always be printed");
    plan_table(table, &reasons, Paint::Plain);
    for entry in &table.services {
        for frontend in &entry.frontends {
            let dial = Dial {
                from: frontend.address,
                to: (frontend.address, frontend.port).into(),
                protocol: entry.key.protocol,
            };
            let explanation = explain_in(table, &reasons, snapshot, dial);
            assert_ne!(explanation.service, "", "{dial:?} is {}", entry.key);
        }
    }
    write(table);
}

/// The verdict for a flow of this node.
pub fn explain_in(
    table: &ServiceTable,
    reasons: &Reasons<'_>,
    snapshot: &Snapshot,
    dial: Dial,
) -> Explanation {
    explain(table, reasons, &OwnAddresses::new(snapshot, NODE), dial)
}

fn write(table: &ServiceTable) {
    let mut maps = MemoryDataplane::new(CAPACITY);
    let mut image = MapImage::empty(CAPACITY);
    let mut planned = plan(table, &mut image);
    maps.apply(&planned)
        .expect("a plan fits what it was made for");
    if planned.has_freed {
        planned = plan(table, &mut image);
        maps.apply(&planned)
            .expect("a plan fits what it was made for");
    }
    let mut observed = maps.observe().expect("memory can be read");
    let again = plan(table, &mut observed);
    assert_eq!(again.ops, [], "what was written is not what was planned");
}
