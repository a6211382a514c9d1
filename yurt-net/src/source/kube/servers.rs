//! The addresses of apiservers and YurtHubs, so that Services can be kept off them.
//!
//! Addresses do not change, names do: at a boot before the link comes up no server may know them, and later a record
//! may have changed. So names are looked up again as long as the agent runs, and the last answer counts until there is
//! a new one. A kubeconfig is read again, too. All of this is done beside the loop, on one thread at a time, because
//! neither DNS nor a disk has to answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::time::{Instant, sleep_until};

use super::access::Access;
use crate::host::disk::errand::Errand;
use crate::source::spec::{Api, SourceSpec};

/// At the edge no nameserver may answer; the agent does not wait for one at its start.
const PATIENCE: Duration = Duration::from_secs(1);
/// How soon the next look is while something is not known, doubling up to the second.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The same while everything is known: records usually live for a minute.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// An address that is missing from the answers is kept for so long: many records name a few of their addresses at a
/// time.
const KEPT_FOR: Duration = Duration::from_secs(3600);

/// Looks up the addresses of a name, and adds this port.
type Lookup = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// A host, which is a name or an address, and a port.
type Place = (String, u16);

/// The addresses and ports that the sources, the kubeconfig and a Pod's environment name.
pub struct Servers {
    specs: Arc<[SourceSpec]>,
    access: Access,
    lookup: Lookup,
    looking: Errand<Look>,
    /// When the next look is; `None`: nothing that is known can change.
    due: Option<Instant>,
    looked_at: Instant,
    wait: Duration,
    /// Each address with the time at which an answer last had it.
    known: BTreeMap<Place, BTreeMap<SocketAddr, Instant>>,
    /// Names without an address.
    unknown: BTreeSet<String>,
}

/// What a look has found.
struct Look {
    answers: Vec<(Place, io::Result<Vec<SocketAddr>>)>,
    /// A kubeconfig is used, but cannot be read.
    lacks_kubeconfig: bool,
    /// Another setting says where that apiserver is.
    has_other: bool,
}

impl Servers {
    /// Looks for the first time, and waits a moment for the result.
    pub async fn start(specs: &[SourceSpec], access: &Access) -> Self {
        let lookup = |host: &str, port| Ok((host, port).to_socket_addrs()?.collect());
        let mut servers = Self::new(specs, access, Arc::new(lookup));
        servers.begin();
        if let Some(look) = servers.looking.answer(PATIENCE).await {
            servers.take_up(look);
        }
        servers
    }

    fn new(specs: &[SourceSpec], access: &Access, lookup: Lookup) -> Self {
        let now = Instant::now();
        Self {
            specs: specs.into(),
            access: access.clone(),
            lookup,
            looking: Errand::default(),
            due: Some(now),
            looked_at: now,
            wait: FIRST_WAIT,
            known: BTreeMap::new(),
            unknown: BTreeSet::new(),
        }
    }

