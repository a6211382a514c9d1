//! A directory of files that must survive: the few operations on it, each of which tests can make fail.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub mod errand;
#[cfg(test)]
pub(crate) mod memory;

/// Reads a file of at most this many bytes. A longer one, such as a crash or another tool leaves, is an error that
/// tells its size, and is never read into memory.
pub fn read_whole(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    whole(&File::open(path)?, most)
}

/// The same for text in UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let text = String::from_utf8(read_whole(path, most)?);
    text.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The same error, for callers whose library reads the file. A file that cannot be examined is for the library to
/// report.
pub fn check_size(path: &Path, most: u64) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.len() > most => Err(too_large(found.len(), most)),
        _ => Ok(()),
    }
}

fn too_large(size: u64, most: u64) -> io::Error {
    let reason = format!("it has {size} bytes, and no more than {most} are read");
    io::Error::new(io::ErrorKind::FileTooLarge, reason)
}

fn whole(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    if size > most {
        return Err(too_large(size, most));
    }
    // A file that grows, or has no size, is bounded as well.
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(too_large(file.metadata()?.len().max(most + 1), most)),
        false => Ok(bytes),
    }
}

/// A directory, and files in it by name.
pub trait Disk {
    /// A file that is open for writing.
    type File: Write;

    /// The path of a file, for messages.
    fn path(&self, name: &str) -> PathBuf;
    /// Opens a file for reading.
    fn read(&self, name: &str) -> io::Result<impl Read>;
    /// Makes a new file, in place of one with that name; also makes the directory if there is none.
    fn create(&mut self, name: &str) -> io::Result<Self::File>;
    /// Opens a file to write at its end; `None` if the end is not at the expected place.
    fn append(&mut self, name: &str, end: u64) -> io::Result<Option<Self::File>>;
    /// Returns once everything that was written is on the medium.
    fn sync_file(&mut self, file: &Self::File) -> io::Result<()>;
    /// Renames a file, in place of one with the new name.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Returns once the names are on the medium.
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

    /// Reads a file as [`read_whole`] does.
    pub fn read_whole(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        whole(&self.open(name)?, most)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        // Opening a pipe must not make the agent wait.
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

    /// Makes the directory. Its own name must be on the medium, too, or its contents would be lost with it.
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
        self.open(name)
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
        // Also syncs the length, but not the times.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_one_that_is_longer_is_an_error_that_tells_both() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "12345678").unwrap();
        let named = Directory::new(directory.path());
        assert_eq!(read_whole(&path, 8).unwrap(), b"12345678");
        assert_eq!(named.read_whole("file", 8).unwrap(), b"12345678");
        assert_eq!(read_text(&path, 8).unwrap(), "12345678");
        // More than this machine has memory for.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for size in [9, 1 << 40] {
            file.set_len(size).unwrap();
            for read in [read_whole(&path, 8), named.read_whole("file", 8)] {
                let error = read.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
                let expected = format!("it has {size} bytes, and no more than 8 are read");
                assert_eq!(error.to_string(), expected);
            }
        }
    }

    #[test]
    fn what_has_no_size_and_no_end_is_bounded_too() {
        let error = read_whole(Path::new("/dev/zero"), 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_whole(Path::new("/dev/null"), 4096).unwrap(), b"");
    }

    #[test]
    fn text_that_is_none_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [0xff]).unwrap();
        let error = read_text(file.path(), 8).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
