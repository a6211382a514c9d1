//! The nameservers of this machine. A Service that has the address of one could answer every lookup of the node, also
//! the agent's own for its apiserver.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::host::disk::errand::Errand;
use crate::host::disk::read_text;

/// What this process asks (resolv.conf(5)), and what the stubs of systemd-resolved and NetworkManager ask. The latter
/// files exist only if the agent sees the host's `/run`.
const FILES: [&str; 3] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];
/// The most bytes of a file that are read. The C library reads three nameservers.
const LARGEST: u64 = 64 << 10;

/// How often the files are read again: nothing reports that they have changed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Reads the nameservers.
type Read = Arc<dyn Fn() -> BTreeSet<IpAddr> + Send + Sync>;

/// Reads them repeatedly, beside the loop, because the disk may not answer.
pub(super) struct Nameservers {
    read: Read,
    /// The result of the last reading; none before the first [`Self::get`].
    known: BTreeSet<IpAddr>,
    reading: Errand<BTreeSet<IpAddr>>,
    look_again: Interval,
}

impl Nameservers {
    /// The nameservers of this machine. Must be called inside a tokio runtime.
    pub(super) fn new() -> Self {
        Self::read_by(Arc::new(nameservers))
    }

    fn read_by(read: Read) -> Self {
        let mut look_again = interval(LOOK_AGAIN);
        look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            read,
            known: BTreeSet::new(),
            reading: Errand::default(),
            look_again,
        }
    }

    /// Waits until they change. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            tokio::select! {
                _ = self.look_again.tick() => {
                    let read = Arc::clone(&self.read);
                    self.reading.begin(move || read());
                }
                found = self.reading.late() => {
                    if let Some(found) = found && found != self.known {
                        self.known = found;
                        return;
                    }
                }
            }
        }
    }

    /// Reads them now; if the disk does not answer, returns the result of the last reading.
    pub(super) async fn get(&mut self) -> BTreeSet<IpAddr> {
        let read = Arc::clone(&self.read);
        if let Some(found) = self.reading.run(move || read()).await {
            self.known = found;
        }
        self.known.clone()
    }
}

/// Reads the files. A file that cannot be read has no nameserver: a process that cannot read it asks loopback.
fn nameservers() -> BTreeSet<IpAddr> {
    let texts = FILES
        .into_iter()
        .filter_map(|path| read_text(Path::new(path), LARGEST).ok());
    texts.flat_map(|text| named(&text)).collect()
}

/// The addresses of lines `nameserver ADDRESS`, without the `%SCOPE` of link-local ones.
fn named(text: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let is_one = words.next() == Some("nameserver");
        let bare = words.next().filter(|_| is_one)?.split('%').next()?;
        bare.parse::<IpAddr>().ok().map(|one| one.to_canonical())
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use tokio::time::{Instant, timeout};

    use super::*;

    /// The present text of the files, and how often they were read.
    type Files = Arc<Mutex<(&'static str, u32)>>;

    fn say(files: &Files, text: &'static str) {
        files.lock().unwrap().0 = text;
    }

    fn reading(files: &Files) -> Nameservers {
        let files = Arc::clone(files);
        Nameservers::read_by(Arc::new(move || {
            let mut files = files.lock().unwrap();
            files.1 += 1;
            named(files.0)
        }))
    }

    fn one(address: &str) -> BTreeSet<IpAddr> {
        [address.parse().unwrap()].into()
    }

    #[tokio::test(start_paused = true)]
    async fn another_nameserver_is_known_within_half_a_minute_whatever_else_the_loop_does() {
        let files = Files::default();
        say(&files, "nameserver 192.0.2.53\n");
        let mut nameservers = reading(&files);
        nameservers.changed().await;
        assert_eq!(nameservers.known, one("192.0.2.53"));
        let begun = Instant::now();
        let (mut changed, minutes) = (Vec::new(), 10 * Duration::from_secs(60));
        while begun.elapsed() < minutes {
            if begun.elapsed() > minutes / 2 {
                say(&files, "nameserver 192.0.2.54\n");
            }
            // Another branch of the loop is ready four times a second, and drops this future.
            let turn = Duration::from_millis(250);
            if timeout(turn, nameservers.changed()).await.is_ok() {
                changed.push(begun.elapsed());
            }
            nameservers.reading.settle();
        }
        let [at] = *changed else {
            panic!("{changed:?}");
        };
        assert!(
            at - minutes / 2 <= LOOK_AGAIN + Duration::from_secs(1),
            "{at:?}"
        );
        let times = files.lock().unwrap().1;
        assert!((19..=22).contains(&times), "{times}");
        assert_eq!(nameservers.known, one("192.0.2.54"));
    }

    #[tokio::test]
    async fn nameservers_that_were_read_last_count_while_the_disk_does_not_answer() {
        let (answer, disk) = mpsc::channel();
        let disk = Mutex::new(disk);
        let mut nameservers = Nameservers::read_by(Arc::new(move || {
            disk.lock().unwrap().recv().unwrap_or_default()
        }));
        answer.send(one("192.0.2.53")).unwrap();
        nameservers.changed().await;
        assert_eq!(nameservers.get().await, one("192.0.2.53"), "it is silent");
        answer.send(one("192.0.2.54")).unwrap();
        nameservers.changed().await;
        assert_eq!(nameservers.known, one("192.0.2.54"));
    }

    #[test]
    fn nameservers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 192.0.2.1\nsearch lan nameserver 192.0.2.2\nnameserver\t192.0.2.53 # ours\nnameserver 2001:db8::53\n\
            nameserver fe80::1%eth0\nnameserver ::ffff:192.0.2.54\nnameserver dns.example\nnameserver\noptions timeout:1\n";
        let found: Vec<String> = named(text).iter().map(IpAddr::to_string).collect();
        assert_eq!(
            found,
            ["192.0.2.53", "192.0.2.54", "2001:db8::53", "fe80::1"]
        );
    }
}
