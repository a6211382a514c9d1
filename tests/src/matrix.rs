//! The table of who answered whom, and what is wrong with it.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::lab::Tally;

const REFUSED: &str = "ECONNREFUSED";
const RED: &str = "\x1b[1;31m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// What a client's connects should lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Each is answered by a backend of the client's pool.
    Answers,
    /// Each is refused.
    Refusals,
}

/// Clients by row, backends by column, grouped by pool.
#[derive(Clone, Debug, Default)]
pub struct Matrix {
    pools: Vec<(String, Vec<String>)>,
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    client: String,
    pool: String,
    expected: Expected,
    tally: Tally,
}

impl Matrix {
    /// An empty table over these pools and their backends.
    pub fn new(pools: Vec<(String, Vec<String>)>) -> Self {
        Self {
            pools,
            rows: Vec::new(),
        }
    }

    /// Adds a client of a pool, with the results of its connects.
    pub fn row(&mut self, client: &str, pool: &str, expected: Expected, tally: Tally) {
        self.rows.push(Row {
            client: client.to_owned(),
            pool: pool.to_owned(),
            expected,
            tally,
        });
    }

    /// Everything in the table that should not be there, as text.
    pub fn faults(&self) -> Vec<String> {
        self.rows
            .iter()
            .flat_map(|row| {
                let own = self.backends_of(&row.pool);
                let tally = &row.tally;
                let foreign = tally.answers.iter().filter(move |(a, _)| !own.contains(a));
                let foreign = foreign.map(move |(answer, n)| {
                    format!("{} was answered {n} times by {answer}", row.client)
                });
                let refusals_wanted = row.expected == Expected::Refusals;
                let errors = tally.errors.iter();
                let errors = errors.filter(move |(e, _)| !refusals_wanted || *e != REFUSED);
                let errors = errors.map(move |(e, n)| format!("{} got {n} times {e}", row.client));
                let leaked = (refusals_wanted && tally.answered() > 0)
                    .then(|| format!("{} was answered where it should be refused", row.client));
                let silent = (tally.connects() == 0)
                    .then(|| format!("{} has not connected at all", row.client));
                foreign.chain(errors).chain(leaked).chain(silent)
            })
            .collect()
    }

    /// Connects of all rows.
    pub fn connects(&self) -> u64 {
        self.rows.iter().map(|row| row.tally.connects()).sum()
    }

    /// Answers from another pool than the client's.
    pub fn foreign(&self) -> u64 {
        self.rows
            .iter()
            .map(|row| {
                let own = self.backends_of(&row.pool);
                let answers = row.tally.answers.iter();
                answers
                    .filter(|(name, _)| !own.contains(name))
                    .map(|(_, count)| count)
                    .sum::<u64>()
            })
            .sum()
    }

    /// Connects that failed and should not have.
    pub fn failed(&self) -> u64 {
        self.rows
            .iter()
            .map(|row| match row.expected {
                Expected::Answers => row.tally.failed(),
                Expected::Refusals => row.tally.failed() - row.tally.error(REFUSED),
            })
            .sum()
    }

    /// Connects that were refused.
    pub fn refused(&self) -> u64 {
        self.rows.iter().map(|row| row.tally.error(REFUSED)).sum()
    }

    fn backends_of(&self, pool: &str) -> &[String] {
        self.pools
            .iter()
            .find(|(name, _)| name == pool)
            .map_or(&[], |(_, backends)| backends)
    }

    /// The table as text. A foreign cell is `·` if it is empty, and `!count` otherwise.
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| {
            if colour {
                format!("{code}{text}{RESET}")
            } else {
                text.to_owned()
            }
        };
        let known: BTreeSet<&str> = self
            .pools
            .iter()
            .flat_map(|(_, b)| b)
            .map(|b| &**b)
            .collect();
        let mut groups: Vec<(&str, Vec<&str>)> = self
            .pools
            .iter()
            .map(|(pool, backends)| (&**pool, backends.iter().map(|b| &**b).collect()))
            .collect();
        let strangers: BTreeSet<&str> = self
            .rows
            .iter()
            .flat_map(|row| row.tally.answers.keys())
            .map(|name| &**name)
            .filter(|name| !known.contains(name))
            .collect();
        if !strangers.is_empty() {
            groups.push(("elsewhere", strangers.into_iter().collect()));
        }
        let width = |name: &str| name.chars().count().max(4) + 2;
        let clients = self.rows.iter().map(|row| row.client.len());
        let first = clients.max().unwrap_or(0).max("client".len());

        let columns = |backends: &[&str]| backends.iter().map(|b| width(b)).sum::<usize>();
        // A title wider than its columns pushes them to the right.
        let pad = |pool: &str, backends: &[&str]| {
            " ".repeat(pool.chars().count().saturating_sub(columns(backends)))
        };

