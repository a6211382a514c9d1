//! A machine that qemu emulates: a kernel, one or more processors, and an initramfs. No network, no disk: what happens
//! is read from the serial console.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cpio::Archive;

/// What is to be booted.
pub(crate) struct Guest<'a> {
    /// As qemu calls it.
    pub(crate) architecture: &'a str,
    pub(crate) kernel: &'a Path,
    pub(crate) processors: u8,
    /// In MiB.
    pub(crate) memory: u32,
    /// Whether its clock counts instructions, where that can be: a thousand million a second; over the time in which
    /// nothing is to be done it leaps. No patience in the guest ends because the machine that emulates it is busy.
    pub(crate) has_own_time: bool,
    /// For its kernel.
    pub(crate) parameters: &'a str,
    /// A machine that has not ended by then hangs.
    pub(crate) patience: Duration,
}

impl Guest<'_> {
    /// What the guest says on its console until it powers itself off.
    pub(crate) fn boot(&self, initramfs: &[u8], remedy: &str) -> Result<String> {
        let dir = tempfile::tempdir()?;
        let [initrd, console] = ["initrd", "console"].map(|name| dir.path().join(name));
        fs::write(&initrd, initramfs)?;
        let program = format!("qemu-system-{}", self.architecture);
        // What a Raspberry Pi 4 has, on a board of qemu's own; the other architecture has a board and a processor by
        // default.
        let (machine, console_device): (&[&str], _) = match self.architecture {
            "aarch64" => (&["-M", "virt", "-cpu", "cortex-a72"], "ttyAMA0"),
            _ => (&[], "ttyS0"),
        };
        // By such a clock a second processor of qemu's PC never comes up: the first one waits for it without an end.
        let can_count = self.architecture != "x86_64" || self.processors == 1;
        let own_time: &[_] = if self.has_own_time && can_count {
            &["-icount", "shift=0,sleep=off"]
        } else {
            &[]
        };
        let mut qemu = Command::new(&program)
            .args(["-accel", "tcg", "-nographic", "-no-reboot", "-nic", "none"])
            .args(machine)
            .args(own_time)
            .args(["-m", &self.memory.to_string()])
            .args(["-smp", &self.processors.to_string()])
            .args([OsStr::new("-kernel"), self.kernel.as_os_str()])
            .args([OsStr::new("-initrd"), initrd.as_os_str()])
            .arg("-append")
            .arg(format!(
                "console={console_device} panic=-1 quiet {}",
                self.parameters
            ))
            .stdin(Stdio::null())
            .stdout(File::create(&console)?)
            .stderr(File::create(dir.path().join("stderr"))?)
            .spawn()
            .with_context(|| format!("start {program}; {remedy}"))?;
        let deadline = Instant::now() + self.patience;
        let status = loop {
            if let Some(status) = qemu.try_wait()? {
                break Some(status);
            }
            if Instant::now() > deadline {
                qemu.kill()?;
                qemu.wait()?;
                break None;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let said = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
        match status {
            Some(status) if status.success() => Ok(said),
            Some(status) => {
                let complaint = fs::read_to_string(dir.path().join("stderr"))?;
                bail!("qemu: {status}\n{complaint}\n{said}")
            }
            None => bail!("the guest still runs after {:?}:\n{said}", self.patience),
        }
    }
}

/// A file system in memory that grows file by file.
pub(crate) struct Initramfs {
    archive: Archive,
    directories: Vec<String>,
    files: Vec<String>,
}

impl Initramfs {
    /// The first process, and empty directories for what that mounts.
    pub(crate) fn new(init: &str) -> Self {
        let mut initramfs = Self {
            archive: Archive::new(),
            directories: Vec::new(),
            files: Vec::new(),
        };
        for directory in ["/bin", "/dev", "/proc", "/sys", "/run", "/tmp"] {
            initramfs.directory(Path::new(directory));
        }
        initramfs.file("/init", init.as_bytes());
        initramfs
    }

    /// Adds this machine's busybox.
    pub(crate) fn busybox(&mut self, remedy: &str) -> Result<()> {
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter();
        let busybox = busybox.map(Path::new).find(|path| path.exists());
        let busybox = busybox.with_context(|| format!("no busybox; {remedy}"))?;
        self.file("/bin/busybox", &fs::read(busybox)?);
        Ok(())
    }

    /// Adds the files below a directory of this machine, whose root is the guest's.
    pub(crate) fn tree(&mut self, root: &Path) -> Result<()> {
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in
                fs::read_dir(&directory).with_context(|| directory.display().to_string())?
            {
                let path = entry?.path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let place = Path::new("/").join(path.strip_prefix(root)?);
                    self.file(&place.display().to_string(), &fs::read(&path)?);
                }
            }
        }
        Ok(())
    }

    /// Adds a file, with the directories that it is in.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        if self.files.iter().any(|known| known == path) {
            return;
        }
        if let Some(directory) = Path::new(path).parent() {
            self.directory(directory);
        }
        self.archive.file(path, content);
        self.files.push(path.to_owned());
    }

    /// Adds a program and the libraries that it is linked with, which are where they are here.
    pub(crate) fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        self.file(path, &fs::read(program)?);
        for library in libraries(program)? {
            self.file(&library, &fs::read(&library)?);
        }
        Ok(())
    }

    /// The archive.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.archive.finish()
    }

    fn directory(&mut self, directory: &Path) {
        let mut above: Vec<String> = directory
            .ancestors()
            .map(|directory| directory.display().to_string())
            .collect();
        above.reverse();
        for directory in above {
            if directory != "/" && !self.directories.contains(&directory) {
                self.archive.directory(&directory);
                self.directories.push(directory);
            }
        }
    }
}

/// What `ldd` lists: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x..)`, and the loader by its path. Nothing of a
/// static program.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect())
}

/// A program without its debug information, which is larger than a guest's memory.
pub(crate) fn stripped(architecture: &str, program: &Path, dir: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("the program has no name")?;
    let to = dir.join(name);
    let stripped = Command::new(format!("{architecture}-linux-gnu-strip"))
        .arg("-o")
        .arg(&to)
        .arg(program)
        .status();
    let stripped = stripped.context("run strip, which comes with the C compiler")?;
    ensure!(stripped.success(), "strip: {stripped}");
    Ok(to)
}
