//! Layer-3 devices: two tun devices in two namespaces, and a thread that carries packets between them.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use anyhow::Context as _;
use anyhow::Result;

use super::netns::Netns;

/// So long may the thread outlive its value.
const PAUSE_MS: libc::c_int = 50;

/// Both devices go with it.
pub struct Tunnel {
    is_over: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Between devices of these names, which are made, and are up.
    pub fn new(ends: [(&Netns, &str); 2]) -> Result<Self> {
        let [one, other] = ends.map(|(netns, name)| {
            let file = netns.run(|| open(name))?;
            let file = file.with_context(|| format!("make the tun device {name}"))?;
            netns.ip(&format!("link set {name} up"))?;
            anyhow::Ok(file)
        });
        let (mut one, mut other) = (one?, other?);
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_over);
        let carrier = thread::Builder::new().name("tunnel".to_owned());
        let carrier = carrier.spawn(move || {
            while !stop.load(Ordering::Relaxed) && wait(&one, &other).is_ok() {
                carry(&mut one, &mut other);
                carry(&mut other, &mut one);
            }
        })?;
        Ok(Self {
            is_over,
            carrier: Some(carrier),
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            // It has nothing to say: a panic of it has printed itself.
            let _ = carrier.join();
        }
    }
}

/// Makes a device in the namespace of this thread. It lives as long as the file.
fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: a C struct of plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().take(15).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(io::Error::other)?;
    // SAFETY: the request is valid, and the kernel writes no more than its size.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until there is a packet, or for a moment.
fn wait(one: &File, other: &File) -> io::Result<()> {
    let mut files = [one, other].map(|file| libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: the array is valid and has two entries.
    match unsafe { libc::poll(files.as_mut_ptr(), 2, PAUSE_MS) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Carries what is there. A packet that the other device does not take is lost, as on a wire.
fn carry(from: &mut File, to: &mut File) {
    let mut packet = [0; 1 << 16];
    while let Ok(length) = from.read(&mut packet) {
        let _ = to.write(&packet[..length]);
    }
}
