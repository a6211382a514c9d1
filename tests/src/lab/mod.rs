//! A lab: several nodes on one machine, each with Pods, an agent, and real sockets.
//!
//! | of a cluster | in the lab |
//! |---|---|
//! | node | network namespace, cgroup subtree, bpffs, state and manifest directories |
//! | Pod | network namespace with a veth on the node's bridge, a cgroup below the node's, a worker process |
//! | network between nodes | a bridge in a namespace of its own; nodes route to each other's Pods |
//! | apiserver | one file of manifests per node, replaced by rename; or a process on the wire ([`Cloud`]) |
//!
//! Everything belongs to the lab: no device, mount or program touches the host's network namespace, its root cgroup or
//! `/sys/fs/bpf`. Namespaces are held by file descriptors, mounts are in a private mount namespace, processes die with
//! the lab, and the two things that would outlive a killed process (cgroups and an empty directory) are removed by a
//! reaper process that waits for that, or by the next lab.
//!
//! [`Lab::new`] gives the calling thread, and the threads started from it later, a mount namespace
//! in which the lab's directories can be seen: [`Node::bpffs`] is a plain path there.

mod agent;
pub mod cgroup;
mod cloud;
pub mod errno;
mod ledger;
pub mod manifests;
mod netns;
mod node;
mod place;
mod pod;
pub mod probe;
pub mod protocol;
mod remains;
mod signals;
pub mod sockets;
mod tun;
mod worker;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::bail;

pub use agent::Agent;
pub use agent::program as agent_program;
pub use cloud::Cloud;
pub use ledger::Kept;
pub use manifests::Manifests;
pub use netns::Netns;
pub use node::Node;
pub use pod::Connection;
pub use pod::Pod;
pub use pod::Socket;
pub use pod::Traffic;
pub use pod::UdpSocket;
pub use protocol::Attempt;
pub use protocol::OtherSocket;
pub use protocol::Proto;
pub use protocol::Tally;
pub use protocol::UdpOutcome;
pub use protocol::UdpStep;
pub use remains::Inventory;
pub use remains::Remains;
pub use signals::interrupted;
pub use signals::tear_down_on_signals;
pub use tun::Tunnel;

/// Nodes, Pods and the wire between them. Dropping it removes them all.
#[derive(Debug)]
#[must_use = "a lab that is dropped at once is gone at once"]
pub struct Lab {
    core: Arc<Core>,
    nodes: Mutex<Vec<Node>>,
}

impl Lab {
    /// An empty lab. Removes what killed labs have left, and gives the calling thread a private mount namespace.
    pub fn new() -> Result<Self> {
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            bail!("the lab makes namespaces, mounts and cgroups, which only root can; use sudo");
        }
        Remains::remove_stale().context("remove what earlier labs have left")?;
        let remains = Remains::of_new_lab()?;
        let core = Arc::new(Core::new(remains)?);
        signals::register(&core);
        let lab = Self {
            core,
            nodes: Mutex::default(),
        };
        lab.core.make_mounts()?;
        lab.core.make_cgroup(lab.core.remains.cgroup())?;
        lab.core.wire.ip("link set lo up\n\
             link add wire0 type bridge stp_state 0 mcast_snooping 0\n\
             link set wire0 up\n\
             addr add 192.0.2.254/24 dev wire0\n\
             addr add 2001:db8::fe/64 dev wire0 nodad\n")?;
        Ok(lab)
    }

    /// Adds a node, with routes to and from all others.
    pub fn node(&self, name: &str) -> Result<Node> {
        let mut nodes = lock(&self.nodes);
        let index = u8::try_from(nodes.len() + 1).context("too many nodes")?;
        let node = Node::new(&self.core, name, index, &nodes)
            .with_context(|| format!("make node {name}"))?;
        nodes.push(node.clone());
        Ok(node)
    }

    /// Adds an apiserver that is not started yet. A lab can have one.
    pub fn cloud(&self) -> Result<Cloud> {
        Cloud::new(&self.core).context("make the apiserver")
    }

    /// Cuts a node off silently: its own end of the wire stays up.
    pub fn cut(&self, node: &Node) -> Result<()> {
        let device = node.wire_device();
        self.core.wire.ip(&format!("link set {device} nomaster\n"))
    }

    /// Ends a [`Self::cut`].
    pub fn mend(&self, node: &Node) -> Result<()> {
        let device = node.wire_device();
        self.core
            .wire
            .ip(&format!("link set {device} master wire0\n"))
    }

    /// Pulls a node's plug, or puts it back: the node notices.
    pub fn plug(&self, node: &Node, is_in: bool) -> Result<()> {
        let state = if is_in { "up" } else { "down" };
        let device = node.wire_device();
        self.core.wire.ip(&format!("link set {device} {state}\n"))
    }

    /// All nodes, in the order in which they were added.
    pub fn nodes(&self) -> Vec<Node> {
        lock(&self.nodes).clone()
    }

    /// Gives every node the same manifests.
    pub fn apply(&self, manifests: &Manifests) -> Result<()> {
        self.nodes()
            .iter()
            .try_for_each(|node| node.apply(manifests))
    }

    /// A list of what has been made so far, to look for it when the lab is gone.
    pub fn inventory(&self) -> Inventory {
        let books = lock(&self.core.books);
        Inventory {
            remains: self.core.remains.clone(),
            processes: books.pids.clone(),
            namespaces: books.namespaces.clone(),
        }
    }

    /// The directory in which the lab keeps everything.
    pub fn dir(&self) -> &Path {
        self.core.remains.dir()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(e) = self.core.tear_down() {
            // Drop cannot return the error, and a test must not ignore it.
            eprintln!("lab: {e:#}");
            if !thread::panicking() {
                panic!("the lab left something behind: {e:#}");
            }
        }
    }
}

