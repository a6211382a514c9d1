//! Prose has at most [`MAX`] columns, in comments and in documents, so that two files fit side by side.

/// Columns, by characters.
pub(super) const MAX: usize = 120;

/// The numbers of comment lines that are too long. Rows of tables cannot be broken.
pub(super) fn long_comments(text: &str) -> impl Iterator<Item = usize> {
    long(text, |line| {
        let comment = line.strip_prefix("//")?;
        let text = comment.trim_start_matches(['/', '!']).trim_start();
        (!text.starts_with('|')).then_some(text)
    })
}

/// The numbers of lines of a document that are too long, except code, rows of tables and headings.
pub(super) fn long_prose(text: &str) -> impl Iterator<Item = usize> {
    long(text, |line| (!line.starts_with(['|', '#'])).then_some(line))
}

/// * `prose`: the prose in a line, if it has any. The line comes without its indentation.
fn long(text: &str, prose: impl Fn(&str) -> Option<&str>) -> impl Iterator<Item = usize> {
    let mut is_code = false;
    let lines = text.lines().enumerate();
    lines.filter_map(move |(index, line)| {
        let said = prose(line.trim_start());
        if said.is_some_and(|said| said.starts_with("```")) {
            is_code = !is_code;
        }
        let can_be_broken = said.is_some_and(|said| said.trim().contains(' '));
        (!is_code && can_be_broken && line.chars().count() > MAX).then_some(index + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prose_is_found_and_what_cannot_be_broken_is_not() {
        let long = "word ".repeat(30);
        let whole = "w".repeat(150);
        let rust = format!(
            "    /// {long}\n//! | {long} |\n// ```text\n// {long}\n// ```\n// {whole}\nlet x = \"{long}\"; // {long}\n//{long}\n"
        );
        assert_eq!(long_comments(&rust).collect::<Vec<_>>(), [1, 8]);
        let page =
            format!("# {long}\n{long}\n- {long}\n| {long} |\n```\n{long}\n```\n{whole}\n{long}\n");
        assert_eq!(long_prose(&page).collect::<Vec<_>>(), [2, 3, 9]);
        let fits = format!("// {}", "ö ".repeat(58));
        assert_eq!(long_comments(&fits).count(), 0, "characters, not bytes");
    }
}
