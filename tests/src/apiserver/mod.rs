//! A scripted apiserver: what yurt-net asks an apiserver, answered as one would, and whatever can go wrong on the
//! way. A server runs on a thread and a runtime of its own, and ends when it is dropped.
//!
//! ```
//! use serde_json::json;
//! use yurt_net_tests::apiserver::{Fault, FakeApiserver, On, Resource};
//!
//! let api = FakeApiserver::start()?;
//! api.put(json!({
//!     "apiVersion": "apps.openyurt.io/v1beta2",
//!     "kind": "NodePool",
//!     "metadata": {"name": "hangzhou"},
//!     "status": {"nodes": ["edge-a1"]},
//! }))?;
//! // The first list is told to come again, the second one breaks after ten bytes.
//! let lists = On::list(Resource::NodePools);
//! api.http().fail_next(lists, [Fault::Status(429), Fault::Cut(10)]);
//! println!("--source kube:{}", api.http().url());
//! # anyhow::Ok(())
//! ```

mod api;
mod call;
mod endpoint;
mod fault;
mod journal;
mod resource;
mod selector;
mod server;
mod store;
mod watch;

pub use api::Settings;
pub use call::Verb;
pub use endpoint::Endpoint;
pub use fault::Fault;
pub use fault::On;
pub use journal::Exchange;
pub use resource::Resource;
pub use server::FakeApiserver;
