//! The direction of imports: a room knows only the floors below it, and imports form no circle.
//!
//! A room is a module of the crate. A floor is several rooms, which may know each other in one direction. A file
//! imports every path in it that leads to another file of the crate, in declarations and in code; `mod x;` alone does
//! not count. The part of a path after the modules (a type, a function) is the imported name.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::{Mention, mentions};
use super::violation::{File, Violation};

/// The crate whose rooms are on floors.
pub(crate) struct House {
    /// Where its files are, as `yurt-net/src/`.
    pub(crate) root: &'static str,
    /// How its program calls the library.
    pub(crate) name: &'static str,
    /// From the ground up: a floor, and the rooms on it.
    pub(crate) floors: &'static [(&'static str, &'static [&'static str])],
    /// Imports that still break a rule.
    pub(crate) breaches: &'static [Breaches],
}

/// Imports that are tolerated until something ends them.
pub(crate) struct Breaches {
    /// The change that will end them, or the reason why they stay.
    pub(crate) until: &'static str,
    /// From one file to another, by paths like `policy/edge/mod.rs` below the crate's root.
    pub(crate) imports: &'static [(&'static str, &'static str)],
}

/// An import of one file by another.
#[derive(Clone, Debug)]
struct Import<'a> {
    from: &'a str,
    to: &'a str,
    /// The line of its first use, from 1.
    line: usize,
    /// The name that is imported.
    name: String,
}

type Edge<'a> = (&'a str, &'a str);

impl House {
    /// The imports that break a rule. Files of other crates and test modules are left out.
    pub(crate) fn violations(&self, files: &[File]) -> Vec<Violation> {
        let of_house = files.iter().filter_map(|file| {
            let name = file.name.strip_prefix(self.root)?;
            Some((name, file))
        });
        let mut files: BTreeMap<&str, &File> = of_house.collect();
        let tests: Vec<Vec<&str>> = files
            .iter()
            .flat_map(|(name, file)| test_modules(name, &file.text))
            .collect();
        files.retain(|name, _| {
            let of = module(name).unwrap_or_default();
            !tests.iter().any(|test| of.starts_with(test))
        });
        let modules: BTreeMap<Vec<&str>, &str> = files
            .keys()
            .filter_map(|&name| Some((module(name)?, name)))
            .collect();
        let mut imports: BTreeMap<Edge<'_>, Import<'_>> = BTreeMap::new();
        for (name, file) in &files {
            for import in self.imports(name, &file.text, &modules) {
                imports.entry((import.from, import.to)).or_insert(import);
            }
        }
        let mut found = self.placing(&files);
        found.extend(self.of_the_root(&files));
        let is_let_through = |edge: &Edge<'_>| self.listed().any(|(_, listed)| listed == *edge);
        let judged: Vec<&Import<'_>> = imports
            .iter()
            .filter(|(edge, _)| !is_let_through(edge))
            .map(|(_, import)| import)
            .collect();
        found.extend(judged.iter().filter_map(|import| self.upward(import)));
        found.extend(self.in_circles(&judged));
        found.extend(self.stale(&imports));
        found
    }

