//! The connections to one API, which is one server or several ways to the same hub: which task dials when, and what all
//! of them know.
//!
//! While no task gets through, one of them tries and the others wait for it, so that a fleet without its cloud costs
//! little. One of the connections, the lifeline, is probed: when it dies, all are taken for dead, and are made anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::Uri;
use socket2::SockRef;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, sleep_until};

use super::access::{Access, Files, Origin};
use super::resource::Resource;
use super::wire::{self, DialError, PROBE_AFTER, Wire};
use crate::source::hub::is_hub;
use crate::source::spec::Api;

/// Where YurtHub listens (openyurt cmd/yurthub/app/options): on loopback, and on its dummy interface.
const YURTHUB: [&str; 2] = ["http://127.0.0.1:10261", "http://169.254.2.1:10261"];
/// Where YurtHub lists the Pods of this node, as it last gave them to the kubelet (openyurt pkg/yurthub/otaupdate): on
/// loopback only, whichever of its addresses serves the API.
const YURTHUB_PODS_PORT: u16 = 10267;
/// Of YurtHub's dummy interface.
const DUMMY_ADDRESS: &str = "169.254.2.1";
/// The resource whose watch is the lifeline: every agent follows it, at all times.
const LIFELINE: Resource = Resource::Services;
/// The time in which a probe must be answered.
const PROBE_DELAY: Duration = Duration::from_millis(1_500);
/// Between two attempts while the way there is silent; the attempts themselves take time.
const PACE: Duration = Duration::from_millis(250);
/// The same while the other end refuses, doubling up to the second.
const FIRST_PACE: Duration = Duration::from_millis(500);
const LONGEST_PACE: Duration = Duration::from_secs(5);
/// The network may change all the time, for example when Pods' devices come and go: attempts have at least this
/// distance.
const MIN_PACE: Duration = Duration::from_millis(500);

/// So many attempts in a row may be given up because the network changed meanwhile.
const CUTS: u32 = 2;

/// The connections to one API, shared by the tasks that read from it.
pub(super) struct Connection {
    access: Access,
    files: Files,
    /// Addresses that are tried in turn.
    servers: Vec<Server>,
    /// Index of the one in use.
    current: AtomicUsize,
    /// `--source` names YurtHub.
    is_named_hub: bool,
    /// The last connection was to YurtHub.
    is_hub: AtomicBool,
    /// Where YurtHub lists Pods itself.
    pods: Option<Origin>,
    /// The last attempt succeeded.
    is_reached: AtomicBool,
    /// Held by the task that tries while the last attempt failed.
    door: AsyncMutex<Pace>,
    /// Counts the events that make another attempt worthwhile at once: a server that answers again, a network that has
    /// changed.
    news: watch::Sender<u64>,
    /// Counts how often all connections were found to be dead.
    deaths: watch::Sender<u64>,
    /// Counts how often an apiserver's versions were found to have gone back.
    rewinds: watch::Sender<u64>,
    lifeline: Mutex<Lifeline>,
}

struct Server {
    plain: Origin,
    /// With the ServiceAccount's token, for what YurtHub may not read by its own rights.
    with_token: Origin,
}

/// When the next attempt is due.
struct Pace {
    due: Instant,
    /// When the last one began, and the count of news at that time.
    last: Option<(Instant, Counts)>,
    wait: Duration,
}

/// The counts of news and of deaths.
type Counts = (u64, u64);

#[derive(Default)]
struct Lifeline {
    socket: Weak<OwnedFd>,
    /// When it, or an earlier one, was heard from.
    heard: Option<Instant>,
    /// Where its packets leave from.
    from: Option<IpAddr>,
    /// It is not the first one.
    is_renewed: bool,
}

/// What a task has heard. It is a state: what happens while the task does not wait is reported at its next wait.
#[derive(Clone)]
pub(super) struct Told {
    news: watch::Receiver<u64>,
    deaths: watch::Receiver<u64>,
    rewinds: watch::Receiver<u64>,
}

