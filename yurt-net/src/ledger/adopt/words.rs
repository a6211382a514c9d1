//! The search for container IDs in the arguments, environment and cgroups of processes: one pass over the text, however
//! many IDs there are.

use std::collections::BTreeMap;

/// The container IDs to look for.
#[derive(Debug)]
pub struct Words<'a> {
    /// By the first run of letters and digits of an ID: the bytes before that run, and the ID.
    by_run: BTreeMap<&'a [u8], Vec<(usize, &'a str)>>,
    longest_run: usize,
}

impl<'a> Words<'a> {
    /// An ID without a letter or digit is never found.
    pub fn new(ids: impl IntoIterator<Item = &'a str>) -> Self {
        let mut by_run: BTreeMap<&[u8], Vec<_>> = BTreeMap::new();
        for id in ids {
            if let Some((before, run)) = runs(id.as_bytes()).next() {
                by_run.entry(run).or_default().push((before, id));
            }
        }
        Self {
            longest_run: by_run.keys().map(|run| run.len()).max().unwrap_or(0),
            by_run,
        }
    }

    /// The IDs that a text contains as words. A short ID may be a part of a longer one.
    pub fn named_in<'t>(&'t self, text: &'t [u8]) -> impl Iterator<Item = &'a str> + 't {
        let is_part = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        // Longer runs are skipped: a tenant may write a megabyte without a space.
        let known = runs(text).filter(|(_, run)| run.len() <= self.longest_run);
        known.flat_map(move |(at, run)| {
            let ids = self.by_run.get(run).into_iter().flatten();
            ids.filter_map(move |&(before, id)| {
                let start = at.checked_sub(before)?;
                let rest = text.get(start..)?.strip_prefix(id.as_bytes())?;
                let is_word = !is_part(text[..start].last()) && !is_part(rest.first());
                is_word.then_some(id)
            })
        })
    }
}

/// The longest runs of letters and digits, and where they begin.
fn runs(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    let parts = text.split(|byte| !byte.is_ascii_alphanumeric());
    let runs = parts.map(move |run| {
        let begin = at;
        at += run.len() + 1;
        (begin, run)
    });
    runs.filter(|(_, run)| !run.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition of a match, at the price of comparing each ID at each position.
    fn names(text: &str, id: &str) -> bool {
        let is_part = |character: Option<char>| {
            character.is_some_and(|character| character.is_ascii_alphanumeric())
        };
        text.match_indices(|_: char| true).any(|(at, _)| {
            text[at..].starts_with(id)
                && !is_part(text[..at].chars().next_back())
                && !is_part(text[at + id.len()..].chars().next())
        })
    }

    fn named<'a>(text: &str, ids: &'a [&'a str]) -> Vec<&'a str> {
        let words = Words::new(ids.iter().copied());
        let mut named: Vec<_> = words.named_in(text.as_bytes()).collect();
        named.sort_unstable();
        named.dedup();
        named
    }

    #[test]
    fn a_word_is_found_at_either_end_of_a_text_and_a_part_of_a_word_is_not() {
        for text in ["c1", "c1\0", "/c1", "crio-c1.scope", "xc1 c1"] {
            assert_eq!(named(text, &["c1"]), ["c1"], "{text}");
        }
        for text in ["", "c", "c12", "xc1", "C1"] {
            assert_eq!(named(text, &["c1"]), [""; 0], "{text}");
        }
        let both = ["web-1", "web-1.a"];
        assert_eq!(named("id=web-1.a", &both), both);
        assert_eq!(named("id=web-1.ab", &both), ["web-1"]);
        assert_eq!(named("--- _x", &["---", "_x"]), ["_x"]);
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_for_each_id_in_each_place_finds(
            text in "[ab._-]{0,24}",
            ids in prop::collection::btree_set("[ab._-]{0,3}[ab][ab._-]{0,2}", 0..8),
        ) {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let expected: Vec<&str> = ids.iter().copied().filter(|id| names(&text, id)).collect();
            prop_assert_eq!(named(&text, &ids), expected);
        }
    }
}
