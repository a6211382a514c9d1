//! Tables for people: columns as wide as what is in them.

use crate::text;

/// A line of titles and a line for each row, with two blanks between the cells and none at the end.
pub fn columns<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let titles = std::iter::once(titles.map(str::to_owned));
    let all = titles.chain(rows);
    let lines = all.map(|line| line.map(|cell| text::message(&cell).to_string()));
    let lines: Vec<[String; N]> = lines.collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}  "));
        text += cells.collect::<String>().trim_end();
        text.push('\n');
    }
    text
}
