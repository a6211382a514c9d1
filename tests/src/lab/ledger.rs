//! A ledger with Pods in it, where no plugin has made them.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use yurt_net::device::HostSide;
use yurt_net::ledger::store::{LedgerDirs, Lock, Store};
use yurt_net::ledger::{Assigner, Entry, Key, Record, State};

use super::Node;

const PATIENCE: Duration = Duration::from_secs(10);

/// A Pod of the namespace `shop`, as the ledger knows it.
pub struct Kept {
    /// Its name.
    pub name: String,
    /// What it was given.
    pub addresses: Vec<IpAddr>,
    /// Whether it runs.
    pub state: State,
    /// The node's device that leads to it.
    pub host: Option<HostSide>,
}

impl Node {
    /// Writes a ledger in which these Pods were the first things that happened since the machine is up.
    pub fn keep(&self, pods: Vec<Kept>) -> Result<()> {
        let place = LedgerDirs {
            state_dir: self.state_dir(),
            run_dir: self.run_dir(),
        };
        let _lock = Lock::take(&place, PATIENCE)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let mut records = vec![Record::Boot {
            id: boot.trim().to_owned(),
            up: 0,
            at: 0,
        }];
        for (number, pod) in pods.into_iter().enumerate() {
            let key = Key {
                namespace: "shop".to_owned(),
                name: pod.name,
                interface: "eth0".to_owned(),
            };
            let entry = Entry {
                addresses: pod.addresses,
                promised: Vec::new(),
                promised_by: Assigner::Other,
                mac: None,
                host: pod.host,
                asker: None,
                uid: String::new(),
                container: format!("c{number}"),
                network: "edge".to_owned(),
                assigner: Assigner::Ours,
                state: pod.state,
                since: 0,
                at: 0,
            };
            records.push(Record::Put { key, entry });
        }
        Store::open(&place)?.commit(records)?;
        Ok(())
    }
}
