//! A disk in memory that fails, fills up and loses power on demand.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::path::PathBuf;
use std::rc::Rc;

use crate::host::disk::Disk;

/// What ext4 with blocks of 4 KiB wrote for an fsync besides the blocks of the file, as measured (13 to 21 KB).
const SYNC_BYTES: u64 = 20 * 1024;
const BLOCK: usize = 4096;

/// What the next trouble is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The operation fails.
    Fails,
    /// The operation and all later ones fail: the power is off.
    Crashes,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    /// How many of them are on the medium.
    synced: usize,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Inode>,
    names: BTreeMap<String, usize>,
    /// The names before each change since the last sync; the first ones are on the medium.
    history: Vec<BTreeMap<String, usize>>,
    operations: usize,
    trouble: Option<(usize, Trouble)>,
    is_off: bool,
    is_read_only: bool,
    room: Option<usize>,
    device_bytes: u64,
}

/// A handle: clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Rc<RefCell<State>>);

pub(crate) struct MemoryFile {
    disk: Memory,
    file: usize,
}

impl Memory {
    /// Makes the n-th operation from now on go wrong.
    pub(crate) fn expect(&self, operation: usize, trouble: Trouble) {
        let mut state = self.0.borrow_mut();
        state.trouble = Some((state.operations + operation, trouble));
    }

    pub(crate) fn expects_trouble(&self) -> bool {
        self.0.borrow().trouble.is_some()
    }

    pub(crate) fn is_off(&self) -> bool {
        self.0.borrow().is_off
    }

    pub(crate) fn set_read_only(&self, is_read_only: bool) {
        self.0.borrow_mut().is_read_only = is_read_only;
    }

    pub(crate) fn set_room(&self, bytes: Option<usize>) {
        self.0.borrow_mut().room = bytes;
    }

    /// What was written to the medium, by the measure of ext4.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.0.borrow().device_bytes
    }

    pub(crate) fn operations(&self) -> usize {
        self.0.borrow().operations
    }

    pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.borrow();
        let file = state.names.get(name)?;
        Some(state.files[*file].bytes.clone())
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let mut state = self.0.borrow_mut();
        let file = Inode {
            bytes: bytes.to_vec(),
            synced: bytes.len(),
        };
        state.files.push(file);
        let file = state.files.len() - 1;
        state.names.insert(name.to_owned(), file);
        state.history.clear();
    }

    /// What is there when the power is back: some of the changes of names; of each file what was synced, a part of what
    /// was not, and perhaps zeros for the rest.
    pub(crate) fn after_power_cut(&self, mut luck: usize) -> Self {
        let mut draw = |sides: usize| {
            luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (luck >> 33) % sides
        };
        let state = self.0.borrow();
        let last = std::iter::once(&state.names);
        let versions: Vec<_> = state.history.iter().chain(last).collect();
        let names = versions[draw(versions.len())].clone();
        let mut files = state.files.clone();
        for file in &mut files {
            let lost = file.bytes.len() - file.synced;
            let kept = file.synced + draw(lost + 1);
            let length = file.bytes.len();
            file.bytes.truncate(kept);
            if draw(3) == 0 {
                file.bytes.resize(length, 0);
            }
            file.synced = file.bytes.len();
        }
        Self(Rc::new(RefCell::new(State {
            files,
            names,
            ..State::default()
        })))
    }

    /// What the next process finds after this one was killed: everything that was done.
    pub(crate) fn after_kill(&self) -> Self {
        let state = self.0.borrow();
        Self(Rc::new(RefCell::new(State {
            files: state.files.clone(),
            names: state.names.clone(),
            history: state.history.clone(),
            ..State::default()
        })))
    }

    fn operate(&self) -> io::Result<std::cell::RefMut<'_, State>> {
        let mut state = self.0.borrow_mut();
        state.operations += 1;
        let operation = state.operations;
        if let Some((_, trouble)) = state.trouble.take_if(|(at, _)| *at == operation) {
            state.is_off = trouble == Trouble::Crashes;
            return Err(io::Error::other("trouble"));
        }
        if state.is_off {
            return Err(io::Error::other("power is off"));
        }
        if state.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(state)
    }

    fn change(&self, change: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        let mut state = self.operate()?;
        let before = state.names.clone();
        change(&mut state)?;
        state.history.push(before);
        Ok(())
    }
}

impl Disk for Memory {
    type File = MemoryFile;

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }

    fn read(&self, name: &str) -> io::Result<impl Read> {
        let bytes = self.get(name);
        Ok(Cursor::new(bytes.ok_or(io::ErrorKind::NotFound)?))
    }

    fn create(&mut self, name: &str) -> io::Result<MemoryFile> {
        self.change(|state| {
            state.files.push(Inode::default());
            let file = state.files.len() - 1;
            state.names.insert(name.to_owned(), file);
            Ok(())
        })?;
        let file = self.0.borrow().files.len() - 1;
        Ok(MemoryFile {
            disk: self.clone(),
            file,
        })
    }

    fn append(&mut self, name: &str, end: u64) -> io::Result<Option<MemoryFile>> {
        let state = self.operate()?;
        let file = state.names.get(name).copied();
        let length = |file: &usize| u64::try_from(state.files[*file].bytes.len()).unwrap();
        Ok(file
            .filter(|file| length(file) == end)
            .map(|file| MemoryFile {
                disk: self.clone(),
                file,
            }))
    }

    fn sync_file(&mut self, file: &MemoryFile) -> io::Result<()> {
        let mut state = self.operate()?;
        let inode = &mut state.files[file.file];
        let blocks = inode.bytes.len().div_ceil(BLOCK) - inode.synced / BLOCK;
        inode.synced = inode.bytes.len();
        state.device_bytes += u64::try_from(blocks * BLOCK).unwrap() + SYNC_BYTES;
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state| {
            let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), file);
            Ok(())
        })
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.change(|state| {
            state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.operate()?;
        state.history.clear();
        state.device_bytes += SYNC_BYTES;
        Ok(())
    }
}

impl Write for MemoryFile {
    /// A write that fails has written half.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (length, error) = match self.disk.operate() {
            Ok(_) => (bytes.len(), None),
            Err(error) => (bytes.len() / 2, Some(error)),
        };
        let mut state = self.disk.0.borrow_mut();
        let used: usize = state
            .names
            .values()
            .map(|file| state.files[*file].bytes.len())
            .sum();
        let room = state.room.unwrap_or(usize::MAX).saturating_sub(used);
        let taken = length.min(room);
        state.files[self.file]
            .bytes
            .extend_from_slice(&bytes[..taken]);
        match error {
            Some(error) => Err(error),
            None if taken == 0 => Err(io::ErrorKind::StorageFull.into()),
            None => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
