//! The maps in memory, for tests: written by the same plans and read by the same code as the kernel's. Pure.
//!
//! `apply` can stop between any two writes, and `resolve4` and `resolve6` of `yurt_ebpf::select` run on these maps as
//! they run in the kernel.

use std::cell::Cell;
use std::collections::BTreeMap;

use yurt_ebpf::abi::{
    Affinity, Backend4, Backend6, Conf, FILTER_WORDS, FilterPlace, FrontendKey4, FrontendKey6,
    FrontendValue, NetnsRow, PrefixSet, PublishWord, ServiceRow,
};
use yurt_ebpf::select::{Dialer, Tables};

use super::decode::{RawTable, Rows, decode, holds};
use super::encode::{MapWriter, RawKey};
use crate::dataplane::error::out_of_bounds;
use crate::dataplane::{ApplyError, Dataplane, DataplaneError};
use crate::plan::{Capacity, Filter, MapImage, Plan};

type Key4 = ([u8; 4], [u8; 2], u8, u8);
type Key6 = ([u8; 16], [u8; 2], u8, u8);

/// Map contents.
#[derive(Clone, Debug)]
pub struct MemoryDataplane {
    capacity: Capacity,
    fe4: BTreeMap<Key4, u64>,
    fe6: BTreeMap<Key6, u64>,
    svc: Vec<ServiceRow>,
    slot: Vec<Backend4>,
    be6: Vec<Backend6>,
    conf: Box<Conf>,
    filter: Vec<u64>,
    /// How many grace periods there were.
    pub graces: usize,
    /// The next answer of [`Dialer::random`].
    pub random: Cell<u32>,
    /// Whether the dialling client is in the node's network namespace.
    pub is_in_node_netns: bool,
    /// What is known of the dialling client's network namespace.
    pub client: Option<NetnsRow>,
}

impl MemoryDataplane {
    /// Empty maps.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            fe4: BTreeMap::new(),
            fe6: BTreeMap::new(),
            svc: vec![ServiceRow::default(); capacity.services as usize],
            slot: vec![Backend4::default(); capacity.slots4 as usize],
            be6: vec![Backend6::default(); capacity.slots6 as usize],
            conf: Box::default(),
            filter: vec![0; FILTER_WORDS as usize],
            graces: 0,
            random: Cell::new(0),
            is_in_node_netns: true,
            client: None,
        }
    }

    /// Applies the first `count` writes of a plan, like an agent that is killed there.
    pub(crate) fn apply_prefix(&mut self, plan: &Plan, count: usize) -> Result<(), ApplyError> {
        for (applied, op) in plan.ops.iter().take(count).enumerate() {
            let total = plan.ops.len();
            self.write(op).map_err(|source| ApplyError {
                applied,
                total,
                source,
            })?;
        }
        Ok(())
    }

    /// Overwrites entries of every map without the planner's knowledge; `seed` says which, and with what.
    pub fn damage(&mut self, seed: [u32; 6]) {
        let [a, b, c, d, e, f] = seed;
        let nth = |number: u32, length: usize| number as usize % length.max(1);
        let length = self.fe4.len();
        if let Some(value) = self.fe4.values_mut().nth(nth(a, length)) {
            *value = u64::from(b) << 32 | u64::from(c);
        }
        let length = self.fe6.len();
        if let Some(key) = self.fe6.keys().nth(nth(b, length)).copied() {
            self.fe6.remove(&key);
        }
        let length = self.svc.len().min(8);
        self.svc[nth(d, length)].word = u64::from(e) << 32 | u64::from(f);
        let length = self.slot.len().min(16);
        self.slot[nth(e, length)] = Backend4 {
            addr: f.to_ne_bytes(),
            ..Backend4::default()
        };
        self.be6[nth(f, length)] = Backend6::default();
        self.conf.active_prefixes ^= a & 1;
        let length = self.fe4.len();
        if let Some((addr, ..)) = self.fe4.keys().nth(nth(c, length)) {
            let place = FilterPlace::of4(u32::from_be_bytes(*addr));
            self.filter[place.word as usize] = 0;
        }
        self.filter[nth(d, FILTER_WORDS as usize)] = u64::from(a);
    }
}

impl MemoryDataplane {
    fn rows(&self) -> Rows {
        let rows4 = self
            .fe4
            .iter()
            .map(|(&(addr, port_be, protocol, scope), value)| {
                (
                    FrontendKey4 {
                        addr,
                        port_be,
                        protocol,
                        scope,
                    },
                    *value,
                )
            })
            .collect();
        let rows6 = self
            .fe6
            .iter()
            .map(|(&(addr, port_be, protocol, scope), value)| {
                (
                    FrontendKey6 {
                        addr,
                        port_be,
                        protocol,
                        scope,
                        pad: [0; 4],
                    },
                    *value,
                )
            })
            .collect();
        (rows4, rows6)
    }
}

impl Dataplane for MemoryDataplane {
    fn observe(&self) -> Result<MapImage, DataplaneError> {
        Ok(decode(self.capacity, &self.rows(), self))
    }

