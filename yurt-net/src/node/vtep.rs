//! The thread that keeps the node's own devices: it sets back their MACs, and vxlan devices follow their underlay
//! address.
//!
//! The thread waits for nothing but the kernel, so a device that was just made gets its MAC even while the agent
//! compiles a table, and before any source has answered. `tunnel::vtep` decides what to do; events only say that it is
//! time to look.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVxlan, MulticastGroup};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::follow::NodeError;
use super::neighbours;
use super::view::view;
use crate::device::Mac;
use crate::error::{PathError, chain};
use crate::host::disk::Directory;
use crate::tunnel::Kind;
use crate::tunnel::announced::Announced;
use crate::tunnel::record;
use crate::tunnel::report::Report;
use crate::tunnel::vtep::{Action, Device, Keeper, Underlay, Vxlan, What};

/// The longest time until a change is seen whose event was lost.
const LOOK: Duration = Duration::from_secs(30);
/// How long to wait after a failure of netlink.
const AGAIN: Duration = Duration::from_secs(1);
const SAVE_AGAIN: Duration = Duration::from_secs(30);

/// Devices that cannot be followed or changed.
#[derive(Debug, thiserror::Error)]
pub enum VtepError {
    /// The socket cannot be opened, or a list fails.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The socket has ended, because it could not hold all events.
    #[error("follow the devices of this machine: events were lost")]
    Ended,
    /// A request about a device fails.
    #[error("{operation} {device}")]
    Device {
        /// The request.
        operation: &'static str,
        /// The device.
        device: String,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
}

/// What the cloud says of this node's Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Name of the Node.
    pub node: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Whether the cloud says so at present.
    pub is_fresh: bool,
}

/// The agent's handle of the thread. The thread ends when it is dropped.
pub struct OwnDevices {
    word: watch::Sender<Word>,
    report: watch::Receiver<Report>,
}

impl OwnDevices {
    /// Starts the thread for these devices, in the network namespace of the caller, with the records in a directory.
    pub fn start(devices: Vec<(String, Kind)>, state_dir: PathBuf) -> io::Result<Self> {
        let (word, words) = watch::channel(Word::default());
        let (reports, report) = watch::channel(Report::default());
        let keep = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    let thread = Thread::new(devices, state_dir, words, reports);
                    runtime.block_on(thread.run());
                }
                Err(error) => warn!(
                    error = chain(&error),
                    "cannot keep the addresses of the node's own devices"
                ),
            }
        };
        std::thread::Builder::new()
            .name("devices".to_owned())
            .spawn(keep)?;
        Ok(Self { word, report })
    }

    /// Passes on what the cloud says, if it is new.
    pub fn hear(&self, word: Word) {
        self.word.send_if_modified(|known| {
            let is_new = *known != word;
            *known = word;
            is_new
        });
    }

    /// The state of the devices.
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What an event is about.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    devices: bool,
    addresses: bool,
}

struct Thread {
    keeper: Keeper,
    state_dir: PathBuf,
    words: watch::Receiver<Word>,
    reports: watch::Sender<Report>,
    start: Instant,
    /// The names of the devices that exist, by index.
    present: BTreeMap<u32, String>,
    /// The permanent neighbours of each device. The kernel forgets them when the MAC is changed, and flannel does not
    /// add them again.
    neighbours: BTreeMap<u32, BTreeMap<IpAddr, Mac>>,
    saving: Option<JoinHandle<Result<(), PathError>>>,
    /// When to write the records.
    save_at: Option<Instant>,
    /// Faults of the records at the start, of the kernel and of the disk.
    damage: Option<String>,
    disk: Option<String>,
    kernel: Option<String>,
}

