//! A scripted apiserver: it answers what yurt-net asks an apiserver, and can fail in every way on the way. A server
//! runs on a thread and a runtime of its own, and ends when it is dropped.
//!
//! ```
//! use yurt_net_tests::apiserver::{FakeApiserver, Fault, On, Resource, objects};
//!
//! let api = FakeApiserver::start()?;
//! api.put(objects::node_pool("hangzhou", &["edge-a1"]))?;
//! // The first list is told to come again, the second one breaks after ten bytes.
//! let lists = On::list(Resource::NodePools);
//! api.http().fail_next(lists, [Fault::Status(429), Fault::Cut(10)]);
//! println!("--source kube:{}", api.http().url());
//! # anyhow::Ok(())
//! ```

mod api;
mod call;
mod directory;
mod disk;
mod endpoint;
mod fault;
mod hub;
mod journal;
pub mod objects;
mod pods;
mod resource;
mod scale;
mod selector;
mod server;
mod store;
mod tls;
mod watch;

pub use api::Settings;
pub use call::Verb;
pub use directory::Directory;
pub use disk::Corruption;
pub use endpoint::Endpoint;
pub use fault::Fault;
pub use fault::On;
pub use hub::FakeYurtHub;
pub use hub::HubMode;
pub use journal::Exchange;
pub use pods::PodsServer;
pub use resource::Resource;
pub use scale::Scale;
pub use server::FakeApiserver;
pub use tls::Authority;
pub use tls::Identity;
pub use tls::Validity;
