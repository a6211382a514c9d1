//! A machine beside the node that learns nothing: all that it knows of a Pod are permanent entries, as flannel's peers
//! have them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use yurt_net_tests::lab::{self, Netns};

use super::image;

/// Where the Pod's program listens.
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The machine. Frames for a MAC that it has no entry of go nowhere.
#[derive(Debug)]
pub(crate) struct Peer {
    netns: Netns,
}

impl Peer {
    /// Wired to the node, by a device `lan0` there that is in no bridge yet.
    pub(crate) fn beside(node: &lab::Node) -> Result<Self> {
        let netns = Netns::host()?;
        node.netns().ip(&format!(
            "link add lan0 type veth peer name up0 netns {}\nlink set lan0 up\n",
            netns.path()
        ))?;
        netns.ip("link set lo up\n\
             link add br0 type bridge stp_state 0 mcast_snooping 0\n\
             link set up0 master br0 up\n\
             link set up0 type bridge_slave learning off flood off\n\
             link set br0 up\n\
             addr add 10.1.0.200/24 dev br0\n\
             addr add fd00:1::200/64 dev br0 nodad\n")?;
        Ok(Self { netns })
    }

    /// Puts the node's end into the bridge of its Pods, which the bridge plugin has made.
    pub(crate) fn plug(node: &lab::Node) -> Result<()> {
        node.netns().ip("link set lan0 master cni0\n")
    }

    /// Is told, once and for all, at which MAC these addresses are.
    pub(crate) fn learn(&self, addresses: &[IpAddr], mac: &str) -> Result<()> {
        for address in addresses {
            self.netns.ip(&format!(
                "neigh add {address} lladdr {mac} nud permanent dev br0\n"
            ))?;
        }
        let mut entry = Command::new("bridge");
        entry.args(["fdb", "add", mac, "dev", "up0", "master", "static"]);
        self.netns.enter(&mut entry);
        image::run(&mut entry)?;
        Ok(())
    }

    /// A UDP socket that is connected to the Pod, and stays so.
    pub(crate) fn client(&self, to: IpAddr) -> Result<Client> {
        let any: IpAddr = match to {
            IpAddr::V4(_) => "0.0.0.0".parse()?,
            IpAddr::V6(_) => "::".parse()?,
        };
        let socket = self.netns.run(|| UdpSocket::bind((any, 0)))??;
        socket.connect((to, PORT))?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Client(socket))
    }

    /// A TCP connection to the Pod.
    pub(crate) fn connection(&self, to: IpAddr) -> Result<Connection> {
        let to = SocketAddr::new(to, PORT);
        let stream = self
            .netns
            .run(|| TcpStream::connect_timeout(&to, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection(stream))
    }
}

/// See [`Peer::client`].
#[derive(Debug)]
pub(crate) struct Client(UdpSocket);

impl Client {
    /// Asks until this Pod answers: the first datagrams after a start may find nobody.
    pub(crate) fn wait_for(&self, name: &str) -> Result<()> {
        let started = Instant::now();
        loop {
            let answer = self.ask();
            if answer.as_deref().is_ok_and(|answer| answer == name) {
                return Ok(());
            }
            ensure!(
                started.elapsed() < PATIENCE,
                "{name} does not answer {:?}: {answer:?}",
                self.0.peer_addr()
            );
            // An error comes at once where nobody listens.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks once.
    pub(crate) fn ask(&self) -> Result<String> {
        let mut answer = [0; 64];
        self.0.send(b"?")?;
        let length = self.0.recv(&mut answer)?;
        Ok(String::from_utf8(answer[..length].to_vec())?)
    }
}

/// See [`Peer::connection`].
#[derive(Debug)]
pub(crate) struct Connection(TcpStream);

impl Connection {
    /// Asks once.
    pub(crate) fn ask(&mut self) -> Result<String> {
        let mut answer = [0; 64];
        self.0.write_all(b"?").context("ask by TCP")?;
        let length = self.0.read(&mut answer).context("hear by TCP")?;
        Ok(String::from_utf8(answer[..length].to_vec())?)
    }
}
