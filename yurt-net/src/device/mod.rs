//! Devices, routes and link-layer addresses, as every room names them. Pure.

mod complaint;
pub mod frames;
mod link;
mod mac;
mod route;

pub use self::complaint::Complaint;
pub use self::link::{HostSide, Link};
pub use self::mac::{BadMac, Mac, link_local, mac_of};
pub use self::route::Route;
