//! The table in words and as JSON: the verdict for one flow, the rows that `plan` prints, and what `services` asks.
//! What has a name is found here, too. Pure.

pub mod find;
pub mod rows;
pub mod services;
pub mod verdict;