/// What makes a request that is under way useless.
pub(super) enum Loss {
    /// All connections are taken for dead.
    Connections,
    /// Versions have gone back.
    Versions,
}

impl Told {
    /// Waits for something that makes another attempt worthwhile; returns whether all connections are taken for dead.
    /// Safe to cancel.
    pub(super) async fn news(&mut self) -> bool {
        tokio::select! {
            biased;
            _gone = self.deaths.changed() => true,
            _gone = self.news.changed() => false,
        }
    }

    /// Waits until all connections are taken for dead or, for a task that goes on from a version, until versions have
    /// gone back. Safe to cancel.
    pub(super) async fn loss(&mut self, goes_on: bool) -> Loss {
        // The senders live as long as the task.
        tokio::select! {
            biased;
            _gone = self.deaths.changed() => Loss::Connections,
            _gone = self.rewinds.changed(), if goes_on => Loss::Versions,
        }
    }

    /// Marks all news so far as heard: it says nothing about the next attempt.
    pub(super) fn is_heard(&mut self) {
        self.news.mark_unchanged();
        self.has_died();
    }

    /// Marks all deaths so far as heard: all earlier connections were given up.
    pub(super) fn has_died(&mut self) {
        self.deaths.mark_unchanged();
    }

    /// Marks all rewinds so far as heard: what is known now is newer than they are.
    pub(super) fn is_current(&mut self) {
        self.rewinds.mark_unchanged();
    }
}

impl Connection {
    /// No server is asked before the first request.
    pub(super) fn new(api: &Api, is_hub: bool, access: Access) -> Self {
        let url = |url: &Uri, has_token| Origin::Url {
            url: url.clone(),
            has_token,
        };
        let alone = |origin: Origin| {
            vec![Server {
                with_token: origin.clone(),
                plain: origin,
            }]
        };
        let (servers, pods) = match api {
            Api::Inferred => (alone(Origin::Inferred), None),
            Api::Server(server) => (alone(url(server, true)), None),
            Api::Hub(hub) => {
                let urls = match hub {
                    Some(url) => vec![url.clone()],
                    None => YURTHUB.map(Uri::from_static).to_vec(),
                };
                let pods = urls.first().and_then(pods_url);
                let servers = urls.iter().map(|hub| Server {
                    plain: url(hub, false),
                    with_token: url(hub, true),
                });
                (servers.collect(), pods.map(|pods| url(&pods, false)))
            }
        };
        Self {
            access,
            files: Files::default(),
            servers,
            current: AtomicUsize::new(0),
            is_named_hub: matches!(api, Api::Hub(_)),
            is_hub: AtomicBool::new(is_hub),
            pods,
            is_reached: AtomicBool::new(true),
            door: AsyncMutex::new(Pace {
                due: Instant::now(),
                last: None,
                wait: FIRST_PACE,
            }),
            news: watch::Sender::new(0),
            deaths: watch::Sender::new(0),
            rewinds: watch::Sender::new(0),
            lifeline: Mutex::default(),
        }
    }

    /// Whether the server is YurtHub. A kubeconfig and a Pod's environment may name another server than before, or one
    /// that cannot be used, so the server that was dialled last counts.
    pub(super) fn is_hub(&self) -> bool {
        self.is_hub.load(Ordering::Relaxed)
    }

    /// Whether listing this node's Pods costs the uplink nothing; only YurtHub can do that.
    pub(super) fn lists_pods(&self) -> bool {
        self.pods.is_some()
    }

    /// A connection to the server that lists them.
    pub(super) async fn open_pods(&self) -> Result<Wire, DialError> {
        let Some(pods) = &self.pods else {
            return Err(DialError::NoHost {
                url: Uri::default(),
            });
        };
        Wire::dial(pods.way(&self.access, &self.files).await?, false).await
    }

