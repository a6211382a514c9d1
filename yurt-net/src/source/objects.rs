//! The objects of a snapshot by kind: one place that knows which map holds which.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decode::{Object, ObjectId};
use crate::model::{Kind, NamespacedName, Snapshot};

/// Puts an object into the snapshot; true when that changed it. An equal object leaves the old one, so that all that
/// was compiled from it stays valid.
pub fn put(snapshot: &mut Snapshot, object: &Object) -> bool {
    fn put<K: Ord, T: PartialEq>(all: &mut BTreeMap<K, Arc<T>>, name: K, object: &Arc<T>) -> bool {
        if all.get(&name).is_some_and(|old| old == object) {
            return false;
        }
        all.insert(name, Arc::clone(object));
        true
    }
    match object {
        Object::Service(o) => put(&mut snapshot.services, o.name.clone(), o),
        Object::EndpointSlice(o) => put(&mut snapshot.slices, o.name.clone(), o),
        Object::Node(o) => put(&mut snapshot.nodes, o.name.clone(), o),
        Object::NodePool(o) => put(&mut snapshot.pools, o.name.clone(), o),
        Object::NodeBucket(o) => put(&mut snapshot.buckets, o.name.clone(), o),
        Object::PoolService(o) => put(&mut snapshot.pool_services, o.name.clone(), o),
        Object::ServiceCidr(o) => put(&mut snapshot.service_cidrs, o.name.clone(), o),
        Object::Pod(o) => put(&mut snapshot.pods, o.name.clone(), o),
    }
}

/// Removes an object; true when it was there.
pub(super) fn remove(snapshot: &mut Snapshot, id: ObjectId<'_>) -> bool {
    let named = || NamespacedName::new(id.namespace, id.name);
    let Some(kind) = Kind::of(id.kind) else {
        return false;
    };
    match kind {
        Kind::Service => snapshot.services.remove(&named()).is_some(),
        Kind::EndpointSlice => snapshot.slices.remove(&named()).is_some(),
        Kind::Node => snapshot.nodes.remove(id.name).is_some(),
        Kind::NodePool => snapshot.pools.remove(id.name).is_some(),
        Kind::NodeBucket => snapshot.buckets.remove(id.name).is_some(),
        Kind::PoolService => snapshot.pool_services.remove(&named()).is_some(),
        Kind::ServiceCidr => snapshot.service_cidrs.remove(id.name).is_some(),
        Kind::Pod => snapshot.pods.remove(&named()).is_some(),
    }
}

/// The object of this name.
pub(super) fn get(snapshot: &Snapshot, id: ObjectId<'_>) -> Option<Object> {
    let named = || NamespacedName::new(id.namespace, id.name);
    match Kind::of(id.kind)? {
        Kind::Service => snapshot
            .services
            .get(&named())
            .cloned()
            .map(Object::Service),
        Kind::EndpointSlice => {
            let slice = snapshot.slices.get(&named()).cloned();
            slice.map(Object::EndpointSlice)
        }
        Kind::Node => snapshot.nodes.get(id.name).cloned().map(Object::Node),
        Kind::NodePool => snapshot.pools.get(id.name).cloned().map(Object::NodePool),
        Kind::NodeBucket => snapshot
            .buckets
            .get(id.name)
            .cloned()
            .map(Object::NodeBucket),
        Kind::PoolService => {
            let pool_service = snapshot.pool_services.get(&named()).cloned();
            pool_service.map(Object::PoolService)
        }
        Kind::ServiceCidr => {
            let cidr = snapshot.service_cidrs.get(id.name).cloned();
            cidr.map(Object::ServiceCidr)
        }
        Kind::Pod => snapshot.pods.get(&named()).cloned().map(Object::Pod),
    }
}

