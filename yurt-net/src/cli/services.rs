//! `services`: prints what the kernel serves on this node: frontends, their clients, what happens to a new flow,
//! endpoints.
//!
//! It reads the pinned maps, so it shows what is in force, whether or not the agent runs and whatever the agent
//! believes. `plan` and `explain` say what should be in force, and why.

use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::names::{Frontend, Names, is_of, remark_line};
use super::verbs::VerbError;
use crate::config::flags::{Form, ServicesArgs};
use crate::dataplane::service::in_force::TableInForce;
use crate::host::columns::columns;
use crate::model::Protocol;
use crate::output::print;
use crate::plan::{
    FrontendKey, FrontendRow, KeyPort, MapImage, Outside, SELF_TEST_V4, SELF_TEST_V6,
};
use crate::table::Scope;
use crate::text;

/// How many endpoints of a row the short table shows.
const SHOWN_ENDPOINTS: usize = 4;
const NONE: &str = "-";

/// The object that `services -o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    /// Sorted by name; services without a known name come last.
    services: Vec<Row>,
    /// Whether programs are attached: otherwise nothing of this is in force.
    is_attached: bool,
    /// Why the names of Services do not come from the agent.
    remark: Option<String>,
}

/// One frontend, for some of its clients.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// `ns/name:port`; `None` if it is not known.
    service: Option<String>,
    /// It is of no Service: the agent dials it to see that it serves.
    is_self_test: bool,
    protocol: Protocol,
    frontend: SocketAddr,
    clients: Clients,
    verdict: Verdict,
    endpoints: Vec<SocketAddr>,
    /// The clients that are admitted; empty: all.
    source_ranges: Vec<IpNetwork>,
    /// 0 = no affinity.
    affinity_seconds: u32,
}

/// The clients that a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Clients {
    /// Processes in the node's own network namespace.
    Host,
    /// These and the Pods of this node.
    Node,
    /// Clients outside, served by the packet path.
    Outside,
    /// All of these.
    All,
}

/// What happens to a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Forward,
    Refuse,
    Drop,
    /// The maps hold nonsense here; the agent will write it again.
    Unknown,
}

impl Clients {
    fn of(scope: Scope, row: &FrontendRow) -> Self {
        match (scope, row.outside) {
            (Scope::External, _) => Self::Outside,
            (Scope::Internal, Outside::Same) => Self::All,
            (Scope::Internal, _) if row.is_node_only => Self::Host,
            (Scope::Internal, Outside::No | Outside::Apart) => Self::Node,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Node => "node",
            Self::Outside => "outside",
            Self::All => "all",
        }
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Refuse => "refuse",
            Self::Drop => "drop",
            Self::Unknown => "unknown",
        }
    }
}

impl Row {
    fn new(image: &MapImage, key: &FrontendKey, row: &FrontendRow) -> Option<Self> {
        let KeyPort::Port(scope, protocol, port) = key.port else {
            return None;
        };
        let service = image.services().get(&row.service);
        let set = service.and_then(|service| service.set.as_ref());
        let terms = set.and_then(|set| set.terms.as_deref());
        Some(Self {
            service: None,
            is_self_test: [SELF_TEST_V4.ip(), SELF_TEST_V6.ip()].contains(&key.address),
            protocol,
            frontend: SocketAddr::new(key.address, port),
            clients: Clients::of(scope, row),
            verdict: match set {
                None => Verdict::Unknown,
                Some(set) if !set.backends.is_empty() => Verdict::Forward,
                Some(_) if terms.is_some_and(|terms| terms.is_drop) => Verdict::Drop,
                Some(_) => Verdict::Refuse,
            },
            endpoints: set.map(|set| set.backends.to_vec()).unwrap_or_default(),
            source_ranges: set.map(|set| set.ranges().to_vec()).unwrap_or_default(),
            affinity_seconds: terms.map_or(0, |terms| terms.affinity_seconds),
        })
    }

    fn frontend(&self) -> Frontend {
        (self.frontend, self.protocol)
    }

    /// The order of rows: those without a name come last.
    fn order(&self) -> (bool, Option<&str>, Protocol, SocketAddr, Clients) {
        let name = self.service.as_deref();
        (
            name.is_none(),
            name,
            self.protocol,
            self.frontend,
            self.clients,
        )
    }

    fn columns(&self, shown: usize) -> [String; 6] {
        [
            match &self.service {
                Some(service) => service.clone(),
                None if self.is_self_test => "(self-test)".to_owned(),
                None => NONE.to_owned(),
            },
            self.protocol.to_string(),
            self.frontend.to_string(),
            self.clients.word().to_owned(),
            self.verdict.word().to_owned(),
            list(&self.endpoints, shown),
        ]
    }

