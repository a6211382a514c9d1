//! Values that objects have in common, kept once.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::object::Object;
use crate::model::{EndpointPort, Kind, NamespacedName, Placement};

/// So many bytes may be kept without a user.
const FEW_BYTES: usize = 64 << 10;
/// What a pool and the allocator take for each value, besides the value.
const OVERHEAD: usize = 48;

/// About how many bytes a value takes, without what others hold as well.
trait Weigh {
    fn weight(&self) -> usize;
}

impl Weigh for str {
    fn weight(&self) -> usize {
        self.len()
    }
}

impl Weigh for Placement {
    fn weight(&self) -> usize {
        let hints = self.hints.as_deref();
        let named = hints.map_or(0, |hints| hints.zones.len() + hints.nodes.len());
        size_of_val(self) + named * size_of::<Arc<str>>()
    }
}

impl Weigh for [EndpointPort] {
    fn weight(&self) -> usize {
        size_of_val(self)
    }
}

/// Values, each kept once, for as long as something holds it, and until the next [`Pool::prune`].
#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: BTreeSet<Arc<T>>,
    bytes: usize,
}

impl<T: ?Sized + Ord> Default for Pool<T> {
    fn default() -> Self {
        Self {
            values: BTreeSet::new(),
            bytes: 0,
        }
    }
}

impl<T: ?Sized + Ord + Weigh> Pool<T> {
    fn get(&self, value: &T) -> Option<Arc<T>> {
        self.values.get(value).cloned()
    }

    fn add(&mut self, value: Arc<T>) -> Arc<T> {
        self.bytes += value.weight() + OVERHEAD;
        self.values.insert(Arc::clone(&value));
        value
    }

    fn prune(&mut self) {
        self.values.retain(|value| {
            let is_held = Arc::strong_count(value) > 1;
            if !is_held {
                self.bytes -= value.weight() + OVERHEAD;
            }
            is_held
        });
    }
}

/// What objects repeat: names of Services, nodes, zones, namespaces and ports, the placements of endpoints, the ports
/// of slices; and whole objects, while [`Names::expect`] names them.
#[derive(Debug, Default)]
pub struct Names {
    words: Pool<str>,
    placements: Pool<Placement>,
    ports: Pool<[EndpointPort]>,
    /// When so many bytes are there, values that no object holds are dropped.
    limit: usize,
    /// The own Node: only for its endpoints does it matter which Pods they are.
    node: Option<Arc<str>>,
    expected: BTreeMap<(Kind, NamespacedName), Object>,
}

impl Names {
    /// For objects that a node of this name reads.
    pub fn of_node(node: &str) -> Self {
        let mut names = Self::default();
        names.node = Some(names.intern(node));
        names
    }

