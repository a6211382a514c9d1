//! Exchanges whole sets of endpoints under clients that connect all the time.
//!
//! The flipper announces an epoch, publishes its set, and declares it published. A client looks at the published epoch
//! before it connects and at the announced one afterwards: the backend that answers must be in the set of an epoch in
//! between. The sets of successive epochs have nothing in common, so a backend that was withdrawn cannot be mistaken
//! for one that was not. Every backend listens throughout, so a wrong one is seen and not refused.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde::Deserialize;
use serde::Serialize;
use yurt_net::dataplane::Dataplane;
use yurt_net::dataplane::attach::cleanup::cleanup;
use yurt_net::dataplane::service;
use yurt_net::plan::Capacity;
use yurt_net::plan::MapImage;
use yurt_net::plan::Op;
use yurt_net::plan::plan;
use yurt_net::table::ServiceTable;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Series;
use super::stats::Random;
use super::tables;
use super::universe;
use super::universe::Worker;
use super::worker::Ends;
use super::worker::Stage;
use super::worker::Task;
use crate::lab::Lab;
use crate::lab::Pod;

/// Name of the measure.
pub const NAME: &str = "flips";

/// Clients, each with a Service of its own.
const CLIENTS: u16 = 2;
/// The last parts of the backends' addresses.
const BACKENDS: [u8; 8] = [200, 201, 202, 203, 204, 205, 206, 207];
/// How many sets of two backends follow each other.
const SETS: u64 = 4;
const LONGEST_PAUSE_US: usize = 400;
/// Room for a few sets only, so that ranges are reused all the time: reuse could mislead a reader.
const CAPACITY: Capacity = Capacity {
    slots4: 64,
    ..tables::CAPACITY
};

/// What a client has seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    connects: u64,
    /// Connects during which nothing was published: only one set was right.
    settled: u64,
    /// Connects during which so many epochs passed that every backend was right at some time.
    undecided: u64,
    withdrawn: u64,
    refused: u64,
    timed_out: u64,
}

/// Runs the measure on a node of its own.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let node = lab.node(NAME)?;
    let mut dataplane = tables::dataplane(&node, CAPACITY)?;
    let mut image = MapImage::empty(CAPACITY);
    let path = lab.dir().join("epochs");
    let epochs = Epochs::create(&path)?;

    let servers = (0..CLIENTS)
        .map(|n| {
            let server = node.pod(&format!("server-{n}"))?;
            // Each client has backends of its own, with addresses tens apart.
            let shift = u8::try_from(n * 20)?;
            let hosts = BACKENDS.map(|host| host + shift);
            let addresses = universe::server_addresses(&server, &hosts)?;
            Ok((server, addresses[1..].to_vec()))
        })
        .collect::<Result<Vec<_>>>()?;
    let table_of = |epoch| {
        let services = (0u16..).zip(&servers).map(|(n, (_, backends))| {
            let at = SocketAddrV4::new(vip(n), 80);
            tables::entry(&format!("flip-{n}"), at, &set(backends, epoch))
        });
        tables::table(services.collect(), true)
    };
    let mut flipper = Flipper {
        dataplane: &mut dataplane,
        image: &mut image,
        graces: 0,
    };
    flipper.publish(&table_of(0)?)?;
    flipper.dataplane.activate()?;

    let mut clients = (0u16..)
        .zip(&servers)
        .map(|(n, (server, backends))| {
            start_client(
                &node.pod(&format!("client-{n}"))?,
                n,
                server,
                backends,
                &path,
            )
        })
        .collect::<Result<Vec<_>>>()?;
    let flips = options.rounds(10_000) as u64;
    let times = flip(&mut flipper, flips, &table_of, &epochs);
    epochs.stop();
    let times = times?;
    let tallies = clients
        .iter_mut()
        .map(Worker::reply)
        .collect::<Result<Vec<Tally>>>()?;
    let graces = flipper.graces;
    drop(dataplane);
    cleanup(&node.bpffs())?;

    let count = |field: fn(&Tally) -> u64| -> Vec<f64> {
        let total: u64 = tallies.iter().map(field).sum();
        vec![f64::from(u32::try_from(total).unwrap_or(u32::MAX))]
    };
    ensure!(count(|it| it.settled)[0] > 0.0, "no connect was decisive");
    let none = |what: &str, field| Claim::new(what, "connects", count(field)).at_most(0.0);
    Ok(Measure {
        name: NAME,
        title: "Endpoint flips under constant connects",
        method: "The whole endpoint set of two Services is exchanged again and again, with pauses of up \
                 to 400 us; two clients connect without a pause. A backend counts as withdrawn when it \
                 is in no set that was in force between the client's look at the published epoch before \
                 its connect and at the announced one after.",
        unit: "us",
        series: vec![Series::new("plan and apply of a flip", &times)],
        claims: vec![
            none("to a withdrawn backend", |it| it.withdrawn),
            none("refused", |it| it.refused),
            none("timed out", |it| it.timed_out),
            Claim::new("flips", "flips", vec![flips as f64]),
            Claim::new("grace periods", "", vec![graces as f64]),
            Claim::new("connects", "connects", count(|it| it.connects)),
            Claim::new("  with one right set", "connects", count(|it| it.settled)),
            Claim::new("  undecided", "connects", count(|it| it.undecided)),
        ],
    })
}

