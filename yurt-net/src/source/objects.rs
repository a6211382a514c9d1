//! The objects of a snapshot by kind: one place that knows which map holds which.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decode::{Object, ObjectId};
use crate::model::{NamespacedName, Snapshot};

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
    match id.kind {
        "Service" => snapshot.services.remove(&named()).is_some(),
        "EndpointSlice" => snapshot.slices.remove(&named()).is_some(),
        "Node" => snapshot.nodes.remove(id.name).is_some(),
        "NodePool" => snapshot.pools.remove(id.name).is_some(),
        "NodeBucket" => snapshot.buckets.remove(id.name).is_some(),
        "PoolService" => snapshot.pool_services.remove(&named()).is_some(),
        "ServiceCIDR" => snapshot.service_cidrs.remove(id.name).is_some(),
        "Pod" => snapshot.pods.remove(&named()).is_some(),
        _ => false,
    }
}

/// The object of this name.
pub(super) fn get(snapshot: &Snapshot, id: ObjectId<'_>) -> Option<Object> {
    let named = || NamespacedName::new(id.namespace, id.name);
    match id.kind {
        "Service" => snapshot
            .services
            .get(&named())
            .cloned()
            .map(Object::Service),
        "EndpointSlice" => {
            let slice = snapshot.slices.get(&named()).cloned();
            slice.map(Object::EndpointSlice)
        }
        "Node" => snapshot.nodes.get(id.name).cloned().map(Object::Node),
        "NodePool" => snapshot.pools.get(id.name).cloned().map(Object::NodePool),
        "NodeBucket" => snapshot
            .buckets
            .get(id.name)
            .cloned()
            .map(Object::NodeBucket),
        "PoolService" => {
            let pool_service = snapshot.pool_services.get(&named()).cloned();
            pool_service.map(Object::PoolService)
        }
        "ServiceCIDR" => {
            let cidr = snapshot.service_cidrs.get(id.name).cloned();
            cidr.map(Object::ServiceCidr)
        }
        "Pod" => snapshot.pods.get(&named()).cloned().map(Object::Pod),
        _ => None,
    }
}

/// Makes each map anew: one that is made at once has no gaps in it, as one has that grows.
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
        origins,
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
    close(origins);
}

/// The objects of one kind that the snapshot holds.
pub(super) fn count(snapshot: &Snapshot, kind: &str) -> usize {
    match kind {
        "Service" => snapshot.services.len(),
        "EndpointSlice" => snapshot.slices.len(),
        "Node" => snapshot.nodes.len(),
        "NodePool" => snapshot.pools.len(),
        "NodeBucket" => snapshot.buckets.len(),
        "PoolService" => snapshot.pool_services.len(),
        "ServiceCIDR" => snapshot.service_cidrs.len(),
        "Pod" => snapshot.pods.len(),
        _ => 0,
    }
}

/// Leaves of one kind only these objects; true when that changed the snapshot. `objects` are of that kind, and those that
/// say what the snapshot's say are the snapshot's.
pub(super) fn replace(
    snapshot: &mut Snapshot,
    kind: &str,
    objects: BTreeMap<NamespacedName, Object>,
) -> bool {
    /// A map that is made at once has no gaps in it, as one has that grows.
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
        "Service" => replace(&mut snapshot.services, objects, whole, of_kind!(Service)),
        "EndpointSlice" => replace(
            &mut snapshot.slices,
            objects,
            whole,
            of_kind!(EndpointSlice),
        ),
        "Node" => replace(&mut snapshot.nodes, objects, alone, of_kind!(Node)),
        "NodePool" => replace(&mut snapshot.pools, objects, alone, of_kind!(NodePool)),
        "NodeBucket" => replace(&mut snapshot.buckets, objects, alone, of_kind!(NodeBucket)),
        "PoolService" => {
            let pool_services = &mut snapshot.pool_services;
            replace(pool_services, objects, whole, of_kind!(PoolService))
        }
        "ServiceCIDR" => {
            let cidrs = &mut snapshot.service_cidrs;
            replace(cidrs, objects, alone, of_kind!(ServiceCidr))
        }
        "Pod" => replace(&mut snapshot.pods, objects, whole, of_kind!(Pod)),
        _ => false,
    }
}