    fn wide(&self) -> [String; 8] {
        let [service, protocol, frontend, clients, verdict, endpoints] = self.columns(usize::MAX);
        let affinity = match self.affinity_seconds {
            0 => NONE.to_owned(),
            seconds => format!("{seconds}s"),
        };
        let ranges = list(&self.source_ranges, usize::MAX);
        [
            service, protocol, frontend, clients, verdict, affinity, ranges, endpoints,
        ]
    }
}

fn list(all: &[impl ToString], shown: usize) -> String {
    let mut words: Vec<String> = all.iter().take(shown).map(ToString::to_string).collect();
    let more = all.len() - words.len();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    match &*words {
        [] => NONE.to_owned(),
        words => words.join(", "),
    }
}

impl Listing {
    /// The rows of the wanted Service, or all, with their names.
    fn new(table: &TableInForce, mut rows: Vec<Row>, names: Names, wanted: Option<&str>) -> Self {
        for row in &mut rows {
            row.service = names.known.get(&row.frontend()).cloned();
        }
        if let Some(wanted) = wanted {
            let is_wanted = |name: &String| is_of(name, wanted);
            rows.retain(|row| row.service.as_ref().is_some_and(is_wanted));
        }
        rows.sort_by(|one, other| one.order().cmp(&other.order()));
        Self {
            services: rows,
            is_attached: table.is_attached,
            remark: names.remark,
        }
    }

    fn table(&self, form: Form) -> String {
        let mut table = match form {
            Form::Wide => {
                let titles = [
                    "SERVICE",
                    "PROTOCOL",
                    "FRONTEND",
                    "CLIENTS",
                    "VERDICT",
                    "AFFINITY",
                    "RANGES",
                    "ENDPOINTS",
                ];
                columns(titles, self.services.iter().map(Row::wide))
            }
            Form::Table | Form::Json => {
                let titles = [
                    "SERVICE",
                    "PROTOCOL",
                    "FRONTEND",
                    "CLIENTS",
                    "VERDICT",
                    "ENDPOINTS",
                ];
                let rows = self.services.iter().map(|row| row.columns(SHOWN_ENDPOINTS));
                columns(titles, rows)
            }
        };
        if !self.is_attached {
            table += "no program is attached: nothing of this is in force (`yurt-net run` attaches them)\n";
        }
        table + &remark_line(self.remark.as_deref())
    }
}

fn rows(image: &MapImage) -> Vec<Row> {
    let rows = image.frontends().iter();
    rows.filter_map(|(key, row)| Row::new(image, key, row))
        .collect()
}

