//! What is `pub` is for other rooms: a function or a constant that no other room names is its own room's alone, and says so.
//!
//! By names, as the scanner sees them: a name that another room uses for something else hides a function of the same name. Types are left
//! out, because they are part of what functions say without being named by who calls them.

use std::collections::{BTreeMap, BTreeSet};

use super::layering::{File, Violation};
use super::paths::words;

/// The crates whose rooms are told apart. What is named anywhere else is used by somebody else.
const CRATES: [&str; 2] = ["yurt-net/src/", "yurt-ebpf/src/"];

/// Every `pub` function and constant that no other room names.
pub(crate) fn violations(files: &[File]) -> Vec<Violation> {
    let mut named: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut defined = Vec::new();
    for file in files {
        let room = room_of(&file.name);
        let all = words(&file.text);
        for (line, name) in definitions(&all) {
            defined.push((file, room, line, name.to_owned()));
        }
        for (_, word) in all {
            named.entry(word).or_default().insert(room);
        }
    }
    let is_ours = |file: &File| CRATES.iter().any(|of| file.name.starts_with(of));
    let alone = defined.into_iter().filter(|(file, room, _, name)| {
        let rooms = named.get(name);
        is_ours(file) && rooms.is_none_or(|rooms| rooms.iter().all(|other| other == room))
    });
    alone
        .map(|(file, _, line, name)| Violation {
            place: format!("{}:{line}", file.name),
            rule: format!("`{name}` is pub, and no other room names it"),
            remedy: "make it pub(super), or pub(crate)".to_owned(),
        })
        .collect()
}

/// The directory or the file below the crate's root; a file of another crate stands for itself.
fn room_of(name: &str) -> &str {
    let house = CRATES.iter().find(|house| name.starts_with(**house));
    let room = house.and_then(|house| {
        let end = name[house.len()..].find(['/', '.'])?;
        name.get(..house.len() + end)
    });
    room.unwrap_or(name)
}

/// Line and name of what is `pub` to all.
fn definitions(words: &[(usize, String)]) -> impl Iterator<Item = (usize, &str)> {
    let publics = words
        .iter()
        .enumerate()
        .filter(|(_, (_, word))| word == "pub");
    publics.filter_map(|(at, _)| {
        let rest = &words[at + 1..];
        let kind = rest
            .iter()
            .position(|(_, word)| !IN_FRONT.contains(&&**word))?;
        let is_const = kind > 0 && rest[kind - 1].1 == "const";
        let (line, name) = match &*rest[kind].1 {
            "fn" | "static" => rest.get(kind + 1)?,
            _ if is_const => &rest[kind],
            _ => return None,
        };
        Some((*line, &**name))
    })
}

/// What may stand between `pub` and what it is.
const IN_FRONT: [&str; 4] = ["async", "const", "extern", "unsafe"];

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(name, text)| File {
            name: (*name).to_owned(),
            text: (*text).to_owned(),
        });
        let files: Vec<File> = files.collect();
        let found = violations(&files);
        found.into_iter().map(|found| found.rule).collect()
    }

    #[test]
    fn what_only_its_own_room_names_is_no_pub() {
        let own = (
            "yurt-net/src/plan/mod.rs",
            "pub fn plan() {}\npub async fn later() {}\npub const MOST: u8 = 1;\npub(super) fn own() {}\npub struct Plan;\n",
        );
        let same = (
            "yurt-net/src/plan/sets.rs",
            "fn f() { plan(); later(); MOST }",
        );
        let told = |name: &str| format!("`{name}` is pub, and no other room names it");
        assert_eq!(found(&[own, same]), ["plan", "later", "MOST"].map(told));
        let prose = ("yurt-net/src/agent/mod.rs", "// plan later MOST\n");
        assert_eq!(found(&[own, prose]).len(), 3);
        let other = (
            "yurt-net/src/agent/mod.rs",
            "fn f() { plan(); later(MOST) }",
        );
        assert_eq!(found(&[own, other]), [""; 0]);
        let test = ("tests/netns/main.rs", "use a::{plan, later, MOST};");
        assert_eq!(found(&[own, test]), [""; 0]);
    }

    #[test]
    fn what_is_in_no_room_is_not_looked_at() {
        assert_eq!(
            found(&[("xtask/src/shell.rs", "pub fn alone() {}")]),
            [""; 0]
        );
    }
}
