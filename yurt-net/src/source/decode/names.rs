//! Values that objects have in common, kept once.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::object::Object;
use crate::model::{EndpointPort, Kind, NamespacedName, Placement, TOO_MANY_PLACES};

/// So many bytes may be kept without a user.
const FEW_BYTES: usize = 64 << 10;
/// The names of nodes and zones that objects of one kind refer to may take so many bytes: enough for 20,000 nodes. A
/// tenant may write another name into each of the million endpoints that he may have.
const MAX_PLACE_BYTES: usize = 2 << 20;
/// A walk over so many values, in search of those that nobody holds, is worth one name of a node that was not taken.
const RARELY: usize = 16;
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
    /// Nodes and zones.
    places: Pool<str>,
    /// After so many names that are not taken, it is worth looking for those that nobody holds.
    patience: usize,
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
        names.node = Some(names.place(node));
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

    /// The name of a node or zone, if there is room for it; else [`TOO_MANY_PLACES`].
    pub(super) fn place(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.places.get(name) {
            return known;
        }
        match self.has_place_for(name) {
            true => {
                self.make_room();
                self.places.add(name.into())
            }
            false => self.intern(TOO_MANY_PLACES),
        }
    }

    fn has_place_for(&mut self, name: &str) -> bool {
        let most = MAX_PLACE_BYTES.saturating_sub(name.weight() + OVERHEAD);
        if self.places.bytes > most {
            match self.patience.checked_sub(1) {
                Some(left) => self.patience = left,
                None => {
                    self.prune();
                    self.patience = self.values() / RARELY;
                }
            }
        }
        self.places.bytes <= most
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
            if let Some(name) = &mut placement.node_name {
                *name = self.place(name);
            }
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

    fn values(&self) -> usize {
        let words = self.words.values.len() + self.places.values.len();
        words + self.placements.values.len() + self.ports.values.len()
    }

    fn bytes(&self) -> usize {
        self.words.bytes + self.places.bytes + self.placements.bytes + self.ports.bytes
    }

    /// Forgets the names that no object holds any more.
    pub(crate) fn prune(&mut self) {
        // In this order: placements and ports hold words and places.
        self.ports.prune();
        self.placements.prune();
        self.places.prune();
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

    #[test]
    fn names_of_nodes_are_bounded_and_those_that_are_known_or_come_when_others_went_are_kept() {
        let mut names = Names::of_node("a1");
        let own = names.place("a1");
        let long = |n: usize| format!("{n:07}{}", "n".repeat(246));
        let mut held: Vec<_> = (0..100_000).map(|n| names.place(&long(n))).collect();
        assert!(names.places.bytes <= MAX_PLACE_BYTES && names.bytes() < MAX_PLACE_BYTES * 2);
        let kept = held.iter().filter(|name| ***name != *TOO_MANY_PLACES);
        assert!(kept.count() > 6000);
        assert_eq!(*held[0], *long(0));
        assert_eq!([&*names.place("a1"), &*own], ["a1", "a1"]);
        assert_eq!(*names.place("new"), *TOO_MANY_PLACES);
        held.clear();
        let new = (0..10_000).map(|_| names.place("new"));
        assert!(new.filter(|name| **name == *"new").count() > 9000);
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
