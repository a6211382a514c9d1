//! Tables for people: columns as wide as what is in them.

use crate::text;

/// Lines of cells, two blanks between them, without blanks at the end.
pub fn columns<const N: usize>(lines: &[[String; N]]) -> String {
    let plain = lines
        .iter()
        .map(|line| line.each_ref().map(|cell| text::message(cell).to_string()));
    let lines: Vec<[String; N]> = plain.collect();
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
