//! The table in words and as JSON: the verdict for one flow, and the rows that `plan` prints. Pure.

pub mod rows;
pub mod verdict;
