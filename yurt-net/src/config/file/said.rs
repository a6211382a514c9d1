//! What a file says: settings, and what is to be said of its places. Pure.

use std::fmt;

/// A flag that a file sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Its long name.
    pub(crate) flag: String,
    /// As on the command line; of one that takes no value, `true` or `false`.
    pub(crate) value: String,
    /// Where the file says so, from 1; 0: a flag of kube-proxy does.
    pub(crate) line: usize,
    /// The field that says so, or the flag.
    pub(crate) field: String,
}

/// What is to be said of a place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    /// From 1; 0: the whole file, or a flag.
    pub(crate) line: usize,
    /// "" where it is about no field.
    pub(crate) field: String,
    pub(crate) what: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line != 0 {
            write!(f, "{}: ", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.what)
    }
}

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// What it sets. Where both documents set a flag, only what ours says is here.
    pub(crate) settings: Vec<Setting>,
    /// Why it cannot be taken; all of them.
    pub(crate) problems: Vec<Remark>,
    /// What it says that has no effect.
    pub(crate) warnings: Vec<Remark>,
}

impl Decoded {
    pub(super) fn ignore(&mut self, line: usize, field: &str, why: &str) {
        self.warnings.push(Remark {
            line,
            field: field.to_owned(),
            what: format!("ignored: {why}"),
        });
    }

    /// A field that nobody knows; it may be a known one in other letters.
    pub(super) fn unknown<'a>(
        &mut self,
        line: usize,
        field: &str,
        mut known: impl Iterator<Item = &'a str>,
    ) {
        match known.find(|known| known.eq_ignore_ascii_case(field)) {
            Some(known) => self.ignore(line, field, &format!("the field is written {known}")),
            None => self.ignore(line, field, "there is no such field"),
        }
    }
}
