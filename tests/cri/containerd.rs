//! Debian's containerd and runc, on a node of the lab and nowhere else.
//!
//! | what it would share with the machine | what it has here |
//! |---|---|
//! | network namespace | the node's |
//! | `/run`: namespaces, sockets of shims, state | a file system of its own, which a reboot empties |
//! | cgroups | the cgroup `runtime` of the node, as the root of a cgroup namespace: the lab ends whatever is in it |
//! | images, snapshots | a directory of the lab, which a reboot keeps |

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use yurt_net_tests::lab;

use super::client::Client;
use super::image;

/// Below the node's cgroup.
const CGROUP: &str = "runtime";
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A container runtime. It ends with the lab.
#[derive(Debug)]
pub(crate) struct Containerd {
    node: lab::Node,
    dir: PathBuf,
    /// For kubelet's part.
    pub(crate) cri: Client,
    child: Child,
    /// Mounts and cgroups, which outlive a restart and end with a reboot.
    namespaces: [File; 2],
}

impl Containerd {
    /// Starts it in a directory of its own, with these of the node's for CNI, and gives it the image.
    pub(crate) fn start(node: &lab::Node, dir: &Path, conf: &Path, bin: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        write_runc(&dir.join("runc"))?;
        fs::write(dir.join("config.toml"), config(dir, conf, bin))?;
        let mut child = spawn(node, dir, None)?;
        let namespaces = namespaces_of(&mut child)?;
        let cri = Client::new(&dir.join("containerd.sock"));
        let started = Self {
            node: node.clone(),
            dir: dir.to_owned(),
            cri,
            child,
            namespaces,
        };
        started.wait_ready()?;
        let archive = image::build(&dir.join("image"))?;
        started.import(&archive)?;
        started.wait("the image", |cri| cri.has_image(image::NAME))?;
        Ok(started)
    }

    /// Takes an image from an archive.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        let mut import = self.ctr();
        import.args(["images", "import", "--snapshotter", "native"]);
        image::run(import.arg(archive))?;
        Ok(())
    }

    /// Runs a container of this image to its end, and returns what it has printed.
    pub(crate) fn run_once(&self, image: &str, words: &[&str]) -> Result<String> {
        let mut run = self.ctr();
        run.args(["run", "--rm", "--snapshotter", "native", "--runc-binary"]);
        run.arg(self.dir.join("runc")).args([image, "once"]);
        image::run(run.args(words))
    }

    fn ctr(&self) -> Command {
        // Among its mounts: what containers print goes through files of `/run`, which is its own there.
        let mut ctr = Command::new("nsenter");
        ctr.arg(format!("--mount=/proc/{}/ns/mnt", self.child.id()));
        let socket = self.dir.join("containerd.sock");
        ctr.arg("ctr").arg("--address").arg(socket);
        ctr.args(["--namespace", "k8s.io"]);
        ctr
    }

    /// Ends it as a crash does, and starts it again. Pods run on.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.end()?;
        self.child = spawn(&self.node, &self.dir, Some(&self.namespaces))?;
        self.wait_ready()
    }

    /// Ends it and all that it has started, as a power cut does; mounts and `/run` are gone with the last of them.
    pub(crate) fn lose_power(&mut self) -> Result<()> {
        let cgroup = self.node.cgroup().join(CGROUP);
        fs::write(cgroup.join("cgroup.kill"), "1")?;
        self.end()?;
        let started = Instant::now();
        while !fs::read_to_string(cgroup.join("cgroup.events"))?.contains("populated 0") {
            ensure!(
                started.elapsed() < PATIENCE,
                "processes of Pods outlive SIGKILL"
            );
            std::thread::sleep(LOOK_AGAIN);
        }
        let nothing = || File::open("/dev/null");
        self.namespaces = [nothing()?, nothing()?];
        Ok(())
    }

    /// Starts it on a node that has just come up.
    pub(crate) fn boot(&mut self) -> Result<()> {
        self.child = spawn(&self.node, &self.dir, None)?;
        self.namespaces = namespaces_of(&mut self.child)?;
        self.wait_ready()
    }

    /// Waits until this holds; an error does not hold.
    pub(crate) fn wait(&self, what: &str, holds: impl Fn(&Client) -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        loop {
            let seen = holds(&self.cri);
            if matches!(seen, Ok(true)) {
                return Ok(());
            }
            ensure!(
                started.elapsed() < PATIENCE,
                "not in time: {what}: {seen:?}\n{}",
                self.log()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn wait_ready(&self) -> Result<()> {
        self.wait("containerd is ready", Client::is_ready)
    }

    fn end(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What it has started is the lab's to end.
        if let Err(e) = self.end() {
            eprintln!("containerd: {e:#}");
        }
    }
}

fn config(dir: &Path, conf: &Path, bin: &Path) -> String {
    let [dir, conf, bin] = [dir, conf, bin].map(Path::display);
    format!(
        r#"version = 2
root = "{dir}/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{dir}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{conf}"
bin_dir = "{bin}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{dir}/runc"
SystemdCgroup = false
"#,
        image = image::NAME
    )
}

/// runc, after it was relieved of what it could not do: containerd asks for a share of the processor for every sandbox,
/// and cgroup2 of a machine that has its controllers in version 1 knows of none.
fn write_runc(path: &Path) -> Result<()> {
    let script = r#"#!/bin/sh
for argument; do
    [ "$previous" = --bundle ] && sed -i 's/,"cpu":{[^}]*}//' "$argument/config.json"
    previous=$argument
done
exec runc "$@"
"#;
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn spawn(node: &lab::Node, dir: &Path, namespaces: Option<&[File; 2]>) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))?;
    let mut command = node.command(CGROUP, "containerd")?;
    command
        .arg("--config")
        .arg(dir.join("config.toml"))
        .stdout(log.try_clone()?)
        .stderr(log);
    let fds = namespaces.map(|files| files.each_ref().map(|file| file.as_raw_fd()));
    let enter = move || match fds {
        Some(fds) => fds.into_iter().try_for_each(join),
        None => make_namespaces(),
    };
    // SAFETY: the closure makes system calls only, on descriptors that are open past spawn; it neither allocates nor
    // takes locks.
    unsafe { command.pre_exec(enter) };
    command
        .spawn()
        .context("start containerd; `cargo xtask setup` installs it")
}

fn namespaces_of(child: &mut Child) -> Result<[File; 2]> {
    let open = |name| {
        let path = format!("/proc/{}/ns/{name}", child.id());
        File::open(&path).with_context(|| format!("open {path}"))
    };
    Ok([open("mnt")?, open("cgroup")?])
}

fn join(fd: i32) -> io::Result<()> {
    // SAFETY: no pointers; a bad descriptor is an error.
    check(unsafe { libc::setns(fd, 0) })
}

/// Gives the calling process, which must be in its cgroup by now, mounts of its own, and a view of cgroups that begins
/// there.
fn make_namespaces() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP) })?;
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"tmpfs", c"/run", 0)?;
    mount(c"cgroup2", c"/sys/fs/cgroup", 0)
}

fn mount(kind: &CStr, at: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: all strings end in zero and outlive the call; data may be null.
    check(unsafe {
        libc::mount(
            kind.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    })
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
