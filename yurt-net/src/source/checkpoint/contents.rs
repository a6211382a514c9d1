//! What a checkpoint keeps of a `Snapshot`, and the difference between two of them. Pure.
//!
//! `rejections` are not kept: the input that they are about is gone by the time a checkpoint is read, and the next live
//! read finds them again. If a source serves an object in its last good version, that version is kept.

#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{
    EndpointSlice, LocalPod, Manifest, NamespacedName, Node, NodeBucket, NodePool, PoolService,
    Service, ServiceCidr, Snapshot,
};
use crate::source::decode::Names;
use crate::table::ServiceKey;
use crate::table::edition::Edition;

/// The source of a snapshot, and how far it had been followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The `--source` that it came from.
    pub source: String,
    /// When the snapshot was last known to be the source's word, in seconds since 1970.
    pub synced_at: u64,
    /// The version at which the watch of each resource goes on: that of this very snapshot, or an earlier one. A later
    /// one would make the next agent miss the changes in between.
    pub resource_versions: BTreeMap<String, String>,
    /// The edition of the snapshot.
    pub edition: Edition,
    /// Service ports that had no room in the maps; sorted. After a reboot, when the maps are empty, all other service
    /// ports get their room first.
    pub left_out: Vec<ServiceKey>,
}

/// A change of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Edit<K, T> {
    /// It is new, or has other contents.
    Put(Arc<T>),
    /// It is gone.
    Delete(K),
}

impl<K, T: Clone> Edit<K, T> {
    /// The same edit, with the object as another version of the format has it.
    pub(super) fn converted<N: From<T>>(self) -> Edit<K, N> {
        match self {
            Self::Put(object) => Edit::Put(Arc::new(Arc::unwrap_or_clone(object).into())),
            Self::Delete(name) => Edit::Delete(name),
        }
    }
}

/// One line for each kind of object: the field of `Snapshot`, its type, the name and form of its record, its key. The
/// order is part of the format: a new kind goes last, and takes a new `VERSION`.
macro_rules! kinds {
    ($($field:ident: $object:ident as $form:ident by $key:ty,)*) => {
        /// The objects of a snapshot, sorted by name. Cheap to take from a snapshot and to hold.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Contents {
            $($field: Vec<Arc<$object>>,)*
        }

        /// The smallest part of a checkpoint. `P` and `S` are the provenance and the Service as the version of the file
        /// has them.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub(super) enum RecordOf<P, S> {
            /// The end of a state: everything before it counts from here on.
            Synced(P),
            $(
                #[doc = concat!("About a ", stringify!($object), ".")]
                $object(Edit<$key, $form>),
            )*
        }

        impl Contents {
            /// The contents of this snapshot.
            pub fn of(snapshot: &Snapshot) -> Self {
                let Snapshot { $($field,)* rejections: _ } = snapshot;
                Self {
                    $($field: $field.values().map(Arc::clone).collect(),)*
                }
            }

            /// How many objects there are.
            pub fn len(&self) -> usize {
                let Self { $($field,)* } = self;
                0 $(+ $field.len())*
            }

            /// The records that lead from these contents to `new`.
            pub(super) fn changes(&self, new: &Self) -> Vec<Record> {
                let mut changes = Vec::new();
                $(
                    compare(&self.$field, &new.$field, |object| &object.name, |edit| {
                        changes.push(Record::$object(edit));
                    });
                )*
                changes
            }

            /// The records that lead from nothing to these contents.
            pub(super) fn records(&self) -> impl Iterator<Item = Record> {
                std::iter::empty()
                    $(.chain(self.$field.iter().map(|object| Record::$object(Edit::Put(Arc::clone(object))))))*
            }
        }

        impl<P, S: Clone> RecordOf<P, S> {
            /// The same record, as another version of the format has it.
            pub(super) fn converted<Q: From<P>, T: From<S>>(self) -> RecordOf<Q, T> {
                match self {
                    Self::Synced(provenance) => RecordOf::Synced(provenance.into()),
                    $(Self::$object(edit) => RecordOf::$object(edit.converted()),)*
                }
            }
        }

        impl Record {
            /// Applies the record to a snapshot.
            pub(super) fn apply(self, snapshot: &mut Snapshot, provenance: &mut Provenance) {
                match self {
                    Self::Synced(synced) => *provenance = synced,
                    $(
                        Self::$object(Edit::Put(object)) => {
                            snapshot.$field.insert(object.name.clone(), object);
                        }
                        Self::$object(Edit::Delete(name)) => {
                            snapshot.$field.remove(&name);
                        }
                    )*
                }
            }
        }
    };
}

kinds! {
    services: Service as S by NamespacedName,
    slices: EndpointSlice as EndpointSlice by NamespacedName,
    nodes: Node as Node by Arc<str>,
    pools: NodePool as NodePool by Arc<str>,
    buckets: NodeBucket as NodeBucket by Arc<str>,
    service_cidrs: ServiceCidr as ServiceCidr by Arc<str>,
    pool_services: PoolService as PoolService by NamespacedName,
    pods: LocalPod as LocalPod by NamespacedName,
    manifests: Manifest as Manifest by OsString,
}

/// A record of the version that is written.
pub(super) type Record = RecordOf<Provenance, Service>;

impl Contents {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Both lists are sorted by name. Pointers are compared first: an object that a source did not touch still has the same
/// `Arc`.
fn compare<K: Ord + Clone, T: PartialEq>(
    old: &[Arc<T>],
    new: &[Arc<T>],
    name: impl Fn(&T) -> &K,
    mut emit: impl FnMut(Edit<K, T>),
) {
    let mut old = old.iter().peekable();
    let mut new = new.iter().peekable();
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some(was), Some(is)) if Arc::ptr_eq(was, is) => Ordering::Equal,
            (Some(was), Some(is)) => name(was).cmp(name(is)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let was = old.next_if(|_| order.is_le());
        let is = new.next_if(|_| order.is_ge());
        match (was, is) {
            (Some(was), None) => emit(Edit::Delete(name(was).clone())),
            (Some(was), Some(is)) if Arc::ptr_eq(was, is) || was == is => {}
            (_, Some(is)) => emit(Edit::Put(Arc::clone(is))),
            (None, None) => return,
        }
    }
}

impl Record {
    /// Makes the record share the strings that `names` knows.
    pub(super) fn share(&mut self, names: &mut Names) {
        // It was just decoded, so nobody else holds it.
        match self {
            Self::Service(Edit::Put(service)) => {
                let Some(service) = Arc::get_mut(service) else {
                    return;
                };
                names.share(&mut service.name.namespace);
                names.share(&mut service.name.name);
                let ports = service.ports.iter_mut().map(|port| &mut port.name);
                let annotations = [&mut service.topology_keys, &mut service.listen];
                let annotations = annotations.into_iter().flatten();
                ports.chain(annotations).for_each(|text| names.share(text));
            }
            Self::EndpointSlice(Edit::Put(slice)) => {
                let Some(slice) = Arc::get_mut(slice) else {
                    return;
                };
                names.share(&mut slice.name.namespace);
                names.share(&mut slice.service);
                names.share_ports(&mut slice.ports);
                slice.endpoints.edit(|all| {
                    let placements = all.iter_mut().map(|endpoint| &mut endpoint.placement);
                    placements.for_each(|placement| names.share_placement(placement));
                });
            }
            _ => {}
        }
    }
}