/// What all parts of a lab share. It goes with the lab, even while handles to nodes and Pods still exist; they then
/// return errors.
#[derive(Debug)]
struct Core {
    remains: Remains,
    wire: Arc<Netns>,
    books: Mutex<Books>,
    /// Runs jobs that must not run on a thread that ends early.
    jobs: Mutex<Option<Sender<Job>>>,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug, Default)]
struct Books {
    closed: bool,
    processes: Vec<place::Process>,
    pids: BTreeSet<u32>,
    namespaces: BTreeSet<u64>,
    reaper: Option<Child>,
}

/// A process just started, and the pipes that were asked for.
struct Spawned {
    process: place::Process,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Core {
    fn new(remains: Remains) -> Result<Self> {
        let reaper = start_reaper(&remains)?;
        make_mounts_private()?;
        let (jobs, inbox) = mpsc::channel::<Job>();
        // Started from the thread with the private mounts, so that it sees them. The kernel kills the lab's processes
        // when this thread ends.
        thread::Builder::new()
            .name("lab".to_owned())
            .spawn(move || inbox.into_iter().for_each(|job| job()))
            .context("start the lab's thread")?;
        let wire = Arc::new(Netns::host()?);
        let mut books = Books::default();
        books.namespaces.insert(wire.inode());
        books.pids.insert(reaper.id());
        books.reaper = Some(reaper);
        Ok(Self {
            remains,
            wire,
            books: Mutex::new(books),
            jobs: Mutex::new(Some(jobs)),
        })
    }

    /// Runs a job on the lab's own thread.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (sender, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = sender.send(job());
        });
        lock(&self.jobs)
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .context("the lab is gone")?;
        result.recv().map_err(|_gone| anyhow!("the lab is gone"))
    }

    fn spawn(&self, mut command: Command) -> Result<Spawned> {
        // Held throughout: the end of the lab waits for this, and then finds the process.
        let mut books = self.open_books()?;
        let program = command.get_program().display().to_string();
        let mut child = self
            .run(move || command.spawn())?
            .with_context(|| format!("start {program}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let process = place::Process::new(child);
        books.pids.insert(process.pid());
        books.processes.push(process.clone());
        Ok(Spawned {
            process,
            stdin,
            stdout,
        })
    }

    fn netns(&self, make: fn() -> Result<Netns>) -> Result<Arc<Netns>> {
        let netns = make()?;
        self.open_books()?.namespaces.insert(netns.inode());
        Ok(Arc::new(netns))
    }

    fn make_cgroup(&self, path: &Path) -> Result<()> {
        let _books = self.open_books()?;
        fs::create_dir(path).with_context(|| format!("make cgroup {}", path.display()))
    }

    /// Mounts a file system of the lab's own over its directory: what is written there vanishes with the mount
    /// namespace.
    fn make_mounts(&self) -> Result<()> {
        let _books = self.open_books()?;
        let dir = self.remains.dir();
        fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
        mount("tmpfs", dir, "mode=0700")
    }

    fn mount_bpffs(&self, at: &Path) -> Result<()> {
        let _books = self.open_books()?;
        let at = at.to_owned();
        self.run(move || mount("bpf", &at, "mode=0700"))?
    }

    fn open_books(&self) -> Result<MutexGuard<'_, Books>> {
        let books = lock(&self.books);
        if books.closed {
            bail!("the lab is gone");
        }
        Ok(books)
    }

    /// Ends every process and removes everything. A second call finds nothing to do.
    fn tear_down(&self) -> Result<()> {
        let mut books = lock(&self.books);
        if books.closed {
            return Ok(());
        }
        books.closed = true;
        let removed = self.remains.remove();
        for process in books.processes.drain(..) {
            process.kill()?;
        }
        lock(&self.jobs).take();
        if let Some(mut reaper) = books.reaper.take() {
            // End of file is its signal; what it would remove is gone.
            drop(reaper.stdin.take());
            reaper.wait().context("wait for the reaper")?;
        }
        removed
    }
}

/// Starts the process that outlives this one by a moment and removes what is left. A signal from the terminal does not
/// reach it.
fn start_reaper(remains: &Remains) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    Command::new(worker::program("lab-worker")?)
        .arg("reap")
        .args([remains.cgroup(), remains.dir()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("start the lab's reaper")
}

/// Gives the calling thread, and those started from it later, a mount namespace of their own.
pub fn make_mounts_private() -> Result<()> {
    // SAFETY: no pointers; the calling thread alone gets a copy of the mount namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error()).context("make a mount namespace");
    }
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let none = std::ptr::null();
    // SAFETY: the path is a literal that ends in zero; the other pointers may be null here.
    if unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) } != 0 {
        return Err(io::Error::last_os_error()).context("make the mounts private");
    }
    Ok(())
}

fn mount(fstype: &str, at: &Path, options: &str) -> Result<()> {
    let what = || format!("mount {fstype} at {}", at.display());
    let at_c = std::ffi::CString::new(at.as_os_str().as_encoded_bytes())?;
    let fstype = std::ffi::CString::new(fstype)?;
    let options = std::ffi::CString::new(options)?;
    // SAFETY: all four strings end in zero and outlive the call.
    let result = unsafe {
        libc::mount(
            fstype.as_ptr(),
            at_c.as_ptr(),
            fstype.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(what);
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Address of a host in the wire's IPv4 network.
fn wire4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, host)
}

/// Address of a host in the wire's IPv6 network.
fn wire6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host))
}

/// Address of a host among a node's Pods, IPv4.
fn pod4(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, host)
}

/// Address of a host among a node's Pods, IPv6.
fn pod6(node: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, u16::from(host))
}
