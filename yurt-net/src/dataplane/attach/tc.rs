//! Programs on devices. A hook of a device has at most one program of each name. It stays when the agent ends.
//!
//! On Linux 6.6 and later programs are attached by links (tcx), before that by filters of the clsact qdisc (`cls_bpf`,
//! direct action). Either way ours run before those of others where that is possible, and are removed with the device.
//! The pins below `tc/` record where ours are: `7-yurt_guard_in` is a link to device 7; `7-yurt_guard_in-clsact` stands
//! for a filter, and pins its program. Programs of others stay, and so does the qdisc, which they may use.
//!
//! Devices of Pods come and go at any time, so a device that is gone is a normal result here and no error.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bpffs::{create_dir, remove_dir};
use super::kept::keep_pin;
use crate::dataplane::DataplaneError;
use crate::dataplane::error::{at, on_device};
use crate::dataplane::load::LoadedProgram;
pub use crate::dataplane::sys::Hook;
use crate::dataplane::sys::tc::Filters;
use crate::dataplane::sys::{self, has_tcx, tcx_create, tcx_program};

const CLSACT: &str = "-clsact";
const TRIES: usize = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// A loaded program, and the hook where it belongs.
#[derive(Debug)]
pub(in crate::dataplane) struct TcProgram {
    /// Its name, which no other of our programs has.
    pub name: &'static str,
    /// Its number in the kernel.
    pub id: u32,
    /// Which packets it sees.
    pub hook: Hook,
    /// Its descriptor.
    pub fd: OwnedFd,
    /// The programs of ours that run before it on that hook, if they are on the device already; the last one comes
    /// first.
    pub after: &'static [&'static str],
}

impl TcProgram {
    pub(in crate::dataplane) fn new(
        loaded: LoadedProgram,
        hook: Hook,
        after: &'static [&'static str],
    ) -> Self {
        let LoadedProgram { name, id, fd, .. } = loaded;
        Self {
            name,
            id,
            hook,
            fd,
            after,
        }
    }
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Attaches by tcx links.
    Tcx,
    /// Attaches by filters.
    Clsact,
}

impl Method {
    /// Links, if this kernel has them.
    pub(super) fn of_this_kernel(program: &TcProgram) -> Self {
        if has_tcx(program.fd.as_fd()) {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }
}

/// The result of attaching a program to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dataplane) enum Attached {
    /// The program was attached already.
    Kept,
    /// Another version of the program was replaced.
    Swapped,
    /// It was not attached before.
    Made,
    /// There is no such device.
    Gone,
}