    /// All addresses that are known.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let all = self.known.values().flat_map(BTreeMap::keys);
        let all: BTreeSet<SocketAddr> = all.copied().collect();
        all.into_iter().collect()
    }

    /// Waits until the known addresses change. Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            let due = self.due.filter(|_| self.looking.is_idle());
            let due = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.begin(),
                look = self.looking.late() => {
                    let Some(look) = look else {
                        self.due = Some(Instant::now() + LONGEST_WAIT);
                        continue;
                    };
                    if self.take_up(look) {
                        return;
                    }
                }
            }
        }
    }

    /// An address, a link or a route of this node has changed: a name that could not be looked up may be known now.
    pub fn network_changed(&mut self) {
        if !self.unknown.is_empty() {
            // Links may come and go all the time.
            let soon = self.looked_at + FIRST_WAIT;
            self.due = self.due.map(|due| due.min(soon));
            // The lookup that is under way began on the earlier network.
            self.wait = FIRST_WAIT;
        }
    }

    fn begin(&mut self) {
        let (specs, access) = (Arc::clone(&self.specs), self.access.clone());
        let lookup = Arc::clone(&self.lookup);
        self.looking.begin(move || look(&specs, &access, &*lookup));
    }

    /// Whether the known addresses have changed.
    fn take_up(&mut self, look: Look) -> bool {
        let before = self.addresses();
        let now = Instant::now();
        self.looked_at = now;
        if !look.lacks_kubeconfig {
            let named: BTreeSet<&Place> = look.answers.iter().map(|(place, _)| place).collect();
            self.known.retain(|place, _| named.contains(place));
            self.unknown
                .retain(|host| named.iter().any(|(name, _)| name == host));
        }
        let may_change = self.is_inferred() || look.answers.iter().any(|(place, _)| is_name(place));
        let mut is_whole = !look.lacks_kubeconfig || look.has_other;
        for (place, answer) in look.answers {
            let known = self.known.entry(place.clone()).or_default();
            match answer {
                Ok(addresses) => {
                    known.extend(addresses.into_iter().map(|address| (address, now)));
                    known.retain(|_, seen| now.duration_since(*seen) < KEPT_FOR);
                }
                Err(_) => is_whole = false,
            }
            let (is_known, (host, _)) = (!known.is_empty(), place);
            if is_known && self.unknown.remove(&host) {
                tracing::info!(
                    host,
                    "the apiserver's name is known now: its addresses are protected from Services"
                );
            } else if !is_known && self.unknown.insert(host.clone()) {
                tracing::warn!(
                    host,
                    "the apiserver's name cannot be looked up: until it can, its addresses are protected from Services only as endpoints of default/kubernetes, and by --protect"
                );
            }
        }
        let wait = match is_whole {
            true => LOOK_AGAIN,
            false => self.wait,
        };
        self.wait = match is_whole {
            true => FIRST_WAIT,
            false => (self.wait * 2).min(LONGEST_WAIT),
        };
        self.due = may_change.then(|| now + wait);
        self.addresses() != before
    }

    fn is_inferred(&self) -> bool {
        let inferred = SourceSpec::Kube(Api::Inferred);
        self.specs.contains(&inferred)
    }
}

fn is_name((host, _): &Place) -> bool {
    host.parse::<std::net::IpAddr>().is_err()
}

