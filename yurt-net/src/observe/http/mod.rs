//! What is served over HTTP: metrics and requests about the agent (`scrapes`), and the health ports of kube-proxy
//! (`health`).
//!
//! Anybody may reach these ports, so a request costs the agent little, and the agent waits for no client
//! (`conversations`).

mod conversations;
pub mod health;
mod scrapes;

pub use self::scrapes::{PROXY_MODE, Question, Scrape, Server, serve};
