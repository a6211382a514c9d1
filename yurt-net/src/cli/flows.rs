//! `flows`: prints the flow table of the packet path, with the names of what is in it.
//!
//! The table may hold millions of flows. They are read one by one, and only those that will be printed are kept.
//! Services are named by the agent or its checkpoint, Pods by the ledger of this node, devices by the kernel. What has
//! no known name is printed as a number.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::ledger::age;
use super::links::devices;
use super::names::{Frontend, Names, ledger, pods, remark_line};
use super::verbs::VerbError;
use crate::config::flags::{FlowsArgs, Output, To};
use crate::dataplane::flows::{FlowTables, PacketFlow, Stage};
use crate::explain::services::{Named, is_of};
use crate::host::columns::columns;
use crate::model::Protocol;
use crate::output::print;
use crate::text;

const NONE: &str = "-";

/// The object that `flows -o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    /// The latest first.
    flows: Vec<Row>,
    /// How many more there are than the limit.
    left_out: usize,
    /// Why the names of Services do not come from the agent.
    remark: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    protocol: String,
    client: SocketAddr,
    dialled: SocketAddr,
    /// `ns/name:port`; `None` if it is not known, or no longer has such a frontend.
    service: Option<String>,
    backend: SocketAddr,
    /// `ns/name` of the Pod of this node that has the backend's address.
    pod: Option<String>,
    /// The address and port that the backend sees as the client's; `None`: the client's own.
    masquerade: Option<SocketAddr>,
    /// The device that the flow came in by; `None` if it is gone.
    device: Option<String>,
    ifindex: u32,
    state: &'static str,
    /// Seconds since the last packet of the client.
    quiet_seconds: u32,
}

impl Row {
    fn columns(&self) -> [String; 10] {
        let or_none = |text: &Option<String>| text.as_deref().unwrap_or(NONE).to_owned();
        [
            self.protocol.clone(),
            self.client.to_string(),
            self.dialled.to_string(),
            or_none(&self.service),
            self.backend.to_string(),
            or_none(&self.pod),
            or_none(&self.masquerade.map(|address| address.to_string())),
            (self.device.clone()).unwrap_or_else(|| self.ifindex.to_string()),
            self.state.to_owned(),
            age(u64::from(self.quiet_seconds)),
        ]
    }
}

impl Listing {
    fn table(&self) -> String {
        let titles = [
            "PROTOCOL",
            "CLIENT",
            "DIALLED",
            "SERVICE",
            "BACKEND",
            "POD",
            "MASQUERADE",
            "DEVICE",
            "STATE",
            "QUIET",
        ];
        let mut table = columns(titles, self.flows.iter().map(Row::columns));
        if self.left_out > 0 {
            table += &format!(
                "and {} more: narrow them down with --from and --to, or raise --limit\n",
                self.left_out
            );
        }
        table + &remark_line(self.remark.as_deref())
    }
}

/// Of all flows that it is shown, keeps those that were quiet for the shortest time.
struct Latest {
    limit: usize,
    heap: BinaryHeap<Kept>,
    left_out: usize,
}

/// A flow, ordered by how long it was quiet.
struct Kept(PacketFlow);

impl Kept {
    fn key(&self) -> (u32, SocketAddr, SocketAddr) {
        (self.0.quiet_s, self.0.client, self.0.dialled)
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Kept {}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Latest {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            heap: BinaryHeap::new(),
            left_out: 0,
        }
    }

    fn see(&mut self, flow: PacketFlow) {
        self.heap.push(Kept(flow));
        if self.heap.len() > self.limit {
            self.heap.pop();
            self.left_out += 1;
        }
    }

    fn into_flows(self) -> Vec<PacketFlow> {
        let sorted = self.heap.into_sorted_vec().into_iter();
        sorted.map(|Kept(flow)| flow).collect()
    }
}

