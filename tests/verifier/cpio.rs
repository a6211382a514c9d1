//! An initramfs: a cpio archive in the `newc` form, as the kernel unpacks it.

/// An archive that grows file by file. Directories come before what is in them.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u64,
}

impl Archive {
    /// Empty.
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            inode: 0,
        }
    }

    /// Adds a directory.
    pub(crate) fn directory(&mut self, path: &str) {
        self.add(path, 0o040_755, b"");
    }

    /// Adds a file that can be run.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.add(path, 0o100_755, content);
    }

    /// The archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }

    fn add(&mut self, path: &str, mode: u64, content: &[u8]) {
        let path = path.trim_start_matches('/');
        self.inode += 1;
        let size = content.len() as u64;
        let name_size = path.len() as u64 + 1;
        // magic, then: inode mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Headers and contents start at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
