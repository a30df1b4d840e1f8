//! Arrays that kernel and userspace share, as slices.

#![expect(unsafe_code, reason = "mmap of map file descriptors, and advice on what lies in memory")]

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use relay_common::index::IndexBucket;
use relay_common::interface::Interface;
use relay_common::local::Local;
use relay_common::next_hop::NextHop;
use relay_common::slot::Slot;

use super::meta::Meta;
use super::record::Record;

/// A record that lies in shared memory.
///
/// # Safety
/// Every byte of it is part of a `Word32`, `Word64` or atomic integer (so other writers are no data race), all-zero bytes are a valid
/// value, and its size is a multiple of 8, so that an array map's stride is its size.
pub unsafe trait Shared: Default + Sync + Send {}

// SAFETY: made of words only; zero is their initial state; the sizes are asserted where the types are defined.
unsafe impl Shared for IndexBucket {}
// SAFETY: as for IndexBucket.
unsafe impl Shared for Slot {}
// SAFETY: as for IndexBucket.
unsafe impl Shared for NextHop {}
// SAFETY: as for IndexBucket.
unsafe impl Shared for Interface {}
// SAFETY: as for IndexBucket.
unsafe impl Shared for Local {}
// SAFETY: as for IndexBucket, and of atomic integers.
unsafe impl Shared for Record {}
// SAFETY: as for IndexBucket.
unsafe impl Shared for Meta {}

/// An array in memory that others may be writing too.
pub enum SharedArray<T: Shared> {
    /// A mapped BPF array.
    Mapped(Mapping<T>),
    /// Memory of this process alone.
    Private(Box<[T]>),
}

impl<T: Shared> SharedArray<T> {
    /// `entries` records of this process alone.
    pub fn private(entries: u32) -> Self {
        SharedArray::Private(records(entries))
    }
}

impl<T: Shared> Deref for SharedArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            SharedArray::Mapped(mapping) => mapping,
            SharedArray::Private(records) => records,
        }
    }
}

/// `entries` records in memory of this process, on huge pages where there are any: they are looked up at random, and with
/// small pages nearly each look-up in a large array has to find out first where its page is.
pub fn records<T: Default>(entries: u32) -> Box<[T]> {
    const PAGE: usize = 4096;
    const HUGE_PAGE: usize = 2 << 20;
    let mut records = Vec::with_capacity(entries as usize);
    let room = records.spare_capacity_mut().as_ptr_range();
    let (start, end) = ((room.start as usize).next_multiple_of(PAGE), room.end as usize / PAGE * PAGE);
    if end.saturating_sub(start) >= HUGE_PAGE {
        // SAFETY: these are whole pages of memory that is ours. The advice changes nothing of what is in them; that it is
        // not taken does no harm.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
    records.extend((0..entries).map(|_| T::default()));
    records.into_boxed_slice()
}

/// A BPF array map or a memory file, mapped read-write. Lives on after the file descriptor is closed.
pub struct Mapping<T> {
    start: NonNull<T>,
    entries: usize,
    records: PhantomData<T>,
}

// SAFETY: the memory is not bound to a thread, and `T: Shared` may be reached from several.
unsafe impl<T: Shared> Send for Mapping<T> {}
// SAFETY: as for Send.
unsafe impl<T: Shared> Sync for Mapping<T> {}

impl<T: Shared> Mapping<T> {
    /// Maps `map`, an array of `entries` records of `T` that was created with `BPF_F_MMAPABLE`, or a memory file that is as
    /// long and cannot be made shorter.
    ///
    /// # Errors
    /// What mmap(2) says; EINVAL if a BPF map is smaller than that.
    pub fn new(map: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        let entries = entries as usize;
        let length = entries
            .checked_mul(size_of::<T>())
            .filter(|length| *length > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping at an address the kernel chooses touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Mapping { start, entries, records: PhantomData })
    }
}

impl<T: Shared> Deref for Mapping<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page-aligned, which covers `T`'s alignment, and `entries` records long; it holds valid
        // records from the start (zeroes) and nobody writes anything that is not a word's value; it lives until drop.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.entries) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the range is the one that was mapped, and the borrow checker saw to it that no slice of it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.entries * size_of::<T>()) };
    }
}