/// Whether a flow is asked for. `services`: the frontends of the Service that `--to` names.
fn is_wanted(args: &FlowsArgs, services: &BTreeSet<Frontend>, flow: &PacketFlow) -> bool {
    let is_from = args
        .from
        .is_none_or(|network| network.contains(flow.client.ip()));
    let mut ends = [flow.dialled, flow.backend].into_iter();
    is_from
        && match &args.to {
            None => true,
            Some(To::Network(network)) => ends.any(|end| network.contains(end.ip())),
            Some(To::Port(port)) => ends.any(|end| end == *port),
            Some(To::Service(_)) => frontend(flow).is_some_and(|at| services.contains(&at)),
        }
}

fn frontend(flow: &PacketFlow) -> Option<Frontend> {
    let protocol = Protocol::of_number(flow.protocol)?;
    Some((flow.dialled, protocol))
}

fn row(
    flow: &PacketFlow,
    names: &BTreeMap<Frontend, Named>,
    pods: &BTreeMap<IpAddr, String>,
    devices: &BTreeMap<u32, String>,
) -> Row {
    let protocol = Protocol::of_number(flow.protocol);
    Row {
        protocol: protocol.map_or_else(|| flow.protocol.to_string(), |known| known.to_string()),
        client: flow.client,
        dialled: flow.dialled,
        service: frontend(flow).and_then(|at| Some(names.get(&at)?.service.clone())),
        backend: flow.backend,
        pod: pods.get(&flow.backend.ip()).cloned(),
        masquerade: flow.masquerade,
        device: devices.get(&flow.device).cloned(),
        ifindex: flow.device,
        state: match flow.stage {
            Stage::Opening => "opening",
            Stage::Up => "up",
            Stage::Closing => "closing",
            Stage::Over => "over",
        },
        quiet_seconds: flow.quiet_s,
    }
}