fn start_client(
    pod: &Pod,
    number: u16,
    server: &Pod,
    backends: &[SocketAddrV4],
    epochs: &Path,
) -> Result<Worker> {
    let ends = Ends {
        server_netns: server.netns().path().into(),
        server_port: backends.first().context("no backend")?.port(),
        direct: backends.to_vec(),
        dial: vec![SocketAddrV4::new(vip(number), 80)],
        dial_udp: SocketAddrV4::new(vip(number), 80),
        cpu: usize::from(number) % universe::cpus(),
    };
    let epochs = epochs.to_owned();
    Worker::start(pod, &Task::Flips { ends, epochs })
}

fn vip(client: u16) -> Ipv4Addr {
    universe::cluster_ip(usize::from(client))
}

/// The two backends of an epoch.
fn set(backends: &[SocketAddrV4], epoch: u64) -> Vec<SocketAddrV4> {
    let of_epoch = |(index, _): &(u64, _)| index / 2 == epoch % SETS;
    (0u64..)
        .zip(backends)
        .filter(of_epoch)
        .map(|(_, at)| *at)
        .collect()
}

struct Flipper<'a> {
    dataplane: &'a mut service::BpfDataplane,
    image: &'a mut MapImage,
    graces: usize,
}

impl Flipper<'_> {
    fn publish(&mut self, table: &ServiceTable) -> Result<()> {
        let writes = plan(table, self.image);
        ensure!(writes.refused.is_empty(), "a flip does not fit");
        self.graces += writes.ops.iter().filter(|op| **op == Op::Grace).count();
        self.dataplane.apply(&writes)?;
        Ok(())
    }
}

/// Microseconds of every flip.
fn flip(
    flipper: &mut Flipper<'_>,
    flips: u64,
    table_of: &dyn Fn(u64) -> Result<ServiceTable>,
    epochs: &Epochs,
) -> Result<Vec<f64>> {
    let mut random = Random(flips);
    let mut times = Vec::new();
    for epoch in 1..=flips {
        let table = table_of(epoch)?;
        epochs.announced().store(epoch, Ordering::SeqCst);
        let start = Instant::now();
        flipper.publish(&table)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        epochs.published().store(epoch, Ordering::SeqCst);
        thread::sleep(Duration::from_micros(random.below(LONGEST_PAUSE_US) as u64));
    }
    Ok(times)
}

/// A client's work.
pub fn dial_until_told(ends: &Ends, path: &Path) -> Result<Tally> {
    let stage = Stage::new(ends)?;
    let epochs = Epochs::open(path)?;
    let mut tally = Tally::default();
    while !epochs.is_stopped() {
        let from = epochs.published().load(Ordering::SeqCst);
        let answer = stage.dial()?;
        let to = epochs.announced().load(Ordering::SeqCst);
        tally.connects += 1;
        match answer {
            Ok(backend) => {
                let is_right = (from..=to).any(|epoch| set(&ends.direct, epoch).contains(&backend));
                tally.withdrawn += u64::from(!is_right);
                tally.settled += u64::from(from == to);
                tally.undecided += u64::from(to - from >= SETS - 1);
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ECONNREFUSED) => tally.refused += 1,
                Some(libc::ETIMEDOUT | libc::EINPROGRESS | libc::EAGAIN) => tally.timed_out += 1,
                _ => bail!("connect: {error}"),
            },
        }
    }
    Ok(tally)
}

/// Three words that the flipper and the clients share.
struct Epochs(NonNull<[AtomicU64; 3]>);

impl Epochs {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        file.set_len(4096)?;
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let size = size_of::<[AtomicU64; 3]>();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (shared, fd) = (libc::MAP_SHARED, file.as_raw_fd());
        // SAFETY: a new mapping, inside the file's length.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), size, access, shared, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("map the epochs");
        }
        Ok(Self(NonNull::new(at.cast()).context("map the epochs")?))
    }

    fn words(&self) -> &[AtomicU64; 3] {
        // SAFETY: mapped until dropped, aligned to a page, and only ever accessed as atomics.
        unsafe { self.0.as_ref() }
    }

    fn announced(&self) -> &AtomicU64 {
        &self.words()[0]
    }

    fn published(&self) -> &AtomicU64 {
        &self.words()[1]
    }

    fn stop(&self) {
        self.words()[2].store(1, Ordering::SeqCst);
    }

    fn is_stopped(&self) -> bool {
        self.words()[2].load(Ordering::SeqCst) != 0
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length, and no reference outlives self.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<[AtomicU64; 3]>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_that_follow_each_other_have_nothing_in_common() {
        let backends: Vec<SocketAddrV4> = BACKENDS
            .iter()
            .map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, *host), 80))
            .collect();
        for epoch in 0..SETS * 2 {
            let (here, next) = (set(&backends, epoch), set(&backends, epoch + 1));
            assert_eq!(here.len(), 2);
            assert!(here.iter().all(|backend| !next.contains(backend)));
        }
    }
}