    /// What happens from here on.
    pub(super) fn told(&self) -> Told {
        Told {
            news: self.news.subscribe(),
            deaths: self.deaths.subscribe(),
            rewinds: self.rewinds.subscribe(),
        }
    }

    /// A connection for a resource's requests. While no task gets through, this waits until it is this task's turn.
    pub(super) async fn open(&self, resource: Resource) -> Result<Wire, DialError> {
        let mut told = self.told();
        let mut cuts = 0;
        loop {
            if self.is_reached.load(Ordering::Relaxed) {
                let wire = self.dial(resource).await;
                return wire.inspect_err(|_| self.is_reached.store(false, Ordering::Relaxed));
            }
            let mut pace = self.door.lock().await;
            if self.is_reached.load(Ordering::Relaxed) {
                continue;
            }
            if pace.last.is_some_and(|(_, counts)| counts == self.counts()) {
                // Another task has tried meanwhile.
                told.is_heard();
            }
            tokio::select! {
                () = sleep_until(pace.due) => {}
                _is_death = told.news() => {}
            }
            if let Some((began, _)) = pace.last {
                sleep_until(began + MIN_PACE).await;
            }
            // This attempt takes account of all news so far.
            told.is_heard();
            pace.last = Some((Instant::now(), self.counts()));
            let result = tokio::select! {
                result = self.dial(resource) => result,
                // The network has changed, so this attempt says nothing. The number of such cuts is limited, because a
                // network may change all the time.
                _is_death = told.news(), if cuts < CUTS => {
                    cuts += 1;
                    continue;
                }
            };
            match &result {
                Ok(_) => {
                    pace.wait = FIRST_PACE;
                    self.is_reached.store(true, Ordering::Relaxed);
                    self.tell_news();
                }
                Err(error) if error.is_silence() => {
                    (pace.due, pace.wait) = (Instant::now() + PACE, FIRST_PACE);
                }
                Err(_) => {
                    let wait = pace.wait.mul_f64(0.75 + fastrand::f64() / 2.0);
                    pace.due = Instant::now() + wait;
                    pace.wait = (pace.wait * 2).min(LONGEST_PACE);
                }
            }
            return result;
        }
    }

    async fn dial(&self, resource: Resource) -> Result<Wire, DialError> {
        let index = self.current.load(Ordering::Relaxed) % self.servers.len().max(1);
        let Some(server) = self.servers.get(index) else {
            return Err(DialError::NoHost {
                url: Uri::default(),
            });
        };
        let origin = match resource.needs_token_at_hub() {
            true => &server.with_token,
            false => &server.plain,
        };
        let is_lifeline = resource == LIFELINE;
        let dialled = match origin.way(&self.access, &self.files).await {
            Ok(way) => {
                let is_hub = self.is_named_hub || is_hub(&way.url);
                self.is_hub.store(is_hub, Ordering::Relaxed);
                Wire::dial(way, is_lifeline).await
            }
            Err(error) => Err(error.into()),
        };
        if dialled.is_err() {
            self.current.fetch_add(1, Ordering::Relaxed);
        }
        let wire = dialled?;
        if is_lifeline {
            let local = SockRef::from(&**wire.socket()).local_addr();
            let from = local.ok().and_then(|local| local.as_socket());
            let mut lifeline = self.lifeline();
            lifeline.socket = Arc::downgrade(wire.socket());
            lifeline.from = from.map(|from| from.ip());
            if std::mem::replace(&mut lifeline.is_renewed, true) {
                // An apiserver that was away: earlier refusals, and resources that it lacked, are tried again.
                self.tell_news();
            }
        }
        Ok(wire)
    }

    fn lifeline(&self) -> std::sync::MutexGuard<'_, Lifeline> {
        self.lifeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> Counts {
        (*self.news.borrow(), *self.deaths.borrow())
    }

