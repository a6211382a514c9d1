//! A checkpoint on disk: any bytes, frames that are well formed and say anything, and real ones that are cut or
//! flipped.
//!
//! The input: a byte that says what is done (below), two that say where, then frames, each a length in two bytes
//! (little endian) and so many bytes of records.
#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use yurt_net::host::disk::Disk;
use yurt_net::source::checkpoint::{Contents, Loaded, Occasion, Saver};
use yurt_net_fuzz::follow;

const FILE: &str = "checkpoint";

fuzz_target!(|data: &[u8]| {
    load(data);
    let [what, at_high, at_low, frames @ ..] = data else {
        return;
    };
    let Some(first) = load(&packed(frames)) else {
        return;
    };
    follow(&first.snapshot);
    let disk = Memory::default();
    save(&disk, &first);
    assert_eq!(
        disk.load().as_ref(),
        Some(&first),
        "what was saved is not what is read"
    );

    // A journal behind it, whose only change is that something is gone.
    let mut second = first.clone();
    second.snapshot.services.pop_first();
    second.snapshot.nodes.pop_last();
    second.provenance.synced_at = first.provenance.synced_at.wrapping_add(1);
    save(&disk, &second);
    assert_eq!(
        disk.load().as_ref(),
        Some(&second),
        "what was appended is not what is read"
    );

    // Damage anywhere gives one of the states that were saved, or none.
    let mut bytes = disk.get(FILE);
    let at = usize::from(u16::from_be_bytes([*at_high, *at_low])) % bytes.len();
    match what % 3 {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << (what / 3 % 8),
        _ => drop(bytes.splice(at..at, frames.iter().copied())),
    }
    let damaged = Memory::default();
    damaged.put(FILE, bytes);
    if let Some(found) = damaged.load() {
        assert!(
            found == first || found == second,
            "a damaged file says something new"
        );
    }
});

fn load(bytes: &[u8]) -> Option<Loaded> {
    let disk = Memory::default();
    disk.put(FILE, bytes.to_vec());
    disk.load()
}

fn save(disk: &Memory, loaded: &Loaded) {
    let (mut saver, _) = Saver::on(disk.clone());
    let contents = Contents::of(&loaded.snapshot);
    let saved = saver.save(contents, &loaded.provenance, Occasion::Everything);
    saved.expect("memory takes it");
}

/// A file of such frames, by the description in `source/checkpoint/codec.rs`.
fn packed(mut frames: &[u8]) -> Vec<u8> {
    let mut checksum = crc32fast::Hasher::new();
    let mut file = b"YURT-NET\x01\0\0\0".to_vec();
    checksum.update(&file);
    file.extend(checksum.clone().finalize().to_le_bytes());
    while let [low, high, rest @ ..] = frames {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (records, rest) = rest.split_at(length.min(rest.len()));
        let block = lz4_flex::block::compress_prepend_size(records);
        let length = u32::try_from(block.len())
            .expect("it is small")
            .to_le_bytes();
        checksum.update(&length);
        checksum.update(&block);
        file.extend(length);
        file.extend(checksum.clone().finalize().to_le_bytes());
        file.extend(block);
        frames = rest;
    }
    file
}

/// A directory in memory; clones are the same one.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<BTreeMap<String, Vec<u8>>>>);

struct File {
    disk: Memory,
    name: String,
}

impl Memory {
    fn get(&self, name: &str) -> Vec<u8> {
        self.0.borrow().get(name).cloned().unwrap_or_default()
    }

    fn put(&self, name: &str, bytes: Vec<u8>) {
        self.0.borrow_mut().insert(name.to_owned(), bytes);
    }

    fn load(&self) -> Option<Loaded> {
        Saver::on(self.clone()).1.loaded
    }
}

impl Disk for Memory {
    type File = File;

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn read(&self, name: &str) -> io::Result<impl Read> {
        let bytes = self.0.borrow().get(name).cloned();
        bytes
            .map(io::Cursor::new)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        self.put(name, Vec::new());
        let (disk, name) = (self.clone(), name.to_owned());
        Ok(File { disk, name })
    }

    fn append(&mut self, name: &str, end: u64) -> io::Result<Option<File>> {
        let is_there = u64::try_from(self.get(name).len()).is_ok_and(|length| length == end);
        let (disk, name) = (self.clone(), name.to_owned());
        Ok(is_there.then_some(File { disk, name }))
    }

    fn sync_file(&mut self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let bytes = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let removed = self.0.borrow_mut().remove(name);
        removed
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut files = self.disk.0.borrow_mut();
        files
            .entry(self.name.clone())
            .or_default()
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