/// Reads what names servers, and looks names up. Without credentials: a plugin for them may be slow.
fn look(
    specs: &[SourceSpec],
    access: &Access,
    lookup: &dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> Look {
    let mut urls: Vec<Uri> = Vec::new();
    urls.extend(access.in_cluster.iter().filter_map(|url| url.parse().ok()));
    let mut lacks_kubeconfig = false;
    for spec in specs {
        match spec {
            SourceSpec::File(_) | SourceSpec::Kube(Api::Hub(None)) => {}
            SourceSpec::Kube(Api::Server(url) | Api::Hub(Some(url))) => urls.push(url.clone()),
            SourceSpec::Kube(Api::Inferred) => {
                let server = access.in_kubeconfig();
                lacks_kubeconfig |= server.is_none();
                urls.extend(server);
            }
        }
    }
    let places: BTreeSet<Place> = urls.iter().map(place).collect();
    let answers = places.into_iter().map(|place| {
        let answer = match place.0.parse() {
            Ok(address) => Ok(vec![SocketAddr::new(address, place.1)]),
            Err(_) => lookup(&place.0, place.1),
        };
        (place, answer)
    });
    Look {
        answers: answers.collect(),
        lacks_kubeconfig,
        has_other: access.in_cluster.is_some(),
    }
}

fn place(url: &Uri) -> Place {
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let default = match url.scheme_str() {
        Some("http") => 80,
        _ => 443,
    };
    (host.to_owned(), url.port_u16().unwrap_or(default))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn every_way_to_name_an_apiserver_says_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("config");
        let text = "{apiVersion: v1, kind: Config, current-context: a, \
            contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}], \
            clusters: [{name: a, cluster: {server: 'http://203.0.113.8:8080'}}]}";
        std::fs::write(&kubeconfig, text).unwrap();
        let access = Access {
            ca_file: None,
            service_account: dir.path().to_owned(),
            in_cluster: Some("https://[fd00:96::1]:443".to_owned()),
            kubeconfig: Some(kubeconfig),
        };
        let specs: Vec<SourceSpec> = [
            "kube:",
            "kube:https://203.0.113.6",
            "yurthub:http://127.0.0.1:10261",
            "yurthub:",
            "file:/x",
        ]
        .map(|spec| spec.parse().unwrap())
        .into();
        let mut servers = Servers::new(&specs, &access, Arc::new(|_, _| Ok(Vec::new())));
        servers.changed().await;
        let found: Vec<String> = servers
            .addresses()
            .iter()
            .map(ToString::to_string)
            .collect();
        let expected = [
            "127.0.0.1:10261",
            "203.0.113.6:443",
            "203.0.113.8:8080",
            "[fd00:96::1]:443",
        ];
        assert_eq!(found, expected);
    }

    /// What DNS says at present.
    #[derive(Clone, Default)]
    struct Dns(Arc<Mutex<Record>>);

    #[derive(Default)]
    struct Record {
        /// `None`: it does not answer.
        addresses: Option<Vec<&'static str>>,
        /// How often it was asked.
        asked: u32,
    }

    impl Dns {
        fn says(&self, addresses: Option<&[&'static str]>) {
            self.0.lock().unwrap().addresses = addresses.map(<[_]>::to_vec);
        }

        fn asked(&self) -> u32 {
            self.0.lock().unwrap().asked
        }

        /// Those who ask it for the addresses of `specs`.
        fn servers(&self, specs: &[&str], access: &Access) -> Servers {
            let specs: Vec<SourceSpec> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
            let dns = self.clone();
            let lookup = move |_: &str, port| {
                let mut record = dns.0.lock().unwrap();
                record.asked += 1;
                let addresses = record.addresses.as_ref().ok_or(io::ErrorKind::NotFound)?;
                let at = |text: &&str| SocketAddr::new(text.parse().unwrap(), port);
                Ok(addresses.iter().map(at).collect())
            };
            Servers::new(&specs, access, Arc::new(lookup))
        }
    }

    fn nowhere() -> Access {
        Access {
            ca_file: None,
            service_account: "/nonexistent".into(),
            in_cluster: None,
            kubeconfig: Some("/nonexistent/config".into()),
        }
    }

    const NAMED: &str = "kube:https://api.example:6443";

    fn known(servers: &Servers) -> Vec<String> {
        servers
            .addresses()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Lets this time pass, of which the loop spends much elsewhere: `changed` is dropped and begun anew.
    async fn pass(servers: &mut Servers, time: Duration) -> u32 {
        let until = Instant::now() + time;
        let mut changes = 0;
        while Instant::now() < until {
            let turn = Duration::from_millis(700);
            changes += u32::from(timeout(turn, servers.changed()).await.is_ok());
            servers.looking.settle();
        }
        changes
    }

    #[tokio::test(start_paused = true)]
    async fn an_apiservers_name_that_dns_learns_later_is_protected_from_then_on() {
        let dns = Dns::default();
        let mut servers = dns.servers(&[NAMED], &nowhere());
        assert_eq!(pass(&mut servers, 10 * LOOK_AGAIN).await, 0);
        assert_eq!(known(&servers), [""; 0]);
        // Not ever more often, though nobody answers.
        assert!((15..=30).contains(&dns.asked()), "{}", dns.asked());
        dns.says(Some(&["203.0.113.50"]));
        assert_eq!(pass(&mut servers, 2 * LONGEST_WAIT).await, 1);
        assert_eq!(known(&servers), ["203.0.113.50:6443"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_comes_has_names_looked_up_at_once_and_one_that_flaps_not_all_the_time() {
        let dns = Dns::default();
        let mut servers = dns.servers(&[NAMED], &nowhere());
        pass(&mut servers, 10 * LOOK_AGAIN).await;
        let asked = dns.asked();
        for _ in 0..100 {
            servers.network_changed();
            let turn = Duration::from_millis(50);
            assert!(timeout(turn, servers.changed()).await.is_err());
            servers.looking.settle();
        }
        assert!(dns.asked() - asked <= 6, "{}", dns.asked() - asked);
        dns.says(Some(&["203.0.113.50"]));
        servers.network_changed();
        assert_eq!(pass(&mut servers, 2 * FIRST_WAIT).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_comes_while_names_are_looked_up_has_them_looked_up_again_at_once() {
        let dns = Dns::default();
        let mut servers = dns.servers(&[NAMED], &nowhere());
        pass(&mut servers, 10 * LOOK_AGAIN).await;
        servers.begin();
        servers.looking.settle();
        dns.says(Some(&["203.0.113.50"]));
        servers.network_changed();
        assert_eq!(pass(&mut servers, 2 * FIRST_WAIT).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_answer_counts_while_dns_is_silent_and_another_record_is_taken_up() {
        let dns = Dns::default();
        dns.says(Some(&["203.0.113.50"]));
        let mut servers = dns.servers(&[NAMED], &nowhere());
        assert_eq!(pass(&mut servers, LOOK_AGAIN).await, 1);
        dns.says(None);
        assert_eq!(pass(&mut servers, 3 * KEPT_FOR).await, 0);
        assert_eq!(known(&servers), ["203.0.113.50:6443"]);
        dns.says(Some(&["203.0.113.51"]));
        pass(&mut servers, 2 * LOOK_AGAIN).await;
        assert!(known(&servers).contains(&"203.0.113.51:6443".to_owned()));
        // Of a name with many addresses an answer may name few.
        for turn in 0..10 {
            dns.says(Some(&["203.0.113.52", "203.0.113.53"][turn % 2..][..1]));
            pass(&mut servers, LOOK_AGAIN).await;
        }
        let both = ["203.0.113.52:6443", "203.0.113.53:6443"];
        assert!(
            both.iter()
                .all(|one| known(&servers).contains(&(*one).to_owned()))
        );
        // But none is kept for ever.
        dns.says(Some(&["203.0.113.54"]));
        pass(&mut servers, KEPT_FOR + 2 * LOOK_AGAIN).await;
        assert_eq!(known(&servers), ["203.0.113.54:6443"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kubeconfig_that_is_written_later_or_anew_names_the_server_that_is_protected() {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("config");
        let write = |server: &str| {
            let text = format!(
                "{{apiVersion: v1, kind: Config, current-context: a, \
                contexts: [{{name: a, context: {{cluster: a, user: a}}}}], users: [{{name: a, user: {{}}}}], \
                clusters: [{{name: a, cluster: {{server: '{server}'}}}}]}}"
            );
            std::fs::write(&kubeconfig, text).unwrap();
        };
        let access = Access {
            kubeconfig: Some(kubeconfig.clone()),
            ..nowhere()
        };
        let mut servers = Dns::default().servers(&["kube:"], &access);
        assert_eq!(pass(&mut servers, LOOK_AGAIN).await, 0);
        write("https://203.0.113.8:6443");
        pass(&mut servers, LOOK_AGAIN).await;
        assert_eq!(known(&servers), ["203.0.113.8:6443"]);
        std::fs::remove_file(&kubeconfig).unwrap();
        assert_eq!(pass(&mut servers, 3 * LOOK_AGAIN).await, 0, "it is kept");
        write("https://203.0.113.9:6443");
        pass(&mut servers, 2 * LOOK_AGAIN).await;
        assert_eq!(known(&servers), ["203.0.113.9:6443"]);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_never_looked_up_and_nothing_is_done_again_for_them() {
        let dns = Dns::default();
        let mut servers = dns.servers(&["kube:https://203.0.113.6", "file:/x"], &nowhere());
        assert_eq!(pass(&mut servers, LOOK_AGAIN).await, 1);
        assert_eq!((servers.due, dns.asked()), (None, 0));
    }
}
