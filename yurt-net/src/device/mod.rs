//! Devices and what goes over them, in the words that every room has for them. Pure.
//!
//! Link-layer addresses, links and the host's ends of them, routes, the frames that announce an address, and what is said of a Pod that
//! cannot have on its device what it asks for.

mod complaint;
pub mod frames;
mod link;
mod mac;
mod route;

pub use self::complaint::Complaint;
pub use self::link::{HostSide, Link};
pub use self::mac::{BadMac, Mac, link_local, mac_of};
pub use self::route::Route;
