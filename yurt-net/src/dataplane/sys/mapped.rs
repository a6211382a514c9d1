//! Arrays of the kernel in our memory.
#![expect(unsafe_code, reason = "memory that is shared with the kernel")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;

/// An array map in our memory. Stores are seen by programs at once.
#[derive(Debug)]
pub(in crate::dataplane) struct MappedArray<T> {
    base: NonNull<T>,
    length: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl<T> Send for MappedArray<T> {}

impl<T: Copy> MappedArray<T> {
    /// Maps a map that was made with `BPF_F_MMAPABLE`, values of `T` and `length` entries.
    pub(in crate::dataplane) fn new(map: BorrowedFd<'_>, length: u32) -> io::Result<Self> {
        // SAFETY: a new mapping; the kernel checks the length against the map's.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::bytes(length),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self { base, length })
    }

    fn bytes(length: u32) -> usize {
        // Values are padded to 8 bytes; every type in these maps has that size already.
        length as usize * size_of::<T>()
    }

    /// Pointer to an entry; `None` beyond the end.
    pub(in crate::dataplane) fn entry(&self, index: u32) -> Option<NonNull<T>> {
        // SAFETY: below `length`, so inside the mapping.
        (index < self.length).then(|| unsafe { self.base.add(index as usize) })
    }

    /// Reads an entry that programs do not write.
    pub(in crate::dataplane) fn read(&self, index: u32) -> Option<T> {
        // SAFETY: a valid entry, and any bytes are a valid `T`: it is an ABI type.
        self.entry(index)
            .map(|entry| unsafe { entry.read_volatile() })
    }

    /// Writes an entry that no program reads at the moment. False beyond the end.
    pub(in crate::dataplane) fn write(&self, index: u32, value: T) -> bool {
        // SAFETY: a valid entry of our own mapping.
        self.entry(index)
            .map(|entry| unsafe { entry.write_volatile(value) })
            .is_some()
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        let bytes = self.length as usize * size_of::<T>();
        // SAFETY: mapped by `new` with this length, and no pointer into it outlives self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
    }
}