    /// The floor that a file is on, by its path from the workspace root.
    pub(crate) fn floor_of(&self, file: &str) -> Option<&'static str> {
        let (level, _) = self.room(file.strip_prefix(self.root)?)?;
        self.floors.get(level).map(|floor| floor.0)
    }

    /// The room of a file: the longest room name that is the file, or a directory of it.
    fn room(&self, file: &str) -> Option<(usize, &'static str)> {
        let rooms = self
            .floors
            .iter()
            .enumerate()
            .flat_map(|(level, (_, rooms))| rooms.iter().map(move |room| (level, *room)));
        let is_in = |room: &str| {
            let rest = file.strip_prefix(room);
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        rooms
            .filter(|(_, room)| is_in(room))
            .max_by_key(|(_, room)| room.len())
    }

    /// Files without a floor, and rooms without a file.
    fn placing(&self, files: &BTreeMap<&str, &File>) -> Vec<Violation> {
        let homeless = files.keys().filter(|file| self.room(file).is_none());
        let homeless = homeless.map(|file| Violation {
            place: format!("{}{file}:1", self.root),
            rule: "a file on no floor".to_owned(),
            remedy: "add its room to the table of floors in xtask/src/check/tables.rs".to_owned(),
        });
        let rooms = self.floors.iter().flat_map(|(_, rooms)| *rooms);
        let empty = rooms.filter(|room| {
            !files
                .keys()
                .any(|file| self.room(file).is_some_and(|(_, of)| of == **room))
        });
        let empty = empty.map(|room| Violation {
            place: format!("{}{room}", self.root),
            rule: "a room without a file".to_owned(),
            remedy: "delete it from the table of floors in xtask/src/check/tables.rs".to_owned(),
        });
        homeless.chain(empty).collect()
    }

    /// Names of the crate's root, which `crate::name` leads to: nobody sees what room they are of.
    fn of_the_root(&self, files: &BTreeMap<&str, &File>) -> Vec<Violation> {
        let rooms: BTreeSet<&str> = files
            .keys()
            .filter_map(|file| module(file)?.first().copied())
            .collect();
        let mut found = Vec::new();
        for (file, text) in files.iter().map(|(file, of)| (file, &of.text)) {
            for Mention { line, segments } in mentions(text) {
                let [first, name, ..] = &segments[..] else {
                    continue;
                };
                if first == "crate" && !rooms.contains(&**name) {
                    found.push(Violation {
                        place: format!("{}{file}:{line}", self.root),
                        rule: format!("imports `{name}` of the crate's root"),
                        remedy: "name the room that it is of".to_owned(),
                    });
                }
            }
        }
        found
    }

    /// The import, if it goes to a higher floor.
    fn upward(&self, import: &Import<'_>) -> Option<Violation> {
        let [(from, _), (to, _)] = [self.room(import.from)?, self.room(import.to)?];
        if to <= from {
            return None;
        }
        let [from, to] = [from, to].map(|level| self.floors.get(level).map_or("", |floor| floor.0));
        Some(self.violation(
            import,
            &format!("from floor `{from}` up to floor `{to}`"),
            "take the value as a parameter, or move what is imported below both",
        ))
    }

    /// Imports that are part of a circle of files or, on one floor, of rooms.
    fn in_circles(&self, imports: &[&Import<'_>]) -> Vec<Violation> {
        let files = circles(imports.iter().map(|import| (import.from, import.to)));
        let rooms = circles(
            imports
                .iter()
                .filter_map(|import| self.between_rooms(import)),
        );
        let mut found = Vec::new();
        for import in imports {
            if let Some(circle) = circle_of(&files, (import.from, import.to)) {
                found.push(self.violation(
                    import,
                    &format!("in a circle of files: {}", circle.join(", ")),
                    "move what both need to a file below both",
                ));
            } else if let Some(circle) = self
                .between_rooms(import)
                .and_then(|edge| circle_of(&rooms, edge))
            {
                found.push(self.violation(
                    import,
                    &format!("in a circle of rooms: {}", circle.join(", ")),
                    "move what both need to a room below both",
                ));
            }
        }
        found
    }

    /// The rooms of both files, if they are two rooms of one floor.
    fn between_rooms(&self, import: &Import<'_>) -> Option<Edge<'static>> {
        let [from, to] = [self.room(import.from)?, self.room(import.to)?];
        (from.0 == to.0 && from.1 != to.1).then_some((from.1, to.1))
    }

    /// Listed breaches that no longer happen.
    fn stale(&self, imports: &BTreeMap<Edge<'_>, Import<'_>>) -> Vec<Violation> {
        let all: Vec<&Import<'_>> = imports.values().collect();
        let files = circles(all.iter().map(|import| (import.from, import.to)));
        let rooms = circles(all.iter().filter_map(|import| self.between_rooms(import)));
        let breaks = |import: &Import<'_>| {
            self.upward(import).is_some()
                || circle_of(&files, (import.from, import.to)).is_some()
                || self
                    .between_rooms(import)
                    .is_some_and(|edge| circle_of(&rooms, edge).is_some())
        };
        let stale = self
            .listed()
            .filter(|(_, edge)| !imports.get(edge).is_some_and(breaks));
        stale
            .map(|(until, (from, to))| Violation {
                place: format!("{}{from}", self.root),
                rule: format!(
                    "listed as an exception for its import of {to} ({until}), and breaks no rule"
                ),
                remedy: "delete it from xtask/src/check/breaches.rs".to_owned(),
            })
            .collect()
    }

    fn listed(&self) -> impl Iterator<Item = (&'static str, Edge<'static>)> {
        self.breaches.iter().flat_map(|breaches| {
            let imports = breaches.imports.iter();
            imports.map(|&edge| (breaches.until, edge))
        })
    }

    fn violation(&self, import: &Import<'_>, rule: &str, remedy: &str) -> Violation {
        let Import {
            from,
            to,
            line,
            name,
        } = import;
        Violation {
            place: format!("{}{from}:{line}", self.root),
            rule: format!("imports `{name}` of {}{to}, {rule}", self.root),
            remedy: remedy.to_owned(),
        }
    }

    /// The files that a file imports, each with the line of the first import.
    fn imports<'a>(
        &self,
        file: &'a str,
        text: &str,
        modules: &BTreeMap<Vec<&str>, &'a str>,
    ) -> Vec<Import<'a>> {
        let own = module(file).unwrap_or_default();
        let mentions = mentions(text);
        let mut found = Vec::new();
        // Modules that the file calls by their last name.
        let mut known_as: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for mention in &mentions {
            let segments: Vec<&str> = mention.segments.iter().map(String::as_str).collect();
            let absolute = self.absolute(&own, &segments, modules);
            let renamed = || {
                let (first, rest) = segments.split_first()?;
                Some([&known_as.get(first)?[..], rest].concat())
            };
            let Some(path) = absolute.or_else(renamed) else {
                continue;
            };
            if let Some(last) = path.last().filter(|_| modules.contains_key(&path)) {
                known_as.insert(last, path.clone());
            }
            let known = (1..=path.len())
                .rev()
                .find_map(|length| Some((length, *modules.get(&path[..length])?)));
            let Some((length, to)) = known.filter(|(_, to)| *to != file) else {
                continue;
            };
            let name = path.get(length).or_else(|| path.last());
            found.push(Import {
                from: file,
                to,
                line: mention.line,
                name: (*name.unwrap_or(&"")).to_owned(),
            });
        }
        found
    }

    /// The path from the crate's root, if it is a path of this crate.
    fn absolute<'a>(
        &self,
        own: &[&'a str],
        segments: &[&'a str],
        modules: &BTreeMap<Vec<&str>, &str>,
    ) -> Option<Vec<&'a str>> {
        let (first, mut rest) = segments.split_first()?;
        let mut path = match *first {
            "crate" => Vec::new(),
            name if name == self.name => Vec::new(),
            "self" | "super" => own.to_vec(),
            name => {
                let child = [own, &[name]].concat();
                return modules
                    .contains_key(&child)
                    .then(|| [&child, rest].concat());
            }
        };
        if *first == "super" {
            path.pop();
            while let Some((&"super", after)) = rest.split_first() {
                path.pop();
                rest = after;
            }
        }
        path.extend(rest);
        Some(path)
    }
}

