//! A list while it arrives, and what its items that cannot be read may be.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::model::{Kind, NamespacedName, Rejection};
use crate::source::decode::{Object, OtherObject};
use crate::source::room::Room;

#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) objects: BTreeMap<NamespacedName, Object>,
    pub(super) rejections: BTreeMap<NamespacedName, Rejection>,
    /// The room that its slices take.
    pub(super) room: Room,
    /// How many items the list has, and how many of them could be read, or are known to be an object that is in force.
    pub(super) items: usize,
    pub(super) read: usize,
    /// One of them could not be read, and nobody knows which object it is.
    pub(super) has_nameless: bool,
    /// One of them is not what was asked for: it is no list of that.
    pub(super) other: Option<OtherObject>,
}

impl List {
    pub(super) fn says_the_same_as(&self, other: &Self) -> bool {
        (&self.objects, &self.rejections) == (&other.objects, &other.rejections)
    }

    /// It says that there are objects, and of none what it is.
    pub(super) fn is_unreadable(&self) -> bool {
        self.items > 0 && self.read == 0
    }

    /// Why it says nothing.
    pub(super) fn unreadable(&self) -> String {
        format!("none of the {} items of the list can be read", self.items)
    }

    /// Any object may be among its items.
    pub(super) fn may_be_any(&self) -> bool {
        self.has_nameless || self.is_unreadable()
    }

    /// Keeps an object that is in force.
    pub(super) fn keep(&mut self, mut object: Object) {
        if let Object::EndpointSlice(slice) = &mut object {
            self.room.admit(slice);
        }
        self.objects.insert(object.name(), object);
    }

    /// Keeps what is in force and not named by any of its items, and says so.
    pub(super) fn keep_unnamed(&mut self, kind: Kind, in_force: Vec<Object>) {
        let before = self.objects.len();
        for object in in_force {
            if !self.objects.contains_key(&object.name()) {
                self.keep(object);
            }
        }
        let kept = self.objects.len() - before;
        if kept == 0 {
            return;
        }
        let why = match self.is_unreadable() {
            true => self.unreadable(),
            false => "items of the list have no name that can be read".to_owned(),
        };
        let rejection = Rejection {
            kind: kind.name().to_owned(),
            namespace: String::new(),
            name: String::new(),
            source: String::new(),
            reason: format!("{why}; the last good version is kept of {kept} that it does not name"),
        };
        self.rejections
            .insert(NamespacedName::new("", ""), rejection);
    }
}
