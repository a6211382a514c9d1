//! The axes of the matrix, and what the resolver says of each cell.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use clap::Parser;
use yurt_net::config::Cli;
use yurt_net::config::Command;
use yurt_net::config::flags::PlanArgs;
use yurt_net::explain::verdict::Dial;
use yurt_net::explain::verdict::Explanation;
use yurt_net::explain::verdict::FlowVerdict;
use yurt_net::explain::verdict::OwnAddresses;
use yurt_net::explain::verdict::explain;
use yurt_net::model::Protocol;
use yurt_net::model::Touched;
use yurt_net::policy::Memo;
use yurt_net::policy::Memory;
use yurt_net::policy::NodeView;
use yurt_net::policy::Reasons;
use yurt_net::policy::compile;
use yurt_net::source::file::FileSource;
use yurt_net_tests::lab::Manifests;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto;

const POOL: &str = "openyurt.io/nodepool";
pub(super) const PORT: u16 = 80;

/// Which endpoints a Service has, as seen from the first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A ready one on each node.
    Everywhere,
    /// The one here is terminating and serves; all others are ready.
    TerminatingHere,
    /// The only one is here, is terminating, and serves.
    OnlyTerminatingHere,
    /// Ready ones on the other node of the pool and in the other pool.
    Elsewhere,
    /// A process of this node's host network, and a Pod of the other node.
    Host,
    /// In the other pool.
    OtherPool,
    /// None at all.
    Nowhere,
}

/// A Service: one combination of what is the same for all its frontends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) index: u8,
    pub(super) state: State,
    pub(super) is_local: bool,
    pub(super) is_closed: bool,
}

impl Service {
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for state in [
            State::Everywhere,
            State::TerminatingHere,
            State::OnlyTerminatingHere,
            State::Elsewhere,
            State::Host,
            State::OtherPool,
            State::Nowhere,
        ] {
            for (is_local, is_closed) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let index = u8::try_from(all.len() + 1).unwrap_or_default();
                all.push(Self {
                    index,
                    state,
                    is_local,
                    is_closed,
                });
            }
        }
        all
    }

    /// The port of its endpoints. Each Service has its own: flows of one client through two Services do not clash, and
    /// a packet to an endpoint tells by its port whose it is.
    pub(super) fn target(self) -> u16 {
        8000 + u16::from(self.index)
    }

    fn node_port(self) -> u16 {
        30100 + u16::from(self.index)
    }

    pub(super) fn write(self, manifests: &mut Manifests, backends: &Backends) {
        let name = format!("s{}", self.index);
        let service = manifests.service(&name);
        for kind in [Kind::ClusterIp, Kind::LoadBalancer, Kind::ExternalIp] {
            for is_v6 in [false, true] {
                let address = self.virtual_address(kind, is_v6).to_string();
                match kind {
                    Kind::LoadBalancer => service.load_balancer_ip(&address),
                    Kind::ExternalIp => service.external_ip(&address),
                    _ => service.cluster_ip(&address),
                };
            }
        }
        for proto in [Proto::Tcp, Proto::Udp] {
            service.node_port(proto, PORT, self.target(), self.node_port());
        }
        if self.is_local {
            service.internal_policy_local(true);
            service.health_check(31100 + u16::from(self.index));
        }
        if self.is_closed {
            service.topology_keys(POOL);
        }
        let Backends {
            near,
            host,
            far,
            foreign,
        } = backends;
        match self.state {
            State::Everywhere => service.endpoints([near, far, foreign]),
            State::TerminatingHere => service.endpoints([far, foreign]).terminating(near),
            State::OnlyTerminatingHere => service.terminating(near),
            State::Elsewhere => service.endpoints([far, foreign]),
            State::Host => service.endpoints([host, far]),
            State::OtherPool => service.endpoints([foreign]),
            State::Nowhere => service.endpoints([]),
        };
    }

    fn virtual_address(self, kind: Kind, is_v6: bool) -> IpAddr {
        let index = self.index;
        let (v4, v6) = match kind {
            Kind::LoadBalancer => ([203, 0, 113, index], [0x2001, 0xdb8, 0x77]),
            Kind::ExternalIp => ([198, 51, 100, index], [0x2001, 0xdb8, 0x100]),
            _ => ([10, 96, 1, index], [0xfd00, 0x96, 0]),
        };
        let [a, b, c] = v6;
        match is_v6 {
            false => v4.into(),
            true => [a, b, c, 0, 0, 0, 0, u16::from(index)].into(),
        }
    }
}

/// One Pod of each place that may be an endpoint.
pub(super) struct Backends {
    pub(super) near: Pod,
    pub(super) host: Pod,
    pub(super) far: Pod,
    pub(super) foreign: Pod,
}

