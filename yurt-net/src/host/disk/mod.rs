//! A directory of files that must survive: the few things that are done to it, so that tests can fail any one of them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub mod errand;
#[cfg(test)]
pub(crate) mod memory;

/// A directory, and files in it by name.
pub trait Disk {
    /// A file that is open for writing.
    type File: Write;

    /// Where a file is, for messages.
    fn path(&self, name: &str) -> PathBuf;
    /// Opens a file for reading.
    fn read(&self, name: &str) -> io::Result<impl Read>;
    /// Makes a new file, in place of one of that name; and the directory, if there is none.
    fn create(&mut self, name: &str) -> io::Result<Self::File>;
    /// Opens a file to write at its end; `None` unless that is where it is thought to be.
    fn append(&mut self, name: &str, end: u64) -> io::Result<Option<Self::File>>;
    /// Returns when what was written is on the medium.
    fn sync_file(&mut self, file: &Self::File) -> io::Result<()>;
    /// Gives a file another name, in place of one that has it.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Returns when the names are on the medium.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the file system. Files are for root only, and links are not followed.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// The directory need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes the directory; its name must be on the medium too, or all that is in it is for nothing.
    fn make(&self) -> io::Result<()> {
        if self.0.is_dir() {
            return Ok(());
        }
        let parent = self.0.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent)?;
        DirBuilder::new().mode(0o700).create(&self.0)?;
        File::open(parent)?.sync_all()
    }
}

impl Disk for Directory {
    type File = File;

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> io::Result<impl Read> {
        // A pipe must not make the agent wait.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(self.path(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(file)
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        self.make()?;
        match self.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(name))
    }

    fn append(&mut self, name: &str, end: u64) -> io::Result<Option<File>> {
        let opened = OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.path(name));
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let metadata = file.metadata()?;
        Ok((metadata.is_file() && metadata.len() == end).then_some(file))
    }

    fn sync_file(&mut self, file: &File) -> io::Result<()> {
        // The length is data; the times are not.
        file.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync(&mut self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}
