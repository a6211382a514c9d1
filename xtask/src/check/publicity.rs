//! An item is `pub` only if another room uses it.
//!
//! The check compares names: a name that another room uses for another item hides a `pub` item of the same name. A type
//! or a trait also counts as used if a `pub` item of its own room mentions it, because callers of a function handle its
//! types without naming them.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::words;
use super::violation::{File, Violation};

/// The crates whose rooms are told apart. What is named anywhere else is used by somebody else.
const CRATES: [&str; 2] = ["yurt-net/src/", "yurt-ebpf/src/"];

/// Every `pub` item that no other room uses.
pub(crate) fn violations(files: &[File]) -> Vec<Violation> {
    let mut named: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut exposed: BTreeSet<(&str, String)> = BTreeSet::new();
    let mut defined = Vec::new();
    for file in files {
        let room = room_of(&file.name);
        let all = words(&file.text);
        for definition in definitions(&all) {
            defined.push((file, room, definition));
        }
        exposed.extend(
            mentioned(&all)
                .into_iter()
                .map(|word| (room, word.to_owned())),
        );
        for (_, word) in all {
            named.entry(word).or_default().insert(room);
        }
    }
    let is_ours = |file: &File| CRATES.iter().any(|of| file.name.starts_with(of));
    let alone = defined.into_iter().filter(|(file, room, definition)| {
        let Definition { name, is_type, .. } = definition;
        let rooms = named.get(name);
        is_ours(file)
            && rooms.is_none_or(|rooms| rooms.iter().all(|other| other == room))
            && !(*is_type && exposed.contains(&(room, name.clone())))
    });
    alone
        .map(|(file, _, Definition { line, name, .. })| Violation {
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

/// An item that is `pub`.
struct Definition {
    line: usize,
    name: String,
    /// It is a type or a trait.
    is_type: bool,
}

/// The words that begin the definition of a type or a trait.
const TYPES: [&str; 5] = ["enum", "struct", "trait", "type", "union"];

/// The items that are `pub` without a restriction.
fn definitions(words: &[(usize, String)]) -> impl Iterator<Item = Definition> {
    let publics = words.iter().enumerate();
    let publics = publics.filter(|(_, (_, word))| word == "pub");
    publics.filter_map(|(at, _)| {
        let rest = &words[at + 1..];
        let kind = kind(rest)?;
        let is_const = kind > 0 && rest[kind - 1].1 == "const";
        let is_type = TYPES.contains(&&*rest[kind].1);
        let (line, name) = match &*rest[kind].1 {
            "fn" | "static" => rest.get(kind + 1)?,
            _ if is_type => rest.get(kind + 1)?,
            _ if is_const => &rest[kind],
            _ => return None,
        };
        Some(Definition {
            line: *line,
            name: name.clone(),
            is_type,
        })
    })
}

/// The types and traits that `pub` items and implementations of traits mention, beside their own names.
fn mentioned(words: &[(usize, String)]) -> Vec<&str> {
    let mut mentioned = Vec::new();
    for (at, (_, word)) in words.iter().enumerate() {
        let rest = &words[at + 1..];
        match &**word {
            "pub" => mentioned.extend(signature(rest)),
            // `impl Trait<Type> for Own` mentions a type; `impl Own` does not.
            "impl" => {
                let header = rest.iter().take_while(|(_, word)| word != "{");
                let header: Vec<&str> = header.map(|(_, word)| &**word).collect();
                let end = header.iter().position(|word| *word == "for");
                mentioned.extend(&header[..end.unwrap_or_default()]);
            }
            // An associated type, or an alias.
            "type" => {
                let alias = rest.iter().skip(1).take_while(|(_, word)| word != ";");
                mentioned.extend(alias.map(|(_, word)| &**word));
            }
            _ => {}
        }
    }
    mentioned
}

/// The words of an item or a field behind its `pub`, without its own name: up to its body or its end. Variants and the
/// functions of a trait are part of it.
fn signature(rest: &[(usize, String)]) -> impl Iterator<Item = &str> {
    let kind = kind(rest).unwrap_or_default();
    let word = |at: usize| rest.get(at).map_or("", |(_, word)| &**word);
    let (begin, ends): (usize, &[&str]) = match word(kind) {
        "(" | "mod" | "use" => (rest.len(), &[]),
        "enum" | "trait" => (kind + 2, &[]),
        _ => (kind + 1, &["{", ";", "=", ","]),
    };
    let mut depth = 0;
    let body = rest[begin.min(rest.len())..].iter().enumerate();
    let body = body.take_while(move |(at, (_, word))| {
        let is_arrow = *at > 0 && ["-", "="].contains(&&*rest[begin + at - 1].1);
        match &**word {
            _ if depth == 0 && ends.contains(&&**word) => return false,
            "(" | "[" | "{" | "<" => depth += 1,
            ")" | "]" | ">" if !is_arrow => depth -= 1,
            "}" => {
                depth -= 1;
                return depth > 0;
            }
            _ => {}
        }
        depth >= 0
    });
    let own = TYPES.contains(&word(kind)).then(|| word(kind + 1));
    body.map(|(_, (_, word))| &**word)
        .filter(move |said| Some(*said) != own)
}

/// Where the word is that says what kind of item is behind a `pub`.
fn kind(rest: &[(usize, String)]) -> Option<usize> {
    rest.iter()
        .position(|(_, word)| !IN_FRONT.contains(&&**word))
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
            "pub fn plan() {}\npub async fn later() {}\npub const MOST: u8 = 1;\npub(super) fn own() {}\n",
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
    fn a_type_is_pub_if_another_room_names_it_or_a_pub_item_of_its_own_room_mentions_it() {
        let alone = "pub struct Own(u8);\nimpl Own {}\nimpl Clone for Own {}\nfn f(own: Own) -> Own { own }\n\
                     pub(crate) fn g(own: &Own) {}\npub struct Other { own: Own }\npub enum Kind { A }\n\
                     pub trait Speak { fn speak(&self); }\n";
        let file = |text: &str| found(&[("yurt-net/src/plan/mod.rs", text)]);
        let told = |name: &str| format!("`{name}` is pub, and no other room names it");
        assert_eq!(file(alone), ["Own", "Other", "Kind", "Speak"].map(told));
        for mention in [
            "pub fn used(a: u8) -> Option<Own> {}",
            "pub async fn used(own: &Own) {}",
            "pub struct Used { pub map: BTreeMap<u8, Own>, other: u8 }",
            "pub enum Used { A { own: Own } }",
            "pub trait Used { fn used(&self) -> Own; }",
            "pub const USED: Own = 1;",
            "impl From<Own> for u8 {}",
            "impl Iterator for Used { type Item = Own; }",
        ] {
            let text = format!("pub struct Own;\n{mention}\n");
            let own = told("Own");
            assert!(!file(&text).contains(&own), "{mention}");
        }
        let named = ("yurt-net/src/agent/mod.rs", "use crate::plan::Own;");
        let own = ("yurt-net/src/plan/mod.rs", "pub struct Own;");
        assert_eq!(found(&[own, named]), [""; 0]);
    }

    #[test]
    fn what_is_in_no_room_is_not_looked_at() {
        assert_eq!(
            found(&[("xtask/src/shell.rs", "pub fn alone() {}")]),
            [""; 0]
        );
    }
}