/// Prints the flows. Reads only.
pub async fn flows(args: &FlowsArgs) -> Result<(), VerbError> {
    let place = args.place.place();
    let tables = FlowTables::open(&place.bpffs)?;
    let mut of_the_service = BTreeSet::new();
    if let (Some(tables), Some(To::Service(wanted))) = (&tables, &args.to) {
        let mut dialled = BTreeSet::new();
        tables.each(|flow| dialled.extend(frontend(&flow)))?;
        let names = Names::needed(&place, &dialled).await?;
        let found = names
            .known
            .into_iter()
            .filter(|(_, named)| is_of(&named.service, wanted));
        of_the_service.extend(found.map(|(frontend, _)| frontend));
    }
    let mut latest = Latest::new(args.limit);
    if let Some(tables) = &tables {
        tables.each(|flow| {
            if is_wanted(args, &of_the_service, &flow) {
                latest.see(flow);
            }
        })?;
    }
    let left_out = latest.left_out;
    let flows = latest.into_flows();
    let names = Names::of(&place, &flows.iter().filter_map(frontend).collect()).await;
    let (pods, devices) = (pods(&ledger(&place).await), devices().await);
    let rows = flows
        .iter()
        .map(|flow| row(flow, &names.known, &pods, &devices));
    let listing = Listing {
        flows: rows.collect(),
        left_out,
        remark: names.remark,
    };
    match args.output {
        Output::Json => print(text::json(&listing)? + "\n")?,
        Output::Table if tables.is_none() => {
            print("no packets are served: `yurt-net run --packet-path=on` does that\n")?;
        }
        Output::Table => print(listing.table())?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::{Cli, Command};

    fn flow(client: &str, dialled: &str, backend: &str, quiet_s: u32) -> PacketFlow {
        PacketFlow {
            protocol: 6,
            client: client.parse().unwrap(),
            dialled: dialled.parse().unwrap(),
            backend: backend.parse().unwrap(),
            masquerade: None,
            device: 2,
            stage: Stage::Up,
            quiet_s,
        }
    }

    fn args(flags: &[&str]) -> FlowsArgs {
        let words = ["yurt-net", "flows"].iter().chain(flags);
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Flows(args)) => args,
            _ => panic!("{flags:?}"),
        }
    }

    #[test]
    fn a_flow_is_shown_with_names_where_they_are_known_and_with_numbers_where_not() {
        let web = flow("192.0.2.9:40000", "192.0.2.1:30080", "10.244.1.2:8080", 3);
        let mut far = flow("192.0.2.9:40001", "192.0.2.1:30081", "10.244.2.2:53", 200);
        (far.protocol, far.device, far.stage) = (17, 7, Stage::Over);
        far.masquerade = Some("10.244.1.0:61000".parse().unwrap());
        let mut odd = flow("[2001:db8::9]:1", "[fd00::1]:2", "[fd00::2]:3", 0);
        (odd.protocol, odd.stage) = (200, Stage::Opening);
        let name = Named {
            service: "shop/web:ht\u{1b}tp".to_owned(),
            closure: None,
        };
        let names = BTreeMap::from([((web.dialled, Protocol::Tcp), name)]);
        let pods = BTreeMap::from([(web.backend.ip(), "shop/web-0".to_owned())]);
        let devices = BTreeMap::from([(2, "eth0".to_owned())]);
        let flows = [odd, web, far].map(|flow| row(&flow, &names, &pods, &devices));
        let listing = Listing {
            flows: flows.into(),
            left_out: 7,
            remark: Some("names are those of the checkpoint".to_owned()),
        };
        let expected = "\
PROTOCOL  CLIENT           DIALLED          SERVICE              BACKEND          POD         MASQUERADE        DEVICE  STATE    QUIET
200       [2001:db8::9]:1  [fd00::1]:2      -                    [fd00::2]:3      -           -                 eth0    opening  0s
TCP       192.0.2.9:40000  192.0.2.1:30080  shop/web:ht\\u{1b}tp  10.244.1.2:8080  shop/web-0  -                 eth0    up       3s
UDP       192.0.2.9:40001  192.0.2.1:30081  -                    10.244.2.2:53    -           10.244.1.0:61000  7       over     3m20s
and 7 more: narrow them down with --from and --to, or raise --limit
names are those of the checkpoint
";
        assert_eq!(listing.table(), expected);
        let json: serde_json::Value = serde_json::from_str(&text::json(&listing).unwrap()).unwrap();
        assert_eq!(json["flows"][1]["service"], "shop/web:ht\u{1b}tp");
        assert_eq!(json["flows"][2]["masquerade"], "10.244.1.0:61000");
        assert_eq!(json["leftOut"], 7);
    }

    #[test]
    fn of_too_many_flows_those_that_were_quiet_for_longest_are_left_out() {
        let mut latest = Latest::new(3);
        for quiet_s in [9, 2, 7, 1, 8, 3] {
            latest.see(flow("192.0.2.9:1", "192.0.2.1:2", "10.244.1.2:3", quiet_s));
        }
        assert_eq!(latest.left_out, 3);
        let quiet: Vec<u32> = latest
            .into_flows()
            .iter()
            .map(|flow| flow.quiet_s)
            .collect();
        assert_eq!(quiet, [1, 2, 3]);
    }

    #[test]
    fn flows_are_found_by_client_address_backend_and_service() {
        let flow = flow("192.0.2.9:40000", "192.0.2.1:30080", "10.244.1.2:8080", 3);
        let services = BTreeSet::from([(flow.dialled, Protocol::Tcp)]);
        for (flags, expected) in [
            (&[][..], true),
            (&["--from", "192.0.2.9"], true),
            (&["--from", "192.0.2.0/28"], true),
            (&["--from", "192.0.2.8"], false),
            (&["--to", "192.0.2.1"], true),
            (&["--to", "192.0.2.1:30081"], false),
            (&["--to", "10.244.0.0/16"], true),
            (&["--to", "10.244.1.2:8080"], true),
            (&["--to", "shop/web"], true),
            (&["--from", "192.0.2.8", "--to", "shop/web"], false),
        ] {
            let is_found = is_wanted(&args(flags), &services, &flow);
            assert_eq!(is_found, expected, "{flags:?}");
        }
        let other = PacketFlow {
            protocol: 17,
            ..flow
        };
        assert!(!is_wanted(&args(&["--to", "shop/web"]), &services, &other));
        assert!(Cli::try_parse_from(["yurt-net", "flows", "--to", "web"]).is_err());
    }
}
