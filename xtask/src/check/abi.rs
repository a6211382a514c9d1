//! The ABI document agrees with the code.
//!
//! The layout of a map is a contract with pins of earlier agents. It is compared as text, so that a change cannot slip
//! into a commit by mistake.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::shell::{Line, root, say};

const DOCUMENT: &str = "docs/map-abi.md";
const OPENING: &str = "```text\n";
const CLOSING: &str = "```\n";
/// The document before it is written for the first time.
const BLANK: &str = "# The maps' layout\n\n\
    Every type that is in a map, with the offset and the size in bytes of each field. Written by\n\
    `cargo xtask check --bless`; `cargo xtask check` compares it with the code.\n\n\
    ```text\n```\n";

/// Compares the document with the code, or rewrites it.
pub(crate) fn check(bless: bool) -> Result<()> {
    let line = Line::new("cargo run --quiet -p xtask --example map-abi");
    say(format_args!("$ {line}"));
    let layout = line.output()?;
    let path = root().join(DOCUMENT);
    if bless {
        let document = fs::read_to_string(&path).unwrap_or_else(|_| BLANK.to_owned());
        fs::write(&path, blessed(&document, &layout)?)
            .with_context(|| format!("cannot write {DOCUMENT}"))?;
        say(format_args!("check: wrote {DOCUMENT}"));
        return Ok(());
    }
    let remedy = "when the change of layout is meant, raise the ABI's version, say so in \
                  CHANGELOG.md, and run `cargo xtask check --bless`";
    let document = fs::read_to_string(&path).with_context(|| {
        format!("cannot read {DOCUMENT}; `cargo xtask check --bless` writes it")
    })?;
    if let Some(difference) = difference(&document, &layout)? {
        bail!("{DOCUMENT}:{difference}; {remedy}");
    }
    say(format_args!("check: {DOCUMENT} agrees with the code"));
    Ok(())
}

/// The document in three parts: before, inside and after its block.
fn split(document: &str) -> Result<(&str, &str, &str)> {
    let split = || {
        let inside = document.find(OPENING)? + OPENING.len();
        let end = inside + document[inside..].find(CLOSING)?;
        Some((
            &document[..inside],
            &document[inside..end],
            &document[end..],
        ))
    };
    split().with_context(|| format!("{DOCUMENT} has no ```text block"))
}

fn blessed(document: &str, layout: &str) -> Result<String> {
    let (before, _, after) = split(document)?;
    Ok(format!("{before}{layout}{after}"))
}

/// The first difference, with its line in the document.
fn difference(document: &str, layout: &str) -> Result<Option<String>> {
    let (before, written, _) = split(document)?;
    if written == layout {
        return Ok(None);
    }
    let (mut written, mut actual) = (written.lines(), layout.lines());
    let mut line = before.lines().count();
    loop {
        line += 1;
        let (written, actual) = (written.next(), actual.next());
        if written != actual || written.is_none() {
            let [written, actual] = [written, actual].map(|text| text.unwrap_or("nothing").trim());
            return Ok(Some(format!(
                "{line}: says `{written}`, the code says `{actual}`"
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: &str = "ABI 1\n\nKey: 8 bytes\n     0    4 addr\n";

    #[test]
    fn a_blessed_document_agrees_and_keeps_its_prose() {
        let document = blessed(BLANK, LAYOUT).unwrap();
        assert_eq!(difference(&document, LAYOUT).unwrap(), None);
        assert!(document.starts_with("# The maps' layout"));
        let edited = document.replace("# The maps' layout", "# Our own words");
        assert!(
            blessed(&edited, LAYOUT)
                .unwrap()
                .starts_with("# Our own words")
        );
    }

    #[test]
    fn a_changed_field_is_named_with_its_line() {
        let document = blessed(BLANK, LAYOUT).unwrap();
        let changed = LAYOUT.replace("4 addr", "6 addr");
        let difference = difference(&document, &changed).unwrap().unwrap();
        assert_eq!(
            difference,
            "10: says `0    4 addr`, the code says `0    6 addr`"
        );
    }

    #[test]
    fn a_field_that_comes_or_goes_is_found() {
        let document = blessed(BLANK, LAYOUT).unwrap();
        let longer = format!("{LAYOUT}     4    4 pad\n");
        assert!(
            difference(&document, &longer)
                .unwrap()
                .unwrap()
                .contains("says `nothing`")
        );
        assert!(difference(&document, "ABI 1\n").unwrap().is_some());
        assert!(difference("no block here", LAYOUT).is_err());
    }
}
