//! The packet path between devices that leave work to each other.

use std::io;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Pod;

use crate::icmp::echo;
use crate::outside::Stage;
use crate::world::PATIENCE;

/// `ETHTOOL_S*` of checksums of what is sent, of what is received, of segments of TCP and of any kind, and of putting
/// such together.
const OFFLOADS: [u32; 5] = [0x17, 0x15, 0x1f, 0x24, 0x2c];
const SIOCETHTOOL: libc::Ioctl = 0x8946;

#[test]
fn much_data_passes_whether_devices_sum_up_and_cut_or_not() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    for backend in [&near, &far] {
        let agent = stage.start(&[backend])?;
        for is_on in [true, false] {
            for netns in [
                stage.client.netns(),
                backend.netns(),
                stage.world.node(0)?.netns(),
                stage.world.node(1)?.netns(),
            ] {
                netns.run(|| offload("eth0", is_on))??;
            }
            for to in stage.frontends()? {
                echo(&stage.client, &to, backend.name())?;
                large_datagram(&stage.client, &to)?;
            }
        }
        agent.kill9()?;
    }
    Ok(())
}

/// Asks with a datagram that fills a link, which comes back with a name before it.
fn large_datagram(client: &Pod, to: &str) -> Result<()> {
    let to: SocketAddr = to.parse()?;
    client.netns().run(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        let (question, mut answer) = ([b'q'; 1400], [0; 2000]);
        socket.send(&question)?;
        let length = socket.recv(&mut answer)?;
        ensure!(answer[..length].ends_with(&question), "{length} bytes");
        Ok(())
    })?
}

/// Has a device of this thread's network namespace sum up and cut what it sends, or not.
pub(crate) fn offload(device: &str, is_on: bool) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for command in OFFLOADS {
        // `struct ethtool_value`.
        let mut value = [command, u32::from(is_on)];
        // SAFETY: all zeros are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the request names a device, and points to a value of the command.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