/// The path of a file's module; `None` for the crate's root files.
fn module(file: &str) -> Option<Vec<&str>> {
    let path = file.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    (!["lib", "main"].contains(&path)).then(|| path.split('/').collect())
}

/// The modules that a file declares for its tests only.
fn test_modules<'a>(file: &'a str, text: &'a str) -> Vec<Vec<&'a str>> {
    let own = module(file).unwrap_or_default();
    let lines = text.lines().zip(text.lines().skip(1));
    let declared = lines.filter(|(attribute, _)| attribute.trim() == "#[cfg(test)]");
    let names = declared.filter_map(|(_, line)| {
        let (_, name) = line.strip_suffix(';')?.split_once("mod ")?;
        Some(name)
    });
    names.map(|name| [&own[..], &[name]].concat()).collect()
}

/// Sets of two or more places, each of which can be reached from each other one in the set.
fn circles<'a>(edges: impl Iterator<Item = Edge<'a>>) -> Vec<BTreeSet<&'a str>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().insert(to);
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> = next
        .keys()
        .map(|&start| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(at) = open.pop() {
                let news = next.get(at).into_iter().flatten();
                open.extend(news.filter(|to| seen.insert(**to)));
            }
            (start, seen)
        })
        .collect();
    let mut found: Vec<BTreeSet<&str>> = Vec::new();
    for (start, seen) in &reached {
        if !seen.contains(start) || found.iter().any(|circle| circle.contains(start)) {
            continue;
        }
        let reaches_back = |to: &&&str| reached.get(**to).is_some_and(|of| of.contains(start));
        found.push(seen.iter().filter(reaches_back).copied().collect());
    }
    found
}

