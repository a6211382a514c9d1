//! From the files of a load to one snapshot: equal objects, the identity of unchanged ones, the last good ones.
//!
//! Pure: what was read and what was known before go in, a whole snapshot comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use super::scan::{Scan, Stamp};
use crate::model::{self, ManifestObject, Rejection, Snapshot};
use crate::source::decode::{Located, Object, ObjectId};
use crate::source::objects;
use crate::source::room::Room;

/// What is known of one file.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// Path relative to the source, for people.
    pub(super) path: Arc<str>,
    /// The file that `objects` and `rejections` were read from; `None` when it cannot be read.
    pub(super) stamp: Option<Stamp>,
    /// The hash of that file's bytes; 0 without a `stamp`.
    pub(super) digest: u64,
    /// To be read again by the next load even if the stamp stays the same.
    pub(super) is_provisional: bool,
    pub(super) objects: Vec<Located>,
    pub(super) rejections: Vec<Rejection>,
    /// Last good versions of objects that are in this file no longer in a valid form.
    pub(super) held: Vec<Located>,
}

impl Manifest {
    pub(super) fn unreadable(name: &OsStr, reason: &str) -> Self {
        let path = name.to_string_lossy();
        Self {
            path: path.as_ref().into(),
            stamp: None,
            digest: 0,
            is_provisional: false,
            objects: Vec::new(),
            rejections: vec![Rejection {
                kind: String::new(),
                namespace: String::new(),
                name: String::new(),
                source: path.into_owned(),
                reason: reason.to_owned(),
            }],
            held: Vec::new(),
        }
    }

    /// Cuts off what is more than Services may have, and reports it.
    pub(super) fn keep_to(&mut self, room: &mut Room) {
        let mut cut = Vec::new();
        for located in &mut self.objects {
            let Object::EndpointSlice(slice) = &mut located.object else {
                continue;
            };
            let Some(reason) = room.admit(slice) else {
                continue;
            };
            cut.push(Rejection {
                kind: "EndpointSlice".to_owned(),
                namespace: slice.name.namespace.to_string(),
                name: slice.name.name.to_string(),
                source: format!("{}#{}", self.path, located.document),
                reason,
            });
        }
        if cut.is_empty() {
            return;
        }
        let ids: BTreeSet<ObjectId<'_>> = cut.iter().map(id).collect();
        // They may have been cut before, when other files had less.
        self.rejections.retain(|old| !ids.contains(&id(old)));
        self.rejections.extend(cut);
    }

    /// Why what is in force of it is not all that it says, if that is so.
    pub(super) fn staleness(&self) -> Option<String> {
        if self.stamp.is_some() && self.held.is_empty() {
            return None;
        }
        let all = self.rejections.iter();
        let first = all.clone().find(|rejection| rejection.name.is_empty());
        let reason = first.or(all.clone().next());
        let reason = reason.map_or("objects in it are wrong", |rejection| &rejection.reason);
        let kept = self.held.len();
        Some(format!(
            "{}: {reason}; {kept} objects are kept as they were",
            self.path
        ))
    }

    /// All that is in force of it.
    pub(super) fn all(&self) -> impl Iterator<Item = &Located> {
        self.objects.iter().chain(&self.held)
    }

    /// Any object may be in the part that could not be read.
    fn may_hide_objects(&self) -> bool {
        self.rejections
            .iter()
            .any(|rejection| rejection.name.is_empty())
    }
}

fn id(rejection: &Rejection) -> ObjectId<'_> {
    ObjectId {
        kind: &rejection.kind,
        namespace: &rejection.namespace,
        name: &rejection.name,
    }
}

/// Makes `files` agree with `scan` and the `fresh` readings, and makes the snapshot of it.
#[expect(
    clippy::too_many_lines,
    reason = "which version of a manifest counts: the cases belong side by side"
)]
pub(super) fn merge(
    files: &mut BTreeMap<OsString, Manifest>,
    scan: &Scan,
    mut fresh: BTreeMap<OsString, Manifest>,
) -> Snapshot {
    let old = std::mem::take(files);
    let before = last_good(&old);
    let mut room = Room::default();
    for name in scan.entries.keys() {
        let file = match fresh.remove(name) {
            Some(mut file) => {
                file.keep_to(&mut room);
                for located in &mut file.objects {
                    keep_identity(located, &before);
                }
                Some(file)
            }
            None => old
                .get(name)
                .cloned()
                .map(|file| Manifest {
                    held: Vec::new(),
                    ..file
                })
                .map(|mut file| {
                    file.keep_to(&mut room);
                    file
                }),
        };
        // A file that vanished between two attempts is in neither.
        files.extend(file.map(|file| (name.clone(), file)));
    }

    let mut snapshot = Snapshot::default();
    let mut winners = BTreeMap::new();
    let mut said: BTreeMap<OsString, Vec<ManifestObject>> = BTreeMap::new();
    for (name, file) in &*files {
        let said = said.entry(name.clone()).or_default();
        for located in &file.objects {
            match winners.get(&located.object.id()) {
                None => {
                    winners.insert(located.object.id(), (name, located.document));
                    said.push(manifest_object(located));
                    objects::put(&mut snapshot, &located.object);
                }
                Some(winner) => snapshot.rejections.push(duplicate(name, located, *winner)),
            }
        }
    }

    let blamed: BTreeMap<ObjectId<'_>, &OsString> = files
        .iter()
        .flat_map(|(name, file)| {
            file.rejections
                .iter()
                .map(move |rejection| (id(rejection), name))
        })
        .collect();
    let hiding = files.iter().filter(|(_, file)| file.may_hide_objects());
    let hiding: BTreeSet<&OsString> = hiding.map(|(name, _)| name).collect();
    let mut held: Vec<(OsString, Located)> = Vec::new();
    for (id, (origin, located)) in &before {
        if winners.contains_key(id) {
            continue;
        }
        let holder = blamed
            .get(id)
            .copied()
            .or_else(|| hiding_place(&hiding, origin));
        held.extend(holder.map(|holder| (holder.clone(), (*located).clone())));
    }
    for (holder, located) in held {
        if let Some(file) = files.get_mut(&holder) {
            objects::put(&mut snapshot, &located.object);
            said.entry(holder)
                .or_default()
                .push(manifest_object(&located));
            file.held.push(located);
        }
    }
    snapshot.manifests = said
        .into_iter()
        .map(|(name, objects)| {
            let manifest = model::Manifest::new(name, objects);
            (manifest.name.clone(), Arc::new(manifest))
        })
        .collect();

    for file in files.values() {
        let kept = Kept::of(file);
        let told = |rejection: &Rejection| Rejection {
            reason: format!("{}{}", rejection.reason, kept.told_of(rejection)),
            ..rejection.clone()
        };
        snapshot.rejections.extend(file.rejections.iter().map(told));
    }
    snapshot.rejections.sort();
    objects::close_gaps(&mut snapshot);
    snapshot
}

