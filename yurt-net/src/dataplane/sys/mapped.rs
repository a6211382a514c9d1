//! Arrays of the kernel in our memory.
#![expect(unsafe_code, reason = "memory that is shared with the kernel")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;

/// An array map in our memory. Programs see stores at once.
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
        Self::part(map, 0, length)
    }

    /// The same for `length` entries from `first` on, which must begin a page. In this array `first` has the index 0.
    fn part(map: BorrowedFd<'_>, first: u32, length: u32) -> io::Result<Self> {
        let offset = libc::off_t::try_from(Self::bytes(first)).map_err(io::Error::other)?;
        // SAFETY: a new mapping; the kernel checks its place and length against the map's.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::bytes(length),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset,
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
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        let bytes = self.length as usize * size_of::<T>();
        // SAFETY: mapped by `new` with this length, and no pointer into it outlives self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
    }
}

/// The size of a window. Windows begin at multiples of it, so it must be a multiple of the page size and of the sizes
/// of entries: 8, 16 and 24 bytes.
const WINDOW_BYTES: usize = 3 << 16;
/// After this many windows in one sitting it is cheaper to map the whole array.
const WINDOWS: u32 = 4;

/// An array map, of which only the parts that are written to are in our memory.
///
/// The kernel maps every page of a mapping, whether it is used or not. Mapping the arrays of a table (a thousand pages)
/// took longer than everything else about a change of one Service, which writes to two pages.
#[derive(Debug)]
pub(in crate::dataplane) struct WindowedArray<'a, T> {
    map: BorrowedFd<'a>,
    length: u32,
    /// The first entry of the present window, and the window.
    window: Option<(u32, MappedArray<T>)>,
    windows: u32,
}

impl<'a, T: Copy> WindowedArray<'a, T> {
    /// An array as for [`MappedArray::new`], of which nothing is mapped yet.
    pub(in crate::dataplane) fn new(map: BorrowedFd<'a>, length: u32) -> Self {
        Self {
            map,
            length,
            window: None,
            windows: 0,
        }
    }

    /// Pointer to an entry, valid until the next call; `None` beyond the end.
    pub(in crate::dataplane) fn entry(&mut self, index: u32) -> io::Result<Option<NonNull<T>>> {
        if index >= self.length {
            return Ok(None);
        }
        if let Some((first, window)) = &self.window
            && let Some(entry) = index.checked_sub(*first).and_then(|at| window.entry(at))
        {
            return Ok(Some(entry));
        }
        let (first, length) = match self.windows < WINDOWS {
            true => Self::around(index, self.length),
            false => (0, self.length),
        };
        self.windows += 1;
        let window = MappedArray::part(self.map, first, length)?;
        let entry = window.entry(index - first);
        self.window = Some((first, window));
        Ok(entry)
    }

    /// The window of an entry: its first entry, and their number.
    fn around(index: u32, length: u32) -> (u32, u32) {
        const {
            assert!(WINDOW_BYTES.is_multiple_of(size_of::<T>()));
        }
        // 24,576 at most.
        let entries = u32::try_from(WINDOW_BYTES / size_of::<T>()).unwrap_or(u32::MAX);
        let first = index - index % entries;
        (first, entries.min(length - first))
    }

    /// Writes an entry that no program reads at the moment. False beyond the end of the array.
    pub(in crate::dataplane) fn write(&mut self, index: u32, value: T) -> io::Result<bool> {
        let entry = self.entry(index)?;
        // SAFETY: a valid entry of our own mapping.
        Ok(entry
            .map(|entry| unsafe { entry.write_volatile(value) })
            .is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use proptest::prelude::*;

    use super::*;

    /// An entry of the largest size, which does not divide a page.
    type Entry = [u64; 3];
    const LENGTH: u32 = 50_000;

    fn array() -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes = MappedArray::<Entry>::bytes(LENGTH);
        file.set_len(bytes.try_into().unwrap()).unwrap();
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_through_windows_is_where_the_whole_array_has_it(
            indices in proptest::collection::vec(
                prop_oneof![0..LENGTH + 2, 8190u32..8194, LENGTH - 2..LENGTH + 2],
                1..12,
            ),
        ) {
            let mut file = array();
            let mut expected = vec![0u64; LENGTH as usize * 3];
            let mut windowed = WindowedArray::<Entry>::new(file.as_fd(), LENGTH);
            for (index, value) in indices.into_iter().zip(1u64..) {
                let is_there = windowed.write(index, [value; 3]).unwrap();
                prop_assert_eq!(is_there, index < LENGTH);
                if is_there {
                    expected[index as usize * 3..][..3].fill(value);
                }
            }
            drop(windowed);
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            let words = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
            prop_assert!(words.eq(expected));
        }
    }

    #[test]
    fn a_few_entries_cost_a_few_windows_and_many_cost_the_array_once() {
        let file = array();
        let mut windowed = WindowedArray::<Entry>::new(file.as_fd(), LENGTH);
        let mut mapped = |index| {
            windowed.entry(index).unwrap().unwrap();
            let (first, window) = windowed.window.as_ref().unwrap();
            (*first, window.length)
        };
        assert_eq!(mapped(5), (0, 8192));
        assert_eq!(mapped(8191), (0, 8192));
        assert_eq!(mapped(8192), (8192, 8192));
        assert_eq!(mapped(LENGTH - 1), (49_152, 848));
        assert_eq!(mapped(0), (0, 8192));
        for index in [49_999, 0, 30_000] {
            assert_eq!(mapped(index), (0, LENGTH));
        }
    }
}