    /// From now on an object that is decoded and equals one of these is replaced by it, so it takes no memory. Nothing
    /// is expected after `expect([])`.
    pub fn expect<'a>(&mut self, objects: impl IntoIterator<Item = &'a Object>) {
        let named = |object: &Object| ((object.kind(), object.name()), object.clone());
        self.expected = objects.into_iter().map(named).collect();
    }

    /// The expected object, if it is equal.
    pub(super) fn same(&self, object: Object) -> Object {
        let key = (object.kind(), object.name());
        let expected = self.expected.get(&key).cloned();
        expected.filter(|known| *known == object).unwrap_or(object)
    }

    pub(super) fn is_own_node(&self, name: &str) -> bool {
        self.node.as_deref() == Some(name)
    }

    pub(super) fn intern(&mut self, name: &str) -> Arc<str> {
        match self.words.get(name) {
            Some(known) => known,
            None => {
                self.make_room();
                self.words.add(name.into())
            }
        }
    }

    pub(super) fn placement(&mut self, placement: Placement) -> Arc<Placement> {
        match self.placements.get(&placement) {
            Some(known) => known,
            None => {
                self.make_room();
                self.placements.add(placement.into())
            }
        }
    }

    pub(super) fn ports(&mut self, ports: Box<[EndpointPort]>) -> Arc<[EndpointPort]> {
        match self.ports.get(&ports) {
            Some(known) => known,
            None => {
                self.make_room();
                self.ports.add(ports.into())
            }
        }
    }

    /// Shares the ports of a slice that was decoded elsewhere, too.
    pub(crate) fn share_ports(&mut self, ports: &mut Arc<[EndpointPort]>) {
        let mut all: Box<[_]> = ports.iter().cloned().collect();
        all.iter_mut().for_each(|port| self.share(&mut port.name));
        *ports = self.ports(all);
    }

    /// Shares the placement of an endpoint that was decoded elsewhere, too.
    pub(crate) fn share_placement(&mut self, placement: &mut Option<Arc<Placement>>) {
        *placement = placement.take().map(|placement| {
            let mut placement = Arc::unwrap_or_clone(placement);
            placement
                .node_name
                .iter_mut()
                .for_each(|name| self.share(name));
            self.placement(placement)
        });
    }

    /// Shares a text that was decoded elsewhere, too.
    pub fn share(&mut self, name: &mut Arc<str>) {
        match self.words.get(name) {
            Some(known) => *name = known,
            None => {
                self.make_room();
                self.words.add(Arc::clone(name));
            }
        }
    }

    /// A watch may go on for weeks, and each event may bring new names. What is dropped is in proportion to what was
    /// added, in bytes, because a list of ports is a thousand times as large as a word.
    fn make_room(&mut self) {
        if self.bytes() >= self.limit {
            self.prune();
            self.limit = self.bytes() + FEW_BYTES.max(self.bytes() / 2);
        }
    }

    fn bytes(&self) -> usize {
        self.words.bytes + self.placements.bytes + self.ports.bytes
    }

    /// Forgets the names that no object holds any more.
    pub(crate) fn prune(&mut self) {
        // In this order: placements and ports hold words.
        self.ports.prune();
        self.placements.prune();
        self.words.prune();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, decode};
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn names_that_nobody_holds_are_forgotten() {
        let mut names = Names::default();
        let kept = names.intern("a");
        names.intern("b");
        names.prune();
        assert_eq!(names.words.values.iter().collect::<Vec<_>>(), [&kept]);
    }

    #[test]
    fn names_that_come_and_go_take_no_more_than_those_that_are_held() {
        let mut names = Names::default();
        let held: Vec<_> = (0..5000)
            .map(|n| names.intern(&format!("held-{n}")))
            .collect();
        names.prune();
        let most = names.bytes() * 3 / 2 + FEW_BYTES;
        for n in 0..100_000 {
            let placement = Placement {
                node_name: Some(names.intern(&format!("node-{n}"))),
                hints: None,
            };
            names.placement(placement);
            assert!(names.bytes() <= most);
        }
        names.prune();
        assert_eq!(names.words.values.len(), held.len());
    }

    /// One slice of a thousand ports that is rewritten all the time, beside many words.
    #[test]
    fn long_lists_that_come_and_go_take_no_more_than_what_is_held() {
        let mut names = Names::default();
        let words: Vec<_> = (0..33_000)
            .map(|n| names.intern(&format!("p{n}")))
            .collect();
        names.prune();
        let most = names.bytes() * 3 / 2 + FEW_BYTES;
        for n in 0..3000 {
            let port = |name: &Arc<str>| EndpointPort {
                name: name.clone(),
                protocol: Protocol::Tcp,
                port: n,
            };
            names.ports(words[..1000].iter().map(port).collect());
            let longest = 1000 * size_of::<EndpointPort>() + OVERHEAD;
            assert!(names.bytes() <= most + longest, "{n}");
        }
        names.prune();
        let held: usize = words.iter().map(|word| word.weight() + OVERHEAD).sum();
        assert_eq!(names.bytes(), held);
    }

    #[test]
    fn an_object_that_is_read_again_is_the_one_that_there_is() {
        let node = |name: &str, pod_cidr: &str| {
            format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {pod_cidr}}}\n"
            )
        };
        let mut names = Names::default();
        let mut read = |text: &str, known: &[Object]| -> Vec<Object> {
            names.expect(known);
            let decoded = decode(text, Format::Yaml, "a", &mut names);
            decoded.objects.into_iter().map(|o| o.object).collect()
        };
        let is_same = |one: &Object, other: &Object| match (one, other) {
            (Object::Node(one), Object::Node(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        let two = node("a", "10.1.0.0/24") + &node("b", "10.2.0.0/24");
        let first = read(&two, &[]);
        let changed = node("a", "10.1.0.0/24") + &node("b", "10.3.0.0/24");
        let second = read(&changed, &first);
        assert!(is_same(&first[0], &second[0]));
        assert_ne!(first[1], second[1]);
        let third = read(&two, &[]);
        assert_eq!(first, third);
        assert!(!is_same(&first[0], &third[0]), "nothing was expected");
    }
}