/// Prints the services. Reads only.
pub async fn services(args: &ServicesArgs) -> Result<(), VerbError> {
    let place = args.place.place();
    let Some(table) = TableInForce::read(&place.bpffs)? else {
        print(match args.output {
            Form::Json => "{\"services\":[],\"isAttached\":false,\"remark\":null}\n",
            Form::Table | Form::Wide => {
                "no Service is in the kernel: `yurt-net run` puts them there\n"
            }
        })?;
        return Ok(());
    };
    let rows = rows(&table.image);
    let frontends = rows.iter().map(Row::frontend).collect();
    let names = match args.service {
        Some(_) => Names::needed(&place, &frontends).await?,
        None => Names::of(&place, &frontends).await,
    };
    let listing = Listing::new(&table, rows, names, args.service.as_deref());
    match (args.output, &args.service) {
        (Form::Json, _) => print(text::json(&listing)? + "\n")?,
        (_, Some(wanted)) if listing.services.is_empty() => print(format!(
            "the kernel has no frontend of {}: `yurt-net plan` and `yurt-net status` say why\n",
            text::name(wanted)
        ))?,
        (form, _) => print(listing.table(form))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::model::AddressFamily;
    use std::collections::BTreeMap;

    use crate::plan::{Capacity, Observed, ServedSet, ServiceImage, Terms};

    use super::*;

    const CAPACITY: Capacity = Capacity {
        frontends4: 16,
        frontends6: 16,
        services: 16,
        slots4: 64,
        slots6: 16,
    };

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The maps of a node: a Service with six endpoints for all clients, one that drops clients outside, one that
    /// refuses, and one with a damaged set.
    fn table() -> TableInForce {
        let row = |service, outside| FrontendRow {
            service,
            outside,
            ..FrontendRow::default()
        };
        let key = |scope, to: &str| {
            let to = at(to);
            let port = KeyPort::Port(scope, Protocol::Tcp, to.port());
            FrontendKey {
                address: to.ip(),
                port,
            }
        };
        let known = FrontendKey {
            address: at("10.96.0.10:0").ip(),
            port: KeyPort::Any,
        };
        let set = |backends: std::ops::Range<u8>, terms| {
            let backends = backends.map(|host| at(&format!("10.244.1.{host}:8080")));
            ServedSet::new(backends.collect(), terms)
        };
        let image = |base, set| ServiceImage {
            family: AddressFamily::V4,
            base,
            set,
        };
        let terms = Terms {
            ranges: vec!["192.0.2.0/24".parse().unwrap()],
            affinity_seconds: 60,
            ..Terms::default()
        };
        let drop = Terms {
            is_drop: true,
            ..Terms::default()
        };
        let observed = Observed {
            frontends: BTreeMap::from([
                (known, FrontendRow::default()),
                (key(Scope::Internal, "10.96.0.10:80"), row(1, Outside::Same)),
                (
                    key(Scope::Internal, "192.0.2.1:30080"),
                    row(1, Outside::Apart),
                ),
                (key(Scope::External, "192.0.2.1:30080"), row(2, Outside::No)),
                (key(Scope::Internal, "10.96.0.9:80"), row(3, Outside::No)),
                (key(Scope::Internal, "10.96.0.8:80"), row(4, Outside::No)),
            ]),
            services: BTreeMap::from([
                (1, image(0, Some(set(1..7, terms)))),
                (2, image(0, Some(set(0..0, drop)))),
                (3, image(0, Some(set(0..0, Terms::default())))),
                (4, image(60, None)),
            ]),
            ..Observed::default()
        };
        TableInForce {
            image: MapImage::observed(CAPACITY, observed),
            is_attached: true,
        }
    }

    fn names() -> Names {
        let of = |to: &str, name: &str| ((at(to), Protocol::Tcp), name.to_owned());
        Names {
            known: BTreeMap::from([
                of("10.96.0.10:80", "shop/web:http"),
                of("192.0.2.1:30080", "shop/web:http"),
                of("10.96.0.9:80", "shop/api\u{1b}"),
            ]),
            remark: None,
        }
    }

    fn listing(table: &TableInForce, wanted: Option<&str>) -> Listing {
        Listing::new(table, rows(&table.image), names(), wanted)
    }

    #[test]
    fn each_frontend_is_shown_with_whom_it_is_for_and_what_becomes_of_them() {
        let mut table = table();
        let expected = "\
SERVICE         PROTOCOL  FRONTEND         CLIENTS  VERDICT  ENDPOINTS
shop/api\\u{1b}  TCP       10.96.0.9:80     node     refuse   -
shop/web:http   TCP       10.96.0.10:80    all      forward  10.244.1.1:8080, 10.244.1.2:8080, 10.244.1.3:8080, 10.244.1.4:8080, 2 more
shop/web:http   TCP       192.0.2.1:30080  node     forward  10.244.1.1:8080, 10.244.1.2:8080, 10.244.1.3:8080, 10.244.1.4:8080, 2 more
shop/web:http   TCP       192.0.2.1:30080  outside  drop     -
-               TCP       10.96.0.8:80     node     unknown  -
";
        assert_eq!(listing(&table, None).table(Form::Table), expected);
        table.is_attached = false;
        let told = listing(&table, Some("shop/api\u{1b}")).table(Form::Table);
        assert!(told.contains("nothing of this is in force"), "{told}");
        assert_eq!(told.lines().count(), 3, "{told}");
    }

    #[test]
    fn the_wide_table_and_json_have_all_endpoints_and_the_terms() {
        let listing = listing(&table(), Some("shop/web:http"));
        let wide = listing.table(Form::Wide);
        assert!(
            wide.contains("60s       192.0.2.0/24  10.244.1.1:8080, "),
            "{wide}"
        );
        assert!(wide.contains(", 10.244.1.6:8080\n"), "{wide}");
        let json: serde_json::Value = serde_json::from_str(&text::json(&listing).unwrap()).unwrap();
        assert_eq!(json["services"][0]["service"], "shop/web:http");
        assert_eq!(
            json["services"][0]["endpoints"].as_array().map(Vec::len),
            Some(6)
        );
        assert_eq!(json["services"][0]["affinitySeconds"], 60);
        assert_eq!(json["services"][2]["clients"], "outside");
        assert_eq!(json["services"][2]["verdict"], "drop");
        assert_eq!(json["services"].as_array().map(Vec::len), Some(3));
    }
}
