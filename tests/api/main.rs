//! Ring 3: the sources `kube:` and `yurthub:` against a scripted apiserver. Whatever it does, nothing is lost.

mod access;
mod bursts;
mod faults;
mod followed;
mod following;
mod hub;
mod pods;
mod preference;
mod refusals;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use serde_json::Value;
use yurt_net_tests::apiserver::{FakeApiserver, Settings, objects};

use crate::followed::NODE;

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 96, 0, last).into()
}

/// A Service and its slice.
fn web(name: &str, last: u8) -> [Value; 2] {
    let endpoint = objects::endpoint(Ipv4Addr::new(10, 1, 0, last).into(), NODE);
    [
        objects::service(name, address(last), 80),
        objects::slice(&format!("{name}-1"), name, 8080, [endpoint]),
    ]
}

/// An apiserver with the own Node and these Services.
fn cluster(names: &[&str]) -> Result<FakeApiserver> {
    cluster_with(Settings::default(), names)
}

fn cluster_with(settings: Settings, names: &[&str]) -> Result<FakeApiserver> {
    let api = FakeApiserver::with(settings)?;
    let own = Ipv4Addr::new(192, 0, 2, 1).into();
    api.put(objects::node(NODE, Some("hangzhou"), own))?;
    for (name, last) in names.iter().zip(1..) {
        api.put_all(web(name, last))?;
    }
    Ok(api)
}

fn kube(api: &FakeApiserver) -> String {
    format!("kube:{}", api.http().url())
}

fn yurthub(api: &FakeApiserver) -> String {
    format!("yurthub:{}", api.http().url())
}
