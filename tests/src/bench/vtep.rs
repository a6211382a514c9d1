//! The time from the creation of a vxlan device until it has its MAC again.

use std::fs;
use std::mem;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::ensure;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Series;
use super::stats::Summary;
use crate::lab::Lab;
use crate::lab::Node;

/// Name of the measure.
pub const NAME: &str = "vtep";

const DEVICE: &str = "flannel.1";
const MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 4];
const PATIENCE: Duration = Duration::from_secs(5);
/// An agent repairs a device three times a minute.
const REPAIRS: usize = 3;

/// Runs the measure.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let node = lab.node("edge-1")?;
    let mut times = Vec::new();
    while times.len() < options.rounds(300) {
        // A new agent starts its count anew, and its source never answers.
        make(&node, "0a:00:00:00:00:04")?;
        let source = "kube:http://192.0.2.253:8001";
        let agent = node.start_agent_from(source, node.name(), &[])?;
        let start = Instant::now();
        while !fs::read_to_string(node.state_dir().join("vtep"))
            .is_ok_and(|text| text.contains(DEVICE))
            || node.status().is_err()
        {
            ensure!(start.elapsed() < PATIENCE, "nothing is recorded");
            thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..REPAIRS {
            node.netns().ip(&format!("link del {DEVICE}\n"))?;
            times.push(node.netns().run(|| again(&node))??);
        }
        agent.kill9()?;
        node.netns().ip(&format!("link del {DEVICE}\n"))?;
    }
    let p99 = vec![Summary::of(&times).p99];
    Ok(Measure {
        name: NAME,
        title: "The MAC of a vxlan device that is made again",
        method: "from the moment before `ip` is started that makes flannel.1 with a random MAC, until the device has its own; no source answers.",
        unit: "",
        series: vec![Series::new("made to MAC set, ms", &times)],
        claims: vec![
            Claim::new("made to MAC set, median", "ms", times),
            Claim::new("made to MAC set, 99th percentile", "ms", p99).at_most(100.0),
        ],
    })
}

fn make(node: &Node, mac: &str) -> Result<()> {
    node.netns().ip(&format!(
        "link add {DEVICE} address {mac} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n",
        node.ip4()
    ))
}

/// Milliseconds until the device has its MAC; on a thread inside the node.
fn again(node: &Node) -> Result<f64> {
    // SAFETY: a call without pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    ensure!(socket >= 0, "open a socket");
    // SAFETY: the kernel has just opened it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let start = Instant::now();
    make(node, "0e:00:00:00:00:99")?;
    while mac(&socket)? != MAC {
        ensure!(start.elapsed() < PATIENCE, "the MAC is not set");
        thread::yield_now();
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn mac(socket: &OwnedFd) -> Result<[u8; 6]> {
    // SAFETY: plain data; zero is a value of each field.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = libc::c_char::try_from(from)?;
    }
    // The C libraries have different types for it.
    let number = libc::Ioctl::try_from(libc::SIOCGIFHWADDR)?;
    // SAFETY: the kernel reads and writes a request that lives as long as the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut request) };
    ensure!(done == 0, "ask for the MAC of {DEVICE}");
    // SAFETY: it is what the kernel has written.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address) {
        *to = u8::from_ne_bytes(from.to_ne_bytes());
    }
    Ok(mac)
}
