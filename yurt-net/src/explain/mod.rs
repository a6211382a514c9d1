//! What the table says, for people and programs: the verdict for one flow, and the rows that `plan` prints. Pure.

pub mod rows;
pub mod verdict;