        let mut titles = format!("  {:first$}", "");
        let mut names = format!("  {:first$}", "client");
        for (pool, backends) in &groups {
            let span = columns(backends).max(pool.chars().count());
            let _ = write!(titles, " │{pool:^span$} ");
            let _ = write!(names, " │{}", pad(pool, backends));
            for backend in backends {
                let _ = write!(names, "{backend:>w$}", w = width(backend));
            }
            names += " ";
        }
        let mut text = format!("{}\n", paint(DIM, &format!("{titles} │")));
        let _ = writeln!(text, "{names} │  refused  failed");

        for row in &self.rows {
            let _ = write!(text, "  {:first$}", row.client);
            for (pool, backends) in &groups {
                let _ = write!(text, " │{}", pad(pool, backends));
                for backend in backends {
                    let count = row.tally.answers.get(*backend).copied().unwrap_or(0);
                    let w = width(backend);
                    let is_own = *pool == row.pool && row.expected == Expected::Answers;
                    text += &match (count, is_own) {
                        (0, _) => paint(DIM, &format!("{:>w$}", "·")),
                        (n, true) => paint(GREEN, &format!("{n:>w$}")),
                        (n, false) => paint(RED, &format!("{:>w$}", format!("!{n}"))),
                    };
                }
                text += " ";
            }
            let refused = row.tally.error(REFUSED);
            let others = row.tally.failed() - refused;
            let refused_is_fine = row.expected == Expected::Refusals;
            text += " │";
            for (count, w, is_fine) in [(refused, 9, refused_is_fine), (others, 8, false)] {
                text += &match (count, is_fine) {
                    (0, _) => paint(DIM, &format!("{:>w$}", "·")),
                    (n, true) => paint(GREEN, &format!("{n:>w$}")),
                    (n, false) => paint(RED, &format!("{:>w$}", format!("!{n}"))),
                };
            }
            text += "\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(answers: &[(&str, u64)], errors: &[(&str, u64)]) -> Tally {
        let owned =
            |list: &[(&str, u64)]| list.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect();
        Tally {
            answers: owned(answers),
            errors: owned(errors),
            ..Tally::default()
        }
    }

    fn pools() -> Matrix {
        Matrix::new(vec![
            (
                "hangzhou".to_owned(),
                vec!["a1-1".to_owned(), "a1-2".to_owned()],
            ),
            ("beijing".to_owned(), vec!["b1-1".to_owned()]),
        ])
    }

    #[test]
    fn a_clean_table_is_printed_plainly_and_has_no_faults() {
        let mut matrix = pools();
        let own = tally(&[("a1-1", 260), ("a1-2", 240)], &[]);
        matrix.row("edge-a1", "hangzhou", Expected::Answers, own);
        let refused = tally(&[], &[("ECONNREFUSED", 500)]);
        matrix.row("edge-b1", "beijing", Expected::Refusals, refused);
        let expected = "\
\x20         │  hangzhou    │beijing  │
  client  │  a1-1  a1-2  │   b1-1  │  refused  failed
  edge-a1 │   260   240  │      ·  │        ·       ·
  edge-b1 │     ·     ·  │      ·  │      500       ·
";
        assert_eq!(matrix.render(false), expected);
        assert_eq!(matrix.faults(), [""; 0]);
        assert_eq!((matrix.connects(), matrix.foreign()), (1000, 0));
        assert_eq!(matrix.failed(), 0);
        assert_eq!(matrix.refused(), 500);
    }

    #[test]
    fn a_foreign_answer_is_marked_and_named() {
        let mut matrix = pools();
        let leak = tally(&[("a1-1", 499), ("b1-1", 1)], &[]);
        matrix.row("edge-a1", "hangzhou", Expected::Answers, leak);
        assert_eq!(matrix.faults(), ["edge-a1 was answered 1 times by b1-1"]);
        assert!(
            matrix.render(false).contains("    !1  │"),
            "{}",
            matrix.render(false)
        );
        assert_eq!(matrix.foreign(), 1);
    }

    #[test]
    fn an_answer_where_a_refusal_is_due_is_a_fault_and_so_is_silence() {
        let mut matrix = pools();
        matrix.row(
            "edge-b1",
            "beijing",
            Expected::Refusals,
            tally(&[("b1-1", 1)], &[("EPERM", 2)]),
        );
        matrix.row("edge-b2", "beijing", Expected::Answers, tally(&[], &[]));
        assert_eq!(
            matrix.faults(),
            [
                "edge-b1 got 2 times EPERM",
                "edge-b1 was answered where it should be refused",
                "edge-b2 has not connected at all",
            ]
        );
        assert_eq!(matrix.failed(), 2);
    }

    #[test]
    fn a_stranger_gets_a_column_of_its_own() {
        let mut matrix = pools();
        matrix.row(
            "edge-b1",
            "beijing",
            Expected::Answers,
            tally(&[("who", 3)], &[]),
        );
        let text = matrix.render(false);
        assert!(text.contains("elsewhere") && text.contains("!3"), "{text}");
    }
}