impl Backends {
    pub(super) fn all(&self) -> [&Pod; 4] {
        [&self.near, &self.host, &self.far, &self.foreign]
    }

    /// Whose address this is.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Pod> {
        let mut all = self.all().into_iter();
        all.find(|pod| [IpAddr::from(pod.ip4()), pod.ip6().into()].contains(&address))
    }
}

/// What kind of address is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ClusterIp,
    /// At the node that serves the client.
    OwnNodePort,
    OtherNodePort,
    LoadBalancer,
    ExternalIp,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [
        Self::ClusterIp,
        Self::OwnNodePort,
        Self::OtherNodePort,
        Self::LoadBalancer,
        Self::ExternalIp,
    ];
}

/// What decides on what a client dials at its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// A hook at its sockets.
    Sockets,
    /// The programs at its Pod's device.
    PodDevice,
    /// The programs at the node's uplink.
    Uplink,
}

/// Who dials.
pub(super) struct Client {
    pub(super) name: &'static str,
    pub(super) pod: Pod,
    pub(super) path: Path,
    /// The node that decides, unless another one's NodePort is dialled.
    pub(super) home: usize,
    /// The addresses that its packets may have.
    pub(super) addresses: Vec<IpAddr>,
}

/// One cell of the matrix.
pub(super) struct Cell {
    pub(super) client: usize,
    pub(super) service: Service,
    pub(super) kind: Kind,
    pub(super) proto: Proto,
    pub(super) to: SocketAddr,
    pub(super) path: Path,
    /// The node that decides.
    pub(super) node: usize,
    pub(super) explanation: Explanation,
}

impl Cell {
    /// All cells of a client, without explanations.
    pub(super) fn all(clients: &[Client], nodes: &[Node]) -> Result<Vec<Self>> {
        let mut cells = Vec::new();
        for (index, client) in clients.iter().enumerate() {
            for service in Service::all() {
                for kind in Kind::ALL {
                    for is_v6 in [false, true] {
                        for proto in [Proto::Tcp, Proto::Udp] {
                            cells.push(Self::new(
                                (index, client),
                                service,
                                kind,
                                is_v6,
                                proto,
                                nodes,
                            )?);
                        }
                    }
                }
            }
        }
        explain_all(&mut cells, clients, nodes)?;
        Ok(cells)
    }

    fn new(
        (index, client): (usize, &Client),
        service: Service,
        kind: Kind,
        is_v6: bool,
        proto: Proto,
        nodes: &[Node],
    ) -> Result<Self> {
        let node = match kind {
            Kind::OtherNodePort => 1 - client.home,
            _ => client.home,
        };
        let (address, port) = match kind {
            Kind::OwnNodePort | Kind::OtherNodePort => {
                let node = nodes.get(node).context("no such node")?;
                let address = match is_v6 {
                    false => IpAddr::from(node.ip4()),
                    true => node.ip6().into(),
                };
                (address, service.node_port())
            }
            _ => (service.virtual_address(kind, is_v6), PORT),
        };
        Ok(Self {
            client: index,
            service,
            kind,
            proto,
            to: SocketAddr::new(address, port),
            path: match node == client.home {
                true => client.path,
                false => Path::Uplink,
            },
            node,
            explanation: Explanation {
                verdict: FlowVerdict::Pass,
                endpoints: Vec::new(),
                masquerade: false,
                service: String::new(),
                reason: String::new(),
            },
        })
    }

    /// Nothing tells the client of it.
    pub(super) fn is_silent(&self) -> bool {
        self.explanation.verdict == FlowVerdict::Drop && self.path != Path::Sockets
    }

    /// The address that a client's packets have on this cell's family.
    fn from(&self, client: &Client) -> Result<IpAddr> {
        let mut addresses = client.addresses.iter();
        let found = addresses.find(|address| address.is_ipv4() == self.to.is_ipv4());
        found.copied().context("no address of the family")
    }

    /// The addresses that an endpoint may see as the client: more than one where a process of a node has several.
    fn seen_as(&self, client: &Client, endpoint: &Pod, nodes: &[Node]) -> Result<Vec<IpAddr>> {
        let node = nodes.get(self.node).context("no such node")?;
        let is_elsewhere = endpoint.node() != node.name();
        Ok(match self.path {
            Path::Uplink if is_elsewhere && self.explanation.masquerade => {
                vec![node.ip4().into(), node.ip6().into()]
            }
            Path::Uplink | Path::PodDevice | Path::Sockets => client.addresses.clone(),
        })
    }