    fn tell_news(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// A connection of this resource has fallen silent. If it is the lifeline, all are taken for dead.
    pub(super) fn is_silent(&self, resource: Resource) {
        if resource == LIFELINE {
            // The last that is known of it.
            let _heard = self.heard();
            self.is_reached.store(false, Ordering::Relaxed);
            self.deaths.send_modify(|count| *count += 1);
        }
    }

    /// The apiserver's versions have gone back: what is known belongs to a past that it has lost.
    pub(super) fn has_rewound(&self) {
        self.rewinds.send_modify(|count| *count += 1);
    }

    /// When the other end of a lifeline was last heard from.
    pub(super) fn heard(&self) -> Option<Instant> {
        let mut lifeline = self.lifeline();
        let silence = lifeline
            .socket
            .upgrade()
            .and_then(|socket| wire::silence(&socket));
        let heard = silence.and_then(|silence| Instant::now().checked_sub(silence));
        lifeline.heard = lifeline.heard.max(heard);
        lifeline.heard
    }

    /// An address, a link or a route has changed: a connection that was silent, or would now leave from elsewhere, is
    /// made anew at once.
    pub(super) fn network_changed(&self) {
        if !self.is_reached.load(Ordering::Relaxed) {
            self.tell_news();
            return;
        }
        let (socket, from) = {
            let lifeline = self.lifeline();
            (lifeline.socket.upgrade(), lifeline.from)
        };
        let Some(socket) = socket else { return };
        let is_overdue = wire::silence(&socket).is_none_or(|past| past > PROBE_AFTER + PROBE_DELAY);
        let to = SockRef::from(&*socket).peer_addr().ok();
        let leaves_from = to.and_then(|to| source_address(to.as_socket()?));
        let is_elsewhere = leaves_from.is_some() && leaves_from != from;
        if is_overdue || is_elsewhere {
            self.is_silent(LIFELINE);
        }
    }
}

/// Where packets to this address leave from at present.
fn source_address(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    wire::own(SockRef::from(&socket));
    // This sends nothing.
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn pods_url(hub: &Uri) -> Option<Uri> {
    let host = match hub.host()? {
        DUMMY_ADDRESS => "127.0.0.1",
        host => host,
    };
    format!("http://{host}:{YURTHUB_PODS_PORT}").parse().ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::{join_all, select};
    use tokio::time::sleep;

    use super::*;

    /// When somebody was to be dialled, while all tasks want a connection, none is made, and the network changes so
    /// often.
    async fn dials(change_every: Duration, time: Duration) -> Vec<Duration> {
        let access = Access {
            ca_file: None,
            service_account: "/nowhere".into(),
            in_cluster: None,
            kubeconfig: Some("/nowhere".into()),
        };
        let connection = Connection::new(&Api::Inferred, false, access);
        let (begun, dials) = (Instant::now(), Cell::new(Vec::new()));
        let tasks = Resource::ALL.map(|resource| {
            let (connection, dials) = (&connection, &dials);
            async move {
                loop {
                    assert!(connection.open(resource).await.is_err());
                    let mut all = dials.take();
                    all.push(begun.elapsed());
                    dials.set(all);
                }
            }
        });
        let changes = async {
            while begun.elapsed() < time {
                sleep(change_every).await;
                connection.network_changed();
            }
        };
        select(Box::pin(join_all(tasks)), Box::pin(changes)).await;
        dials.take()
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_flaps_has_nobody_dialled_all_the_time() {
        let minute = Duration::from_secs(60);
        let dials = dials(Duration::from_millis(66), minute).await;
        // At first each task tries by itself.
        assert!((100..=140).contains(&dials.len()), "{}", dials.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_comes_back_has_a_server_dialled_at_once_and_once() {
        let every = Duration::from_secs(20);
        let dials = dials(every, 5 * every).await;
        for change in 2..5 {
            let soon = |dial: &&Duration| {
                let since = dial.saturating_sub(change * every);
                **dial >= change * every && since <= MIN_PACE
            };
            assert_eq!(dials.iter().filter(soon).count(), 1, "{dials:?}");
        }
    }
}