fn manifest_object(located: &Located) -> ManifestObject {
    ManifestObject {
        kind: located.object.kind(),
        name: located.object.name(),
        document: u32::try_from(located.document).unwrap_or(u32::MAX),
    }
}

/// What is known of the files of a snapshot before any of them was read: what they said last.
pub(super) fn remembered(last: &Snapshot) -> BTreeMap<OsString, Manifest> {
    let located = |said: &ManifestObject| {
        let id = ObjectId {
            kind: said.kind.name(),
            namespace: &said.name.namespace,
            name: &said.name.name,
        };
        Some(Located {
            object: objects::get(last, id)?,
            document: usize::try_from(said.document).ok()?,
        })
    };
    let manifests = last.manifests.values();
    let manifests = manifests.map(|manifest| {
        let known = Manifest {
            path: manifest.name.to_string_lossy().into(),
            stamp: None,
            digest: 0,
            is_provisional: false,
            objects: manifest.objects.iter().filter_map(located).collect(),
            rejections: Vec::new(),
            held: Vec::new(),
        };
        (manifest.name.clone(), known)
    });
    manifests.collect()
}

/// The objects of the last snapshot, and the file that each was last found in.
fn last_good(
    files: &BTreeMap<OsString, Manifest>,
) -> BTreeMap<ObjectId<'_>, (&OsString, &Located)> {
    let mut all = BTreeMap::new();
    for (name, file) in files {
        for located in &file.objects {
            all.entry(located.object.id()).or_insert((name, located));
        }
    }
    for (name, file) in files {
        for located in &file.held {
            all.entry(located.object.id()).or_insert((name, located));
        }
    }
    all
}

/// An object that has not changed keeps its identity.
fn keep_identity(located: &mut Located, before: &BTreeMap<ObjectId<'_>, (&OsString, &Located)>) {
    if let Some((_, known)) = before.get(&located.object.id())
        && known.object == located.object
    {
        located.object = known.object.clone();
    }
}

/// The unreadable part of the source that an object from file `origin` may still be in: the file, a document of it, or
/// a directory above. `hiding` are the files and directories of which not all could be read.
fn hiding_place<'a>(hiding: &BTreeSet<&'a OsString>, origin: &OsStr) -> Option<&'a OsString> {
    let mut places = Path::new(origin).ancestors();
    places.find_map(|path| hiding.get(&path.as_os_str().to_owned()).copied())
}

fn duplicate(name: &OsStr, located: &Located, (winner, document): (&OsString, usize)) -> Rejection {
    let ObjectId {
        kind,
        namespace,
        name: object,
    } = located.object.id();
    Rejection {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: object.to_owned(),
        source: format!("{}#{}", name.to_string_lossy(), located.document),
        reason: format!(
            "the same object is in {}#{document}, which comes first and is used: remove one of them",
            winner.to_string_lossy()
        ),
    }
}

/// How many objects a Rejection names.
const NAMED: usize = 3;

/// What the operator has to know about the Rejections of a file beyond their reasons. A file may have a hundred
/// thousand objects that are kept, and ten thousand Rejections, so neither is looked through for each of the other.
struct Kept<'a> {
    held: BTreeSet<ObjectId<'a>>,
    /// Of a Rejection that names no object: any of those that no other one names.
    unnamed: String,
}

impl<'a> Kept<'a> {
    fn of(file: &'a Manifest) -> Self {
        let held: Vec<ObjectId<'_>> = file.held.iter().map(|held| held.object.id()).collect();
        let blamed: BTreeSet<ObjectId<'_>> = file.rejections.iter().map(id).collect();
        let is_unnamed = |held: &&ObjectId<'_>| !blamed.contains(held);
        let unnamed = held.iter().filter(is_unnamed);
        let names: Vec<String> = unnamed
            .clone()
            .take(NAMED)
            .map(ToString::to_string)
            .collect();
        let more = match unnamed.count().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Self {
            unnamed: match names.is_empty() {
                true => String::new(),
                false => format!(
                    "; the last good version is kept of {}{more}",
                    names.join(", ")
                ),
            },
            held: held.into_iter().collect(),
        }
    }

    fn told_of(&self, rejection: &Rejection) -> &str {
        match rejection.name.is_empty() {
            true => &self.unnamed,
            false if self.held.contains(&id(rejection)) => "; the last good version is kept",
            false => "",
        }
    }
}