    /// What is wrong with a result, by the resolver's answer.
    pub(super) fn fault(
        &self,
        client: &Client,
        backends: &Backends,
        nodes: &[Node],
        answer: Result<&str, &str>,
    ) -> Result<Option<String>> {
        let expected = match (self.explanation.verdict, self.path) {
            (FlowVerdict::Refuse, _) => "ECONNREFUSED",
            (FlowVerdict::Drop, Path::Sockets) => "EHOSTUNREACH",
            (FlowVerdict::Drop, _) => "TIMEOUT",
            (FlowVerdict::Pass, _) => bail!("{}: the resolver knows no such address", self.to),
            (FlowVerdict::Forward, _) => {
                return self.fault_of_forwarded(client, backends, nodes, answer);
            }
        };
        Ok((answer != Err(expected)).then(|| format!("{answer:?} instead of {expected}")))
    }

    fn fault_of_forwarded(
        &self,
        client: &Client,
        backends: &Backends,
        nodes: &[Node],
        answer: Result<&str, &str>,
    ) -> Result<Option<String>> {
        let Some((name, seen)) = answer.ok().and_then(|answer| answer.split_once(',')) else {
            return Ok(Some(format!("{answer:?}")));
        };
        let endpoints = self.endpoints(backends)?;
        let Some(endpoint) = endpoints.into_iter().find(|pod| pod.name() == name) else {
            return Ok(Some(format!(
                "answered by {name}, which is none of its endpoints"
            )));
        };
        let may_see = self.seen_as(client, endpoint, nodes)?;
        let is_right = may_see.contains(&seen.parse::<SocketAddr>()?.ip());
        Ok((!is_right).then(|| format!("{name} sees {seen} instead of one of {may_see:?}")))
    }

    /// Who may answer, by the resolver.
    pub(super) fn endpoints<'a>(&self, backends: &'a Backends) -> Result<Vec<&'a Pod>> {
        let endpoints = self.explanation.endpoints.iter();
        let pods = endpoints.map(|endpoint| {
            ensure!(endpoint.port() == self.service.target(), "{endpoint}");
            backends.at(endpoint.ip()).context("nobody's endpoint")
        });
        pods.collect()
    }
}

/// The whole name of a cell.
pub(super) struct Named<'a>(
    pub(super) &'a Cell,
    pub(super) &'a Client,
    pub(super) &'a Node,
);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(cell, client, node) = self;
        let policy = if cell.service.is_local {
            "Local"
        } else {
            "Cluster"
        };
        let closure = if cell.service.is_closed {
            "closed"
        } else {
            "open"
        };
        let family = if cell.to.is_ipv4() { "IPv4" } else { "IPv6" };
        write!(
            f,
            "{} -> {:?}, {policy}, {:?}, {closure}, {:?}, {family} ({}): {:?} of {} says {} {:?}{} ({})",
            client.name,
            cell.kind,
            cell.service.state,
            cell.proto,
            cell.to,
            cell.path,
            node.name(),
            cell.explanation.verdict,
            cell.explanation.endpoints,
            if cell.explanation.masquerade {
                " masqueraded"
            } else {
                ""
            },
            cell.explanation.reason,
        )
    }
}

/// Asks the resolver of the node that decides on each cell, as `explain` does.
fn explain_all(cells: &mut [Cell], clients: &[Client], nodes: &[Node]) -> Result<()> {
    let mut of_node: BTreeMap<usize, Vec<&mut Cell>> = BTreeMap::new();
    for cell in cells {
        of_node.entry(cell.node).or_default().push(cell);
    }
    for (index, cells) in of_node {
        let node = nodes.get(index).context("no such node")?;
        let words = [
            "yurt-net",
            "plan",
            "--node",
            node.name(),
            "--source",
            "file:/",
        ];
        let Command::Plan(PlanArgs { policy, .. }) = Cli::try_parse_from(words)?.command else {
            bail!("not a plan");
        };
        let snapshot = FileSource::new(node.manifests_dir()).load()?;
        let (view, memory) = (NodeView::default(), Memory::default());
        let config = policy.config(node.name());
        let mut memo = Memo::default();
        let table = compile(
            &snapshot,
            &Touched::Anything,
            &config,
            &view,
            &memory,
            &mut memo,
        )
        .table
        .clone();
        let reasons = Reasons::new(&snapshot, &config, &view, &memory);
        let own = OwnAddresses::new(&snapshot, node.name());
        for cell in cells {
            let client = clients.get(cell.client).context("no such client")?;
            let dial = Dial {
                from: cell.from(client)?,
                to: cell.to,
                protocol: match cell.proto {
                    Proto::Tcp => Protocol::Tcp,
                    Proto::Udp => Protocol::Udp,
                },
            };
            cell.explanation = explain(&table, &reasons, &own, dial);
        }
    }
    Ok(())
}