/// The devices of the caller's network namespace.
#[derive(Debug)]
pub(super) struct Tc {
    pins: PathBuf,
    method: Method,
    /// Held, so that a program stays on its device when the pin of its link goes.
    links: BTreeMap<(u32, &'static str), OwnedFd>,
}

/// Makes sure that a link has this program; `None` if the link is not on the device.
fn take_over(
    link: BorrowedFd<'_>,
    program: &TcProgram,
    ifindex: u32,
) -> Result<Option<Attached>, DataplaneError> {
    let failed = |operation| on_device(operation, program.name, ifindex);
    match tcx_program(link, program.hook, ifindex).map_err(failed("inspect"))? {
        None => Ok(None),
        Some(id) if id == program.id => Ok(Some(Attached::Kept)),
        Some(_) => match sys::link_update(link, program.fd.as_fd()) {
            // The link has just gone.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(None),
            result => result
                .map(|()| Some(Attached::Swapped))
                .map_err(failed("swap")),
        },
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

impl Tc {
    /// Keeps the pins in `root/tc`. `root` must exist.
    pub(super) fn open(root: &Path, method: Method) -> Result<Self, DataplaneError> {
        let pins = directory(root);
        create_dir(&pins)?;
        Ok(Self {
            pins,
            method,
            links: BTreeMap::new(),
        })
    }

    /// Makes sure that a program is on a device.
    pub(super) fn attach(
        &mut self,
        program: &TcProgram,
        ifindex: u32,
    ) -> Result<Attached, DataplaneError> {
        let attached = match self.method {
            Method::Tcx => self.attach_link(program, ifindex)?,
            Method::Clsact => self.attach_filter(program, ifindex)?,
        };
        if attached == Attached::Gone {
            self.links.remove(&(ifindex, program.name));
            remove_pin(&self.pin(program.name, ifindex))?;
        }
        Ok(attached)
    }

    fn attach_link(
        &mut self,
        program: &TcProgram,
        ifindex: u32,
    ) -> Result<Attached, DataplaneError> {
        let mut tries = TRIES;
        loop {
            match self.try_attach_link(program, ifindex) {
                // This very program is attached by another link: of a process that is attaching it and will pin it, or
                // of a pin that was just removed. Either takes the kernel a while.
                Err(
                    DataplaneError::Device { source, .. } | DataplaneError::Path { source, .. },
                ) if source.raw_os_error() == Some(libc::EEXIST) && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(BETWEEN_TRIES);
                }
                result => return result,
            }
        }
    }

    fn try_attach_link(
        &mut self,
        program: &TcProgram,
        ifindex: u32,
    ) -> Result<Attached, DataplaneError> {
        let failed = |operation| on_device(operation, program.name, ifindex);
        let pin = self.pin(program.name, ifindex);
        let key = (ifindex, program.name);
        // The pinned link may be another process's now; the held one may have lost its pin.
        let pinned = sys::object_get(&pin).ok();
        for link in pinned.into_iter().chain(self.links.remove(&key)) {
            let taken = take_over(link.as_fd(), program, ifindex);
            if matches!(taken, Ok(None)) {
                continue;
            }
            let pinned = keep_pin(link.as_fd(), &pin);
            // The link is held before anything that can fail: with its last descriptor the program would leave the
            // device.
            self.links.insert(key, link);
            let attached = taken?.unwrap_or(Attached::Kept);
            return pinned.map(|_| attached);
        }
        let first = self.first(program, ifindex);
        let first = first.as_ref().map(|link| link.as_fd());
        let link = match tcx_create(program.fd.as_fd(), program.hook, ifindex, first) {
            Err(error) if is_gone(&error) => return Ok(Attached::Gone),
            link => link.map_err(failed("attach"))?,
        };
        let pinned = keep_pin(link.as_fd(), &pin);
        self.links.insert(key, link);
        pinned.map(|_| Attached::Made)
    }

    /// The link of the program that comes right before this one, of those that are attached.
    fn first(&self, program: &TcProgram, ifindex: u32) -> Option<OwnedFd> {
        program.after.iter().find_map(|before| {
            let link = sys::object_get(&self.pin(before, ifindex)).ok()?;
            let is_there = tcx_program(link.as_fd(), program.hook, ifindex);
            is_there.is_ok_and(|id| id.is_some()).then_some(link)
        })
    }

    fn attach_filter(&self, program: &TcProgram, ifindex: u32) -> Result<Attached, DataplaneError> {
        let failed = |operation| on_device(operation, program.name, ifindex);
        let TcProgram {
            name,
            id,
            hook,
            ref fd,
            after,
        } = *program;
        let fd = fd.as_fd();
        let mut filters = Filters::open().map_err(failed("open netlink for"))?;
        let found = match filters.find(name, hook, ifindex) {
            Err(error) if is_gone(&error) => return Ok(Attached::Gone),
            found => found.map_err(failed("look for"))?,
        };
        let pin = self.pin(name, ifindex);
        let attached = match found {
            Some(filter) if filter.program_id == id && pin.exists() => {
                return Ok(Attached::Kept);
            }
            Some(filter) => {
                let swapped = filters.replace(fd, name, hook, ifindex, filter);
                swapped.map(|()| Attached::Swapped)
            }
            None => lowest(&mut filters, after, hook, ifindex)
                .and_then(|lowest| filters.add(fd, name, hook, ifindex, lowest))
                .map(|()| Attached::Made),
        };
        let attached = match attached {
            Err(error) if is_gone(&error) => return Ok(Attached::Gone),
            attached => attached.map_err(failed("attach"))?,
        };
        keep_pin(fd, &pin)?;
        Ok(attached)
    }

    /// Takes a program off a device, and removes the record of it.
    pub(super) fn detach(
        &mut self,
        name: &'static str,
        hook: Hook,
        ifindex: u32,
    ) -> Result<(), DataplaneError> {
        let pin = self.pin(name, ifindex);
        if self.method == Method::Clsact {
            detach_filter(name, hook, ifindex)?;
        }
        // A link is detached with its last reference.
        self.links.remove(&(ifindex, name));
        remove_pin(&pin)
    }

    /// The devices that a program was attached to, and whether exactly this program is still there, and pinned.
    pub(super) fn devices(
        &mut self,
        program: &TcProgram,
    ) -> Result<BTreeMap<u32, bool>, DataplaneError> {
        let mut devices = BTreeMap::new();
        let held = self.links.keys().filter(|(_, name)| *name == program.name);
        devices.extend(held.map(|(ifindex, _)| (*ifindex, false)));
        for (ifindex, name, _) in pins(&self.pins)? {
            if name == program.name {
                devices.insert(ifindex, self.is_in_place(program, ifindex)?);
            }
        }
        Ok(devices)
    }

    fn is_in_place(&mut self, program: &TcProgram, ifindex: u32) -> Result<bool, DataplaneError> {
        let failed = |operation| on_device(operation, program.name, ifindex);
        let found = match self.method {
            Method::Tcx => {
                let link = sys::object_get(&self.pin(program.name, ifindex));
                let found = link.and_then(|link| {
                    let found = tcx_program(link.as_fd(), program.hook, ifindex)?;
                    if found.is_some() {
                        // A plugin may have made the link.
                        self.links.insert((ifindex, program.name), link);
                    }
                    Ok(found)
                });
                // What is pinned is another object, or a program with the other method: it is no link.
                found.unwrap_or_default()
            }
            Method::Clsact => {
                let mut filters = Filters::open().map_err(failed("open netlink for"))?;
                match filters.find(program.name, program.hook, ifindex) {
                    Err(error) if is_gone(&error) => None,
                    found => found
                        .map_err(failed("look for"))?
                        .map(|filter| filter.program_id),
                }
            }
        };
        Ok(found == Some(program.id))
    }

    fn pin(&self, name: &str, ifindex: u32) -> PathBuf {
        let suffix = match self.method {
            Method::Tcx => "",
            Method::Clsact => CLSACT,
        };
        self.pins.join(format!("{ifindex}-{name}{suffix}"))
    }
}

/// The lowest priority of a filter that runs after these programs of ours, the last one first. It leaves room for those
/// of them that are attached later.
fn lowest(filters: &mut Filters, after: &[&str], hook: Hook, ifindex: u32) -> io::Result<u32> {
    let mut room = 1;
    for before in after {
        if let Some(found) = filters.find(before, hook, ifindex)? {
            return Ok(found.priority + room);
        }
        room += 1;
    }
    Ok(room)
}

/// Where the pins of programs on devices are.
pub(in crate::dataplane) fn directory(root: &Path) -> PathBuf {
    root.join("tc")
}

/// Takes all of our programs off all devices.
pub(in crate::dataplane) fn cleanup(root: &Path) -> Result<(), DataplaneError> {
    let dir = directory(root);
    if !dir.exists() {
        return Ok(());
    }
    let mut removed = Ok(());
    for (ifindex, name, method) in pins(&dir)? {
        match method {
            Method::Clsact => {
                for hook in [Hook::Ingress, Hook::Egress] {
                    removed = removed.and(detach_filter(&name, hook, ifindex));
                }
            }
            // Another process may hold the link, so removing its pin alone would not detach the program. If its device
            // is gone, it is detached already.
            Method::Tcx => {
                let link = sys::object_get(&dir.join(format!("{ifindex}-{name}")));
                let _ = link.and_then(|link| sys::link_detach(link.as_fd()));
            }
        }
    }
    // Without its pin, a filter that stays would not be found next time.
    removed.and_then(|()| remove_dir(&dir))
}

fn detach_filter(name: &str, hook: Hook, ifindex: u32) -> Result<(), DataplaneError> {
    let failed = |operation| on_device(operation, name, ifindex);
    let mut filters = Filters::open().map_err(failed("open netlink for"))?;
    let removed = filters
        .find(name, hook, ifindex)
        .and_then(|filter| filter.map_or(Ok(()), |filter| filters.remove(hook, ifindex, filter)));
    match removed {
        Err(error) if is_gone(&error) => Ok(()),
        removed => removed.map_err(failed("detach")),
    }
}

/// Device, program and method of each pin.
fn pins(dir: &Path) -> Result<Vec<(u32, String, Method)>, DataplaneError> {
    let mut pins = Vec::new();
    let entries = match fs::read_dir(dir) {
        // The directory was removed with its pins, and is made again with the next one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pins),
        entries => entries.map_err(at("read", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(at("read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Some((ifindex, name)) = name.split_once('-')
            && let Ok(ifindex) = ifindex.parse()
        {
            pins.push(match name.strip_suffix(CLSACT) {
                Some(name) => (ifindex, name.to_owned(), Method::Clsact),
                None => (ifindex, name.to_owned(), Method::Tcx),
            });
        }
    }
    Ok(pins)
}

fn remove_pin(pin: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", pin)(error)),
        _ => Ok(()),
    }
}
