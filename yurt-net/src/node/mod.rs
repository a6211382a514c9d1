//! What this machine knows of its own addresses, devices and routes, followed for changes. The agent's only user of
//! rtnetlink; `cni` has Pods' interfaces.

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