/// The circle that contains both ends.
fn circle_of<'a>(circles: &[BTreeSet<&'a str>], (from, to): Edge<'_>) -> Option<Vec<&'a str>> {
    let circle = circles
        .iter()
        .find(|circle| circle.contains(from) && circle.contains(to))?;
    Some(circle.iter().copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUSE: House = House {
        root: "app/src/",
        name: "app",
        floors: &[
            ("ground", &["words"]),
            ("first", &["left", "right"]),
            ("roof", &["main", "lib"]),
        ],
        breaches: &[],
    };

    /// Violations of these files, and of an empty one for each room that has none.
    fn found_by(house: &House, given: &[(&str, &str)]) -> Vec<String> {
        let rooms = house.floors.iter().flat_map(|(_, rooms)| *rooms);
        let rooms: Vec<String> = rooms.map(|room| format!("{room}.rs")).collect();
        let rooms = rooms.iter().map(|room| (room.as_str(), ""));
        let all: BTreeMap<&str, &str> = rooms.chain(given.iter().copied()).collect();
        let files: Vec<File> = all
            .into_iter()
            .map(|(name, text)| File {
                name: format!("app/src/{name}"),
                text: text.to_owned(),
            })
            .collect();
        let found = house.violations(&files);
        found.iter().map(Violation::to_string).collect()
    }

    fn found(given: &[(&str, &str)]) -> Vec<String> {
        found_by(&HOUSE, given)
    }

    #[track_caller]
    fn assert_one(found: &[String], parts: &[&str]) {
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            parts.iter().all(|part| found[0].contains(part)),
            "{found:?}"
        );
    }

    #[test]
    fn an_import_of_a_higher_floor_is_told_with_both_paths_and_the_name() {
        let upward = found(&[("words.rs", "use std::fmt;\nuse crate::left::Left;\n")]);
        assert_one(
            &upward,
            &[
                "app/src/words.rs:2: imports `Left` of app/src/left.rs, from floor `ground` up to floor `first`",
            ],
        );
        assert_eq!(found(&[("left.rs", "use crate::words::Word;\n")]), [""; 0]);
        assert_eq!(
            found(&[("main.rs", "fn f() { app::left::run() }\n")]),
            [""; 0]
        );
    }

    #[test]
    fn every_way_to_write_a_path_is_an_import() {
        for text in [
            "use crate::left::Left;\n",
            "use super::left::Left;\n",
            "use crate::{left::Left, words};\n",
            "fn f() -> crate::left::Left { todo() }\n",
            "#[serde(with = \"crate::left\")]\nstruct S;\n",
            "pub use super::left::*;\n",
        ] {
            assert_eq!(found(&[("words.rs", text)]).len(), 1, "{text}");
        }
        for text in [
            "//! See crate::left::Left.\n",
            "#[cfg(test)]\nmod tests {\n    use crate::left::Left;\n}\n",
            "use std::left::Left;\n",
        ] {
            assert_eq!(found(&[("words.rs", text)]), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_module_that_is_called_by_its_last_name_is_imported_by_what_is_said_of_it() {
        let circle = [
            ("left/mod.rs", "mod a;\nmod b;\n"),
            ("left/a/mod.rs", "pub mod c;\n"),
            ("left/a/c.rs", "use crate::left::b::B;\n"),
            ("left/b.rs", "use crate::left::a;\nfn f() { a::c::g() }\n"),
        ];
        let found = found(&circle);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("left/a/c.rs, left/b.rs"), "{found:?}");
    }

    #[test]
    fn a_name_of_the_root_hides_its_room() {
        for text in [
            "use crate::Left;\n",
            "fn f() { crate::left!() }\n",
            "use crate::*;\n",
        ] {
            let text = text.replace("left!", "known!");
            let found = found(&[("words.rs", &text)]);
            assert_one(&found, &["of the crate's root"]);
        }
    }

    #[test]
    fn modules_of_tests_may_import_what_they_like() {
        let tests = [
            ("words.rs", "#[cfg(test)]\nmod made_up;\n"),
            ("words/made_up.rs", "use crate::left::Left;\n"),
            ("words/made_up/more.rs", "use crate::left::Left;\n"),
        ];
        assert_eq!(found(&tests), [""; 0]);
    }

    #[test]
    fn rooms_of_one_floor_may_know_each_other_in_one_direction() {
        let one_way = [("left.rs", "use crate::right::Right;\n")];
        assert_eq!(found(&one_way), [""; 0]);
        let circle = [
            ("left/mod.rs", "mod a;\nmod b;\n"),
            ("left/a.rs", "use crate::right::Right;\n"),
            ("left/b.rs", ""),
            ("right.rs", "use crate::left::b::B;\n"),
        ];
        let found = found(&circle);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found
                .iter()
                .all(|one| one.contains("in a circle of rooms: left, right")),
            "{found:?}"
        );
    }

    #[test]
    fn files_in_a_circle_are_told_parents_and_children_too() {
        let circle = [
            (
                "left/mod.rs",
                "mod a;\nuse self::a::A;\npub struct Left(A);\n",
            ),
            ("left/a.rs", "use super::Left;\npub struct A;\n"),
        ];
        let parent = found(&circle);
        assert_eq!(parent.len(), 2, "{parent:?}");
        assert!(
            parent[0].contains("in a circle of files: left/a.rs, left/mod.rs"),
            "{parent:?}"
        );
        // A declaration alone is no import.
        let declared = [
            ("left/mod.rs", "mod a;\npub struct Left;\n"),
            ("left/a.rs", "use super::Left;\n"),
        ];
        assert_eq!(found(&declared), [""; 0]);
        let through_three = [
            ("left/mod.rs", "mod a;\nmod b;\nmod c;\n"),
            ("left/a.rs", "use super::b::B;\n"),
            ("left/b.rs", "use super::c::C;\n"),
            ("left/c.rs", "use super::a::A;\n"),
        ];
        assert_eq!(found(&through_three).len(), 3);
    }

    #[test]
    fn a_listed_breach_is_let_through_and_must_go_when_it_is_none() {
        const LISTED: House = House {
            breaches: &[Breaches {
                until: "left is split",
                imports: &[("words.rs", "left.rs")],
            }],
            ..HOUSE
        };
        let upward = [("words.rs", "use crate::left::Left;\n")];
        assert_eq!(found_by(&LISTED, &upward), [""; 0]);
        assert_one(
            &found_by(&LISTED, &[]),
            &["app/src/words.rs", "left.rs (left is split)", "delete it"],
        );
        // It covers no other file.
        let other = [("words.rs", "use crate::{left::Left, right::Right};\n")];
        assert_one(&found_by(&LISTED, &other), &["`Right` of app/src/right.rs"]);
    }

    #[test]
    fn every_file_has_a_floor_and_every_room_a_file() {
        assert_one(
            &found(&[("attic.rs", "")]),
            &["app/src/attic.rs:1: a file on no floor"],
        );
        let gone = House {
            floors: &[("ground", &["words", "left"])],
            ..HOUSE
        };
        let files = [File {
            name: "app/src/words/mod.rs".to_owned(),
            text: String::new(),
        }];
        let found: Vec<String> = gone
            .violations(&files)
            .iter()
            .map(Violation::to_string)
            .collect();
        assert_one(&found, &["app/src/left: a room without a file"]);
    }
}
