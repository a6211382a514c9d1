//! How many lines of the log others may cause: a log is on flash, and an object that changes between right and wrong
//! all the time would fill it.
//!
//! Pure: the time goes in. What is left out is counted, and `status` shows how things are at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::text::{in_turns, is_of_tenants};

const MINUTE: Duration = Duration::from_secs(60);
/// Lines in a minute, all together.
const MOST: usize = 30;
/// Lines in a minute that one namespace causes.
const MOST_OF_ONE: usize = 10;
/// Lines in a minute that tenants leave to the node itself and to the cluster's own namespaces. Otherwise a tenant with
/// three namespaces could take all lines.
const KEPT: usize = 10;

/// The lines of one kind that were written in this minute.
#[derive(Debug, Default)]
pub(super) struct Lines {
    began: Option<Instant>,
    /// The counts, by the namespace that causes the lines.
    causes: BTreeMap<String, usize>,
    /// Subjects of these lines: none gets a second line in the same minute.
    said: BTreeSet<String>,
    /// How many of these lines tenants have caused.
    of_tenants: usize,
    left_out: usize,
    has_counted: bool,
}

/// The lines to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admitted<'a, T> {
    pub(super) lines: Vec<&'a T>,
    /// How many were left out, now and since this was last reported.
    pub(super) left_out: Option<usize>,
}

/// Whether one line is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct One {
    pub(super) is_admitted: bool,
    /// See [`Admitted::left_out`].
    pub(super) left_out: Option<usize>,
}

/// The namespace of something that is called `namespace/name`.
pub(super) fn namespace(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

impl Lines {
    /// See [`Self::admit`].
    pub(super) fn admit_one(&mut self, now: Instant, cause: &str, what: &str) -> One {
        let line = [(cause, what)];
        let of = |(_, what): &(&str, &str)| (*what).to_owned();
        let Admitted { lines, left_out } = self.admit(now, &line, |(cause, _)| cause, of);
        One {
            is_admitted: !lines.is_empty(),
            left_out,
        }
    }

    /// Which of these lines are written, and how many were left out: that count is reported when it begins, then once a
    /// minute. Call it from time to time without lines, so that the last count is reported. `cause`: the namespace that
    /// causes a line; `what`: its subject.
    pub(super) fn admit<'a, T>(
        &mut self,
        now: Instant,
        all: &'a [T],
        cause: impl Fn(&T) -> &str,
        what: impl Fn(&T) -> String,
    ) -> Admitted<'a, T> {
        let is_over = |began: Instant| now.saturating_duration_since(began) >= MINUTE;
        if self.began.is_none_or(is_over) {
            let left_out = self.left_out;
            *self = Self {
                began: Some(now),
                left_out,
                ..Self::default()
            };
        }
        let mut causes = self.causes.clone();
        let mut fit = Vec::new();
        for line in all {
            let count = causes.get(cause(line)).copied().unwrap_or_default();
            if count < MOST_OF_ONE && !self.said.contains(&what(line)) {
                causes.insert(cause(line).to_owned(), count + 1);
                fit.push(line);
            }
        }
        let (kept, tenants): (Vec<&T>, Vec<&T>) = fit
            .into_iter()
            .partition(|line| !is_of_tenants(cause(line)));
        let room = MOST.saturating_sub(self.said.len());
        let kept = in_turns(&kept, room, |line| cause(line).to_owned());
        let room = (MOST - KEPT)
            .saturating_sub(self.of_tenants)
            .min(room - kept.len());
        let tenants = in_turns(&tenants, room, |line| cause(line).to_owned());
        self.of_tenants += tenants.len();
        let lines: Vec<&T> = kept.into_iter().chain(tenants).copied().collect();
        for line in &lines {
            *self.causes.entry(cause(line).to_owned()).or_default() += 1;
            self.said.insert(what(line));
        }
        self.left_out += all.len() - lines.len();
        let is_to_count = self.left_out > 0 && !self.has_counted;
        self.has_counted |= is_to_count;
        Admitted {
            lines,
            left_out: is_to_count.then(|| std::mem::take(&mut self.left_out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Namespace and name.
    type Object = (&'static str, usize);

    fn admit<'a>(lines: &mut Lines, now: Instant, all: &'a [Object]) -> Admitted<'a, Object> {
        lines.admit(now, all, |object| object.0, |object| format!("{object:?}"))
    }

    fn objects(namespace: &'static str, count: usize) -> Vec<Object> {
        (0..count).map(|name| (namespace, name)).collect()
    }

    #[test]
    fn an_object_that_is_right_and_wrong_in_turns_costs_two_lines_a_minute() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let mut written = 0;
        let mut counted = 0;
        // Twenty times a second, for an hour.
        for n in 0..72_000 {
            let now = start + Duration::from_millis(50) * n;
            let admitted = admit(&mut lines, now, &[("tenant", 1)]);
            written += admitted.lines.len() + usize::from(admitted.left_out.is_some());
            counted += admitted.lines.len() + admitted.left_out.unwrap_or_default();
        }
        assert_eq!(written, 120);
        let rest = admit(&mut lines, start + 2 * Duration::from_secs(3600), &[]);
        counted += rest.left_out.unwrap();
        assert_eq!(counted, 72_000);
    }

    #[test]
    fn whoever_causes_thousands_of_lines_leaves_room_for_others_and_has_it_again_in_a_minute() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let many = objects("tenant", 5000);
        let first = admit(&mut lines, start, &many);
        assert_eq!((first.lines.len(), first.left_out), (10, Some(4990)));
        let later = start + Duration::from_secs(30);
        let same = admit(&mut lines, later, &many);
        assert_eq!((same.lines.len(), same.left_out), (0, None));
        let other = admit(&mut lines, later, &[("victim", 1)]);
        assert_eq!((other.lines.len(), other.left_out), (1, None));
        let next = admit(&mut lines, start + MINUTE, &many);
        assert_eq!((next.lines.len(), next.left_out), (10, Some(9990)));
    }

    #[test]
    fn many_together_cause_no_more_than_so_many_lines_each_in_its_turn() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let mut all = objects("a", 100);
        all.extend(objects("b", 100));
        let names: Vec<String> = (0..100).map(|n| format!("n{n}")).collect();
        let admitted = admit(&mut lines, start, &all);
        assert_eq!(admitted.lines.len(), 20);
        let more = lines.admit(start, &names, |name| name, Clone::clone);
        assert_eq!(more.lines.len(), MOST - KEPT - 20);
        assert!(!lines.admit_one(start, "z", "z").is_admitted);
    }

    #[test]
    fn a_tenant_of_many_namespaces_leaves_lines_to_the_cluster_and_the_node() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let mut all: Vec<Object> = ["a", "b", "c", "d"]
            .iter()
            .flat_map(|n| objects(n, 100))
            .collect();
        let first = admit(&mut lines, start, &all);
        assert_eq!(first.lines.len(), MOST - KEPT);
        all.extend(objects("kube-system", 4));
        let second = admit(&mut lines, start, &all);
        let of: BTreeSet<&str> = second.lines.iter().map(|line| line.0).collect();
        assert_eq!(
            (second.lines.len(), of),
            (4, BTreeSet::from(["kube-system"]))
        );
        assert!(lines.admit_one(start, "", "the node's own").is_admitted);
        // And these do not fill a log either.
        assert_eq!(
            admit(&mut lines, start, &objects("default", 100))
                .lines
                .len(),
            5
        );
        assert!(!lines.admit_one(start, "", "one more").is_admitted);
    }
}