/// The objects of one kind.
pub(super) fn all(snapshot: &Snapshot, kind: Kind) -> Vec<Object> {
    fn all<K, T>(all: &BTreeMap<K, Arc<T>>, object: fn(Arc<T>) -> Object) -> Vec<Object> {
        all.values().cloned().map(object).collect()
    }
    match kind {
        Kind::Service => all(&snapshot.services, Object::Service),
        Kind::EndpointSlice => all(&snapshot.slices, Object::EndpointSlice),
        Kind::Node => all(&snapshot.nodes, Object::Node),
        Kind::NodePool => all(&snapshot.pools, Object::NodePool),
        Kind::NodeBucket => all(&snapshot.buckets, Object::NodeBucket),
        Kind::PoolService => all(&snapshot.pool_services, Object::PoolService),
        Kind::ServiceCidr => all(&snapshot.service_cidrs, Object::ServiceCidr),
        Kind::Pod => all(&snapshot.pods, Object::Pod),
    }
}

/// Builds each map again: one that grew has gaps, one that is built at once has none.
pub(super) fn close_gaps(snapshot: &mut Snapshot) {
    fn close<K: Ord, T>(all: &mut BTreeMap<K, T>) {
        *all = std::mem::take(all).into_iter().collect();
    }
    let Snapshot {
        services,
        slices,
        nodes,
        pools,
        buckets,
        pool_services,
        service_cidrs,
        pods,
        manifests,
        rejections: _,
    } = snapshot;
    close(services);
    close(slices);
    close(nodes);
    close(pools);
    close(buckets);
    close(pool_services);
    close(service_cidrs);
    close(pods);
    close(manifests);
}

/// The objects of one kind that the snapshot holds.
pub(super) fn count(snapshot: &Snapshot, kind: Kind) -> usize {
    match kind {
        Kind::Service => snapshot.services.len(),
        Kind::EndpointSlice => snapshot.slices.len(),
        Kind::Node => snapshot.nodes.len(),
        Kind::NodePool => snapshot.pools.len(),
        Kind::NodeBucket => snapshot.buckets.len(),
        Kind::PoolService => snapshot.pool_services.len(),
        Kind::ServiceCidr => snapshot.service_cidrs.len(),
        Kind::Pod => snapshot.pods.len(),
    }
}

/// Keeps only these objects of one kind; true when that changed the snapshot. `objects` are of that kind; an object
/// that has not changed keeps the identity that it has in the snapshot.
pub(super) fn replace(
    snapshot: &mut Snapshot,
    kind: Kind,
    objects: BTreeMap<NamespacedName, Object>,
) -> bool {
    /// A map that is built at once has no gaps; one that grew has.
    fn replace<K: Ord, T>(
        all: &mut BTreeMap<K, Arc<T>>,
        objects: BTreeMap<NamespacedName, Object>,
        name: impl Fn(NamespacedName) -> K,
        of_kind: impl Fn(Object) -> Option<Arc<T>>,
    ) -> bool {
        let objects = objects.into_iter();
        let objects = objects.filter_map(|(key, object)| Some((name(key), of_kind(object)?)));
        let old = std::mem::replace(all, objects.collect());
        !old.values()
            .map(Arc::as_ptr)
            .eq(all.values().map(Arc::as_ptr))
    }
    /// `Object::Kind` to what it holds.
    macro_rules! of_kind {
        ($kind:ident) => {
            |object| match object {
                Object::$kind(object) => Some(object),
                _ => None,
            }
        };
    }
    let whole = |name: NamespacedName| name;
    let alone = |name: NamespacedName| name.name;
    match kind {
        Kind::Service => replace(&mut snapshot.services, objects, whole, of_kind!(Service)),
        Kind::EndpointSlice => replace(
            &mut snapshot.slices,
            objects,
            whole,
            of_kind!(EndpointSlice),
        ),
        Kind::Node => replace(&mut snapshot.nodes, objects, alone, of_kind!(Node)),
        Kind::NodePool => replace(&mut snapshot.pools, objects, alone, of_kind!(NodePool)),
        Kind::NodeBucket => replace(&mut snapshot.buckets, objects, alone, of_kind!(NodeBucket)),
        Kind::PoolService => {
            let pool_services = &mut snapshot.pool_services;
            replace(pool_services, objects, whole, of_kind!(PoolService))
        }
        Kind::ServiceCidr => {
            let cidrs = &mut snapshot.service_cidrs;
            replace(cidrs, objects, alone, of_kind!(ServiceCidr))
        }
        Kind::Pod => replace(&mut snapshot.pods, objects, whole, of_kind!(Pod)),
    }
}
