//! What this machine knows of its own addresses and devices, followed for changes. The only user of rtnetlink.

mod follow;
mod links;
pub mod near;
mod neighbours;
pub mod peers;
mod resolver;
pub mod routes;
pub mod tables;
mod view;
pub mod vtep;

pub use self::follow::NodeError;
pub use self::links::{LinkWatch, as_link};
pub use self::view::NodeWatch;