impl Thread {
    fn new(
        devices: Vec<(String, Kind)>,
        state_dir: PathBuf,
        words: watch::Receiver<Word>,
        reports: watch::Sender<Report>,
    ) -> Self {
        let (records, damage) = match record::load(&Directory::new(&state_dir)) {
            Ok((records, 0)) => (records, None),
            Ok((records, damaged)) => {
                let path = state_dir.join("vtep");
                let what = format!(
                    "{damaged} lines of {} are damaged: their devices keep the MACs that they have now",
                    path.display()
                );
                (records, Some(what))
            }
            Err(error) => (BTreeMap::new(), Some(chain(&error))),
        };
        Self {
            keeper: Keeper::new(devices, &records),
            state_dir,
            words,
            reports,
            start: Instant::now(),
            present: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            saving: None,
            save_at: None,
            damage,
            disk: None,
            kernel: None,
        }
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed())
    }

    async fn run(mut self) {
        while let Err(error) = self.follow().await {
            self.kernel = Some(chain(&error));
            self.publish();
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Runs until the agent has ended, or something fails.
    async fn follow(&mut self) -> Result<(), VtepError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NodeError::Open)?;
        // This task ends when the last handle is dropped.
        tokio::spawn(connection);
        let all = News {
            devices: true,
            addresses: true,
        };
        self.look(&handle, all).await?;
        self.kernel = None;
        let mut is_due = true;
        loop {
            self.act(&handle).await?;
            if std::mem::take(&mut is_due) {
                self.remember(&handle).await;
            }
            self.publish();
            let due = self.keeper.due().map(Duration::from_millis);
            let look = Instant::now() + LOOK;
            let due = due.map_or(look, |due| look.min(self.start + due));
            let save_at = self.save_at.filter(|_| self.saving.is_none());
            tokio::select! {
                // A device that was just made must not wait.
                biased;
                message = messages.next() => {
                    let (message, _) = message.ok_or(VtepError::Ended)?;
                    let mut news = self.news(&message);
                    while let Some(message) = messages.next().now_or_never() {
                        let (message, _) = message.ok_or(VtepError::Ended)?;
                        let more = self.news(&message);
                        news.devices |= more.devices;
                        news.addresses |= more.addresses;
                    }
                    self.look(&handle, news).await?;
                }
                changed = self.words.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let word = self.words.borrow_and_update().clone();
                    let announced = Announced::read(&word.node, &word.annotations);
                    self.keeper.hear(announced, word.is_fresh, self.now());
                }
                saved = saved(&mut self.saving) => {
                    self.saving = None;
                    self.disk = saved.err();
                    if self.disk.is_some() {
                        self.save_at = Some(Instant::now() + SAVE_AGAIN);
                    }
                }
                () = sleep_until(save_at.unwrap_or(look)), if save_at.is_some() => self.save(),
                () = sleep_until(due) => {
                    self.look(&handle, all).await?;
                    is_due = true;
                }
            }
        }
    }

    fn news(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> News {
        let link = match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) => link,
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_),
            ) => {
                return News {
                    devices: false,
                    addresses: true,
                };
            }
            _ => {
                return News {
                    devices: true,
                    addresses: true,
                };
            }
        };
        let is_about = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::IfName(name) => self.keeper.names().any(|kept| kept == name),
            LinkAttribute::Controller(bridge) => self.present.contains_key(bridge),
            _ => false,
        };
        let is_known = self.present.contains_key(&link.header.index);
        News {
            devices: is_known || link.attributes.iter().any(is_about),
            addresses: false,
        }
    }

    async fn look(&mut self, handle: &Handle, news: News) -> Result<(), VtepError> {
        if news.devices {
            let names: Vec<String> = self.keeper.names().map(str::to_owned).collect();
            for name in names {
                self.look_at(handle, &name).await?;
            }
        }
        if news.addresses {
            let (by_interface, _, view) = view(handle).await?;
            self.keeper.see_underlay(Underlay {
                by_interface,
                default_source: view.default_source,
            });
        }
        Ok(())
    }

    async fn look_at(&mut self, handle: &Handle, name: &str) -> Result<(), VtepError> {
        let found = find(handle, name).await?;
        self.present.retain(|_, present| present != name);
        let device = match found {
            None => None,
            Some(message) => {
                self.present.insert(message.header.index, name.to_owned());
                let has_ports =
                    self.keeper.knows(name) || has_ports(handle, message.header.index).await?;
                as_device(&message, has_ports)
            }
        };
        self.keeper.see(name, device, self.now());
        Ok(())
    }

    /// Takes all actions that are due.
    async fn act(&mut self, handle: &Handle) -> Result<(), VtepError> {
        loop {
            let actions = self.keeper.decide(self.now());
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                match action {
                    Action::Save => self.save_at = Some(Instant::now()),
                    Action::SetMac {
                        name,
                        ifindex,
                        from,
                        to,
                    } => {
                        let done = self.set_mac(handle, &name, ifindex, to).await;
                        self.report_set(&name, &done);
                        if done.is_ok() && from == to {
                            info!(device = name, mac = %to, "pinned the MAC of a bridge");
                        } else if done.is_ok() {
                            warn!(device = name, %from, %to, "set the MAC back to the one that peers know");
                        }
                        self.look_at(handle, &name).await?;
                    }
                    Action::SetLocal {
                        name,
                        ifindex,
                        vni,
                        from,
                        to,
                    } => {
                        let done = set_local(handle, &name, ifindex, vni, to).await;
                        self.report_set(&name, &done);
                        if done.is_ok() {
                            warn!(device = name, %from, %to, "the underlay address has changed; peers learn that from the cloud");
                        }
                        self.look_at(handle, &name).await?;
                    }
                }
            }
        }
    }

    /// Lists the neighbours that a change of MAC would lose. If those of a device cannot be listed, the earlier list
    /// stays.
    async fn remember(&mut self, handle: &Handle) {
        let mut before = std::mem::take(&mut self.neighbours);
        for &ifindex in self.present.keys() {
            let now = match neighbours::neighbours(handle, ifindex).await {
                Ok(now) => now,
                Err(error) => {
                    warn!(
                        error = chain(&error),
                        "cannot list neighbours; they are lost if the MAC is changed"
                    );
                    before.remove(&ifindex).unwrap_or_default()
                }
            };
            self.neighbours.insert(ifindex, now);
        }
    }

    /// Sets a MAC, and puts back the neighbours that the kernel forgets, now or when another program had set the MAC.
    async fn set_mac(
        &self,
        handle: &Handle,
        name: &str,
        ifindex: u32,
        mac: Mac,
    ) -> Result<(), VtepError> {
        // The MAC is set even if the neighbours cannot be listed.
        let listed = neighbours::neighbours(handle, ifindex).await;
        let mut neighbours = listed.unwrap_or_else(|error| {
            warn!(
                device = name,
                error = chain(&error),
                "cannot list neighbours; they are lost when the MAC is set"
            );
            BTreeMap::new()
        });
        let message = LinkUnspec::new_with_index(ifindex).address(mac.0.to_vec());
        let failed = |operation| {
            move |source| VtepError::Device {
                operation,
                device: name.to_owned(),
                source,
            }
        };
        let done = handle.link().set(message.build()).execute().await;
        done.map_err(failed("set the MAC of"))?;
        for (address, mac) in self.neighbours.get(&ifindex).into_iter().flatten() {
            neighbours.entry(*address).or_insert(*mac);
        }
        let count = neighbours::put_back(handle, ifindex, &neighbours).await;
        let count = count.map_err(failed("put back the neighbours of"))?;
        if count > 0 {
            info!(
                device = name,
                count, "put back the neighbours that the kernel forgets when a MAC is set"
            );
        }
        Ok(())
    }

    fn report_set(&mut self, name: &str, done: &Result<(), VtepError>) {
        self.kernel = done.as_ref().err().map(|error| chain(error));
        if done.is_err() {
            self.keeper.failed(name, self.now());
        }
    }

    /// Starts to write the records. The loop does not wait for the disk.
    fn save(&mut self) {
        self.save_at = None;
        let records: BTreeMap<String, Mac> = self.keeper.records();
        let mut disk = Directory::new(&self.state_dir);
        self.saving = Some(tokio::task::spawn_blocking(move || {
            record::save(&mut disk, &records)
        }));
    }

    /// Publishes the report, and logs alarms that are new.
    fn publish(&self) {
        let mut report = self.keeper.report();
        let disk = self.disk.iter();
        let disk = disk.map(|error| {
            format!("{error}: until it is written, the node's own devices would have other MACs after a reboot")
        });
        let problems = [&self.damage, &self.kernel].into_iter().flatten();
        report.alarms.extend(problems.cloned().chain(disk));
        self.reports.send_if_modified(|known| {
            for alarm in &report.alarms {
                if !known.alarms.contains(alarm) {
                    warn!(alarm, "the node's own devices");
                }
            }
            let is_new = *known != report;
            *known = report;
            is_new
        });
    }
}

