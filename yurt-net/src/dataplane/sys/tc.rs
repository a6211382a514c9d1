//! Devices, and the filters that attach programs to them before Linux 6.6 (later kernels have links: `bpf`).
//!
//! Structures follow Linux `include/uapi/linux/{bpf,rtnetlink,pkt_sched,pkt_cls}.h`.

use std::io;
use std::os::fd::BorrowedFd;

use super::bpf::{Hook, raw};
use super::netlink::Connection;
use crate::dataplane::netlink::{u16_at, u32_at};

impl Hook {
    /// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`, or egress.
    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::dataplane) struct Device {
    pub(in crate::dataplane) ifindex: u32,
    pub(in crate::dataplane) name: String,
}

/// The devices of the caller's network namespace.
pub(in crate::dataplane) fn devices() -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    // `struct ifinfomsg`, of all families.
    let take = |message: &[u8]| devices.extend(device(message));
    Connection::open(NETLINK_ROUTE)?.dump(RTM_GETLINK, &[0; IFINFOMSG], take)?;
    Ok(devices)
}

fn device(message: &[u8]) -> Option<Device> {
    let name = attributes(message.get(IFINFOMSG..)?).find(|(kind, _)| *kind == IFLA_IFNAME);
    let (_, name) = name?;
    Some(Device {
        ifindex: u32_at(message, 4)?,
        name: String::from_utf8_lossy(name.strip_suffix(&[0])?).into_owned(),
    })
}

pub(super) const NETLINK_ROUTE: libc::c_int = 0;
pub(super) const RTM_GETLINK: u16 = 18;
/// `struct ifinfomsg`.
pub(super) const IFINFOMSG: usize = 16;
pub(super) const IFLA_IFNAME: u16 = 3;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// `TCA_BPF_FLAG_ACT_DIRECT`: what the program returns is the verdict.
const DIRECT_ACTION: u32 = 1;
/// The bits of an attribute's type that are not flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL_BE: u32 = 0x0300;
/// "yurt": the handle of our filters.
const HANDLE: u32 = 0x7975_7274;
/// `struct tcmsg`.
const TCMSG: usize = 20;
/// How many priorities are tried. The lowest runs first; filters of two kinds cannot share one.
const PRIORITIES: u32 = 8;

/// A filter of ours on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dataplane) struct Filter {
    pub(in crate::dataplane) priority: u32,
    pub(in crate::dataplane) program_id: u32,
}

/// The filters in the network namespace where this was opened.
#[derive(Debug)]
pub(in crate::dataplane) struct Filters(Connection);

impl Filters {
    pub(in crate::dataplane) fn open() -> io::Result<Self> {
        Connection::open(NETLINK_ROUTE).map(Self)
    }