    fn holds(&self, image: &MapImage) -> Result<bool, DataplaneError> {
        Ok(holds(image, &self.rows(), self))
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        self.apply_prefix(plan, plan.ops.len())
    }
}

fn key4(key: &FrontendKey4) -> Key4 {
    (key.addr, key.port_be, key.protocol, key.scope)
}

fn key6(key: &FrontendKey6) -> Key6 {
    (key.addr, key.port_be, key.protocol, key.scope)
}

impl MapWriter for MemoryDataplane {
    fn grace(&mut self) -> Result<(), DataplaneError> {
        self.graces += 1;
        Ok(())
    }

    fn prefixes(&mut self, set: PrefixSet) -> Result<(), DataplaneError> {
        let next = self.conf.active_prefixes ^ 1;
        self.conf.prefixes[next as usize] = set;
        self.conf.active_prefixes = next;
        Ok(())
    }

    fn filter(&mut self, word: u32, bits: u64) -> Result<(), DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_filter", word);
        *self.filter.get_mut(word as usize).ok_or(out_of_bounds)? = bits;
        Ok(())
    }

    fn backend4(&mut self, slot: u32, backend: Backend4) -> Result<(), DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_slot", slot);
        *self.slot.get_mut(slot as usize).ok_or(out_of_bounds)? = backend;
        Ok(())
    }

    fn backend6(&mut self, slot: u32, backend: Backend6) -> Result<(), DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_be6", slot);
        *self.be6.get_mut(slot as usize).ok_or(out_of_bounds)? = backend;
        Ok(())
    }

    fn publish(&mut self, service: u32, row: ServiceRow) -> Result<(), DataplaneError> {
        let out_of_bounds = out_of_bounds("yurt_svc", service);
        *self.svc.get_mut(service as usize).ok_or(out_of_bounds)? = row;
        Ok(())
    }

    fn put(&mut self, key: RawKey, value: u64) -> Result<(), DataplaneError> {
        let full = |map| DataplaneError::Map {
            operation: "write",
            map,
            source: std::io::Error::from_raw_os_error(libc::E2BIG),
        };
        match key {
            RawKey::V4(key) => {
                let is_new = self.fe4.insert(key4(&key), value).is_none();
                if is_new && self.fe4.len() > self.capacity.frontends4 as usize {
                    return Err(full("yurt_fe4"));
                }
            }
            RawKey::V6(key) => {
                let is_new = self.fe6.insert(key6(&key), value).is_none();
                if is_new && self.fe6.len() > self.capacity.frontends6 as usize {
                    return Err(full("yurt_fe6"));
                }
            }
        }
        Ok(())
    }

    fn delete(&mut self, key: RawKey) -> Result<(), DataplaneError> {
        match key {
            RawKey::V4(key) => self.fe4.remove(&key4(&key)),
            RawKey::V6(key) => self.fe6.remove(&key6(&key)),
        };
        Ok(())
    }
}

impl RawTable for MemoryDataplane {
    fn row(&self, service: u32) -> Option<ServiceRow> {
        self.svc.get(service as usize).copied()
    }

    fn backend4(&self, slot: u32) -> Option<Backend4> {
        self.slot.get(slot as usize).copied()
    }

    fn backend6(&self, slot: u32) -> Option<Backend6> {
        self.be6.get(slot as usize).copied()
    }

    fn conf(&self) -> Option<Conf> {
        Some(*self.conf)
    }

    fn filter(&self) -> Filter {
        self.filter.clone().into()
    }
}

impl Tables for MemoryDataplane {
    fn filter(&self, word: u32) -> Option<u64> {
        self.filter.get(word as usize).copied()
    }

    fn frontend4(&self, key: &FrontendKey4) -> Option<FrontendValue> {
        self.fe4.get(&key4(key)).copied().map(FrontendValue)
    }

    fn frontend6(&self, key: &FrontendKey6) -> Option<FrontendValue> {
        self.fe6.get(&key6(key)).copied().map(FrontendValue)
    }

    fn publish_word(&self, service: u32) -> Option<PublishWord> {
        self.svc
            .get(service as usize)
            .map(|row| PublishWord(row.word))
    }

    fn affinity(&self, service: u32) -> Affinity {
        let row = self.svc.get(service as usize).copied();
        Affinity(row.unwrap_or_default().affinity)
    }

    fn backend4(&self, slot: u32) -> Option<Backend4> {
        self.slot.get(slot as usize).copied()
    }

    fn backend6(&self, slot: u32) -> Option<Backend6> {
        self.be6.get(slot as usize).copied()
    }

    fn conf(&self) -> Option<&Conf> {
        Some(&self.conf)
    }
}

impl Dialer for MemoryDataplane {
    fn random(&self) -> u32 {
        self.random.get()
    }

    fn is_in_node_netns(&self) -> bool {
        self.is_in_node_netns
    }

    fn client(&self) -> Option<NetnsRow> {
        self.client
    }
}