/// Waits until the records are written. Cancel safe.
async fn saved(saving: &mut Option<JoinHandle<Result<(), PathError>>>) -> Result<(), String> {
    match saving {
        None => std::future::pending().await,
        Some(task) => match task.await {
            Ok(result) => result.map_err(|error| chain(&error)),
            Err(error) => Err(error.to_string()),
        },
    }
}

pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, VtepError> {
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Ok(found) => Ok(found),
        Err(rtnetlink::Error::NetlinkError(answer)) if answer.raw_code() == -libc::ENODEV => {
            Ok(None)
        }
        Err(source) => Err(VtepError::Device {
            operation: "find",
            device: name.to_owned(),
            source,
        }),
    }
}

async fn has_ports(handle: &Handle, bridge: u32) -> Result<bool, VtepError> {
    let is_port = LinkAttribute::Controller(bridge);
    let mut request = handle.link().get();
    request.message_mut().attributes.push(is_port.clone());
    let links = request.execute().try_collect().await;
    let links: Vec<LinkMessage> = links.map_err(|source| NodeError::List {
        what: "devices",
        source,
    })?;
    // An old kernel ignores the filter and lists all devices.
    Ok(links.iter().any(|link| link.attributes.contains(&is_port)))
}

async fn set_local(
    handle: &Handle,
    name: &str,
    ifindex: u32,
    vni: u32,
    local: IpAddr,
) -> Result<(), VtepError> {
    let message = LinkMessageBuilder::<LinkVxlan>::new(name)
        .index(ifindex)
        .id(vni);
    let message = match local {
        IpAddr::V4(local) => message.local(local),
        IpAddr::V6(local) => message.local6(local),
    };
    let done = handle.link().change(message.build()).execute().await;
    done.map_err(|source| VtepError::Device {
        operation: "set the local address of",
        device: name.to_owned(),
        source,
    })
}

