//! The programs of one feature on devices, by a key that says what each does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tc::{Attached, Method, Tc, TcProgram};
use crate::dataplane::DataplaneError;

/// Programs on devices of the caller's network namespace.
///
/// * `K`: the key; often the direction of the program's packets.
#[derive(Debug)]
pub(in crate::dataplane) struct OnDevices<K> {
    programs: BTreeMap<K, TcProgram>,
    tc: Tc,
}

/// Where programs are: key and index of the device.
#[derive(Debug)]
pub(in crate::dataplane) struct Found<K> {
    /// The present program is there, and pinned.
    pub attached: BTreeSet<(K, u32)>,
    /// It was there and is no longer, or another version of it is.
    pub lost: BTreeSet<(K, u32)>,
}

impl<K: Ord + Copy> OnDevices<K> {
    /// Takes programs whose pins are in `root/tc`. `root` must exist.
    ///
    /// * `method`: `None` takes what this kernel has.
    pub(in crate::dataplane) fn open(
        root: &Path,
        programs: impl IntoIterator<Item = (K, TcProgram)>,
        method: Option<Method>,
    ) -> Result<Self, DataplaneError> {
        let programs: BTreeMap<K, TcProgram> = programs.into_iter().collect();
        let of_this_kernel = || programs.values().next().map(Method::of_this_kernel);
        let method = method.or_else(of_this_kernel).unwrap_or(Method::Clsact);
        let tc = Tc::open(root, method)?;
        Ok(Self { programs, tc })
    }

    /// The programs' names, which are those of their pins.
    pub(in crate::dataplane) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.programs.values().map(|program| program.name)
    }

    /// Looks on which devices they are.
    pub(in crate::dataplane) fn find(&mut self) -> Result<Found<K>, DataplaneError> {
        let mut found = Found {
            attached: BTreeSet::new(),
            lost: BTreeSet::new(),
        };
        for (which, program) in &self.programs {
            for (ifindex, is_in_place) in self.tc.devices(program)? {
                let place = match is_in_place {
                    true => &mut found.attached,
                    false => &mut found.lost,
                };
                place.insert((*which, ifindex));
            }
        }
        Ok(found)
    }

    /// Makes sure that a program is on a device.
    pub(in crate::dataplane) fn attach(
        &mut self,
        which: K,
        ifindex: u32,
    ) -> Result<Attached, DataplaneError> {
        match self.programs.get(&which) {
            Some(program) => self.tc.attach(program, ifindex),
            None => Ok(Attached::Gone),
        }
    }

    /// Takes a program off a device, and removes the record of it.
    pub(in crate::dataplane) fn detach(
        &mut self,
        which: K,
        ifindex: u32,
    ) -> Result<(), DataplaneError> {
        match self.programs.get(&which) {
            Some(program) => self.tc.detach(program.name, program.hook, ifindex),
            None => Ok(()),
        }
    }
}