    /// Our filter with this name. `ENODEV`: there is no such device.
    pub(in crate::dataplane) fn find(
        &mut self,
        name: &str,
        hook: Hook,
        ifindex: u32,
    ) -> io::Result<Option<Filter>> {
        let body = tcmsg(ifindex, 0, hook.parent(), 0);
        let mut found = None;
        let take = |message: &[u8]| found = found.or(ours(message, name));
        match self.0.dump(RTM_GETTFILTER, &body, take) {
            // The device has no qdisc for filters, or the kernel has neither.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                Ok(None)
            }
            result => result.map(|()| found),
        }
    }

    /// What the filters of others are on a hook: their kinds, and the names of programs.
    pub(in crate::dataplane) fn others(
        &mut self,
        ours: &[&str],
        hook: Hook,
        ifindex: u32,
    ) -> io::Result<Vec<String>> {
        let body = tcmsg(ifindex, 0, hook.parent(), 0);
        let mut found = Vec::new();
        let take = |message: &[u8]| found.extend(other(message, ours));
        match self.0.dump(RTM_GETTFILTER, &body, take) {
            // The device has no qdisc for filters, or is gone, or the kernel has neither.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENODEV)
                ) =>
            {
                Ok(Vec::new())
            }
            result => result.map(|()| found),
        }
    }

    /// Adds our filter with this priority or one of the next, and before that the qdisc that it needs. `ENODEV`: there
    /// is no such device.
    pub(in crate::dataplane) fn add(
        &mut self,
        program: BorrowedFd<'_>,
        name: &str,
        hook: Hook,
        ifindex: u32,
        lowest: u32,
    ) -> io::Result<()> {
        let mut body = tcmsg(ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0);
        attribute(&mut body, TCA_KIND, b"clsact\0");
        match self
            .0
            .request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &body)
        {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
            _ => {}
        }
        let mut result = Ok(());
        for priority in lowest..lowest + PRIORITIES {
            let body = filter(program, name, hook, ifindex, priority);
            result = self
                .0
                .request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &body);
            // Filters of another kind have this priority.
            let is_taken = |error: &io::Error| {
                matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EEXIST))
            };
            if !result.as_ref().is_err_and(is_taken) {
                break;
            }
        }
        result
    }

    /// Replaces the program of our filter, without a gap.
    pub(in crate::dataplane) fn replace(
        &mut self,
        program: BorrowedFd<'_>,
        name: &str,
        hook: Hook,
        ifindex: u32,
        old: Filter,
    ) -> io::Result<()> {
        let body = filter(program, name, hook, ifindex, old.priority);
        self.0
            .request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    /// Removes our filter.
    pub(in crate::dataplane) fn remove(
        &mut self,
        hook: Hook,
        ifindex: u32,
        filter: Filter,
    ) -> io::Result<()> {
        let info = filter.priority << 16 | ETH_P_ALL_BE;
        let mut body = tcmsg(ifindex, HANDLE, hook.parent(), info);
        attribute(&mut body, TCA_KIND, b"bpf\0");
        self.0.request(RTM_DELTFILTER, 0, &body)
    }
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    // Family and padding come first.
    let words = [0, ifindex, handle, parent, info];
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn filter(program: BorrowedFd<'_>, name: &str, hook: Hook, ifindex: u32, priority: u32) -> Vec<u8> {
    let mut options = Vec::new();
    attribute(&mut options, TCA_BPF_FD, &raw(program).to_ne_bytes());
    let name = [name.as_bytes(), &[0]].concat();
    attribute(&mut options, TCA_BPF_NAME, &name);
    attribute(&mut options, TCA_BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
    let mut body = tcmsg(
        ifindex,
        HANDLE,
        hook.parent(),
        priority << 16 | ETH_P_ALL_BE,
    );
    attribute(&mut body, TCA_KIND, b"bpf\0");
    attribute(&mut body, TCA_OPTIONS, &options);
    body
}

/// Kind and value of each attribute, up to one that is cut off.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A filter in a dump, if it is ours and has this name.
fn ours(message: &[u8], name: &str) -> Option<Filter> {
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted);
    let (handle, info) = (u32_at(message, 8)?, u32_at(message, 16)?);
    let rest = message.get(TCMSG..)?;
    let (_, kind) = find(rest, TCA_KIND)?;
    let (_, options) = find(rest, TCA_OPTIONS)?;
    let (_, its_name) = find(options, TCA_BPF_NAME)?;
    let (_, program_id) = find(options, TCA_BPF_ID)?;
    let is_ours =
        handle == HANDLE && kind == b"bpf\0" && its_name.strip_suffix(&[0])? == name.as_bytes();
    is_ours.then_some(Filter {
        priority: info >> 16,
        program_id: u32_at(program_id, 0)?,
    })
}

/// A filter in a dump, if it is none of these of ours: its kind, and the name of its program.
fn other(message: &[u8], ours: &[&str]) -> Option<String> {
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted);
    let rest = message.get(TCMSG..)?;
    let (_, kind) = find(rest, TCA_KIND)?;
    let kind = text(kind);
    // Each priority has a message of its own, without a handle, before those of its filters.
    let is_filter = kind != "bpf" || u32_at(message, 8)? != 0;
    let is_ours = ours.iter().any(|name| self::ours(message, name).is_some());
    if !is_filter || is_ours {
        return None;
    }
    let options = find(rest, TCA_OPTIONS).map(|(_, options)| options);
    let name = options.and_then(|options| find(options, TCA_BPF_NAME));
    Some(match name {
        Some((_, name)) if kind == "bpf" => text(name),
        _ => kind,
    })
}

/// A string that ends with a zero.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumped(handle: u32, kind: &[u8], name: &[u8]) -> Vec<u8> {
        let mut options = Vec::new();
        attribute(&mut options, TCA_BPF_NAME, name);
        attribute(&mut options, TCA_BPF_ID, &77u32.to_ne_bytes());
        let mut message = tcmsg(7, handle, Hook::Ingress.parent(), 2 << 16 | ETH_P_ALL_BE);
        attribute(&mut message, TCA_KIND, kind);
        attribute(&mut message, TCA_OPTIONS, &options);
        message
    }

    #[test]
    fn our_filter_is_known_by_its_handle_its_kind_and_its_name() {
        let name = "yurt_guard_in";
        let filter = Filter {
            priority: 2,
            program_id: 77,
        };
        let message = dumped(HANDLE, b"bpf\0", b"yurt_guard_in\0");
        assert_eq!(ours(&message, name), Some(filter));
        for other in [
            dumped(1, b"bpf\0", b"yurt_guard_in\0"),
            dumped(HANDLE, b"flower\0", b"yurt_guard_in\0"),
            dumped(HANDLE, b"bpf\0", b"yurt_guard\0"),
        ] {
            assert_eq!(ours(&other, name), None);
        }
        for length in 0..message.len() {
            assert_eq!(ours(&message[..length], name), None, "{length}");
        }
    }

    #[test]
    fn filters_of_others_have_the_name_of_their_program_or_their_kind() {
        let names = ["yurt_guard_in"];
        let ours = dumped(HANDLE, b"bpf\0", b"yurt_guard_in\0");
        let head = dumped(0, b"bpf\0", b"cil_from_netdev\0");
        assert_eq!([other(&ours, &names), other(&head, &names)], [None, None]);
        let bpf = dumped(1, b"bpf\0", b"cil_from_netdev\0");
        assert_eq!(other(&bpf, &names).as_deref(), Some("cil_from_netdev"));
        let flower = dumped(0, b"flower\0", b"\0");
        assert_eq!(other(&flower, &names).as_deref(), Some("flower"));
    }
}