/// A device as netlink describes it; `None` if it has no MAC.
pub(super) fn as_device(message: &LinkMessage, has_ports: bool) -> Option<Device> {
    let attributes = message.attributes.iter();
    let mac = attributes.clone().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })?;
    let infos = attributes.filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let mut what = What::Other;
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        underlay: None,
    };
    for info in infos.flatten() {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => what = What::Bridge { has_ports },
            LinkInfo::Data(InfoData::Vxlan(infos)) => {
                for info in infos {
                    match info {
                        InfoVxlan::Id(id) => vxlan.vni = *id,
                        InfoVxlan::Port(port) => vxlan.port = *port,
                        InfoVxlan::Local(local) => vxlan.local = Some((*local).into()),
                        InfoVxlan::Local6(local) => vxlan.local = Some((*local).into()),
                        InfoVxlan::Link(index) => vxlan.underlay = Some(*index),
                        _ => {}
                    }
                }
                what = What::Vxlan(vxlan);
            }
            _ => {}
        }
    }
    // An unspecified address or index means that the device is not bound.
    if let What::Vxlan(vxlan) = &mut what {
        vxlan.local = vxlan.local.filter(|local| !local.is_unspecified());
        vxlan.underlay = vxlan.underlay.filter(|&index| index != 0);
    }
    Some(Device {
        ifindex: message.header.index,
        mac,
        what,
    })
}
