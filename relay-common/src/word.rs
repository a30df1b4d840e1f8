//! Words of memory that kernel and userspace share.
//!
//! All of the crate's unsafe code is here. Kernel maps are mapped into the daemon, so every field of a shared record
//! is one of these words: no reference to plain data that another CPU may be writing ever exists.
#![cfg_attr(not(loom), expect(unsafe_code, reason = "shared memory, and the BPF target has no atomic types"))]

#[cfg(not(loom))]
use core::cell::UnsafeCell;
#[cfg(not(any(target_arch = "bpf", loom)))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A 64-bit word in shared memory.
#[cfg(not(loom))]
#[derive(Default)]
#[repr(transparent)]
pub struct Word64(UnsafeCell<u64>);

/// A 32-bit word in shared memory.
#[cfg(not(loom))]
#[derive(Default)]
#[repr(transparent)]
pub struct Word32(UnsafeCell<u32>);

/// A 64-bit word in a model of memory: see `relay-common/loom`.
///
/// Beside the value stands what each access touches in no order. It makes all accesses to one word depend on each other:
/// loom remembers only the last load, so a store after a load by the same thread would never come before another thread's.
#[cfg(loom)]
#[derive(Default)]
pub struct Word64(AtomicU64, AtomicU32);

/// A 32-bit word in a model of memory, as [`Word64`].
#[cfg(loom)]
#[derive(Default)]
pub struct Word32(AtomicU32, AtomicU32);

// SAFETY: the content is only reached through the atomic operations below (single aligned instructions on the BPF
// target), so sharing references between threads is sound.
#[cfg(not(loom))]
unsafe impl Sync for Word64 {}
// SAFETY: as for Word64.
#[cfg(not(loom))]
unsafe impl Sync for Word32 {}
// SAFETY: a word owns nothing that is bound to a thread.
#[cfg(not(loom))]
unsafe impl Send for Word64 {}
// SAFETY: as for Word64.
#[cfg(not(loom))]
unsafe impl Send for Word32 {}

/// On the BPF target. An atomic load cannot be selected by LLVM for it, but an aligned volatile read is one load
/// instruction, and x86-64 keeps loads in order (the only architecture the project builds for).
///
/// Read-modify-write operations whose result is used are `SeqCst`: LLVM 22 drops the fetch of relaxed ones
/// (llvm-project issue 210280).
#[cfg(target_arch = "bpf")]
mod operations {
    use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

    use super::{Word32, Word64};

    // They are relaxed, so they must yield nothing: see above.
    const _: (fn(&Word64, u64), fn(&Word32, u32)) = (Word64::add, Word32::add);

    impl Word64 {
        /// The present value.
        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: the pointer comes from a live reference, so it is valid and aligned.
            unsafe { core::ptr::read_volatile(self.0.get()) }
        }

        /// Replaces `current` by `new`, or tells what is there instead.
        #[inline(always)]
        pub fn replace(&self, current: u64, new: u64) -> Result<(), u64> {
            // SAFETY: as for `load`.
            let (found, replaced) = unsafe {
                atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                    self.0.get(),
                    current,
                    new,
                )
            };
            if replaced { Ok(()) } else { Err(found) }
        }

        /// Adds, wrapping.
        #[inline(always)]
        pub fn add(&self, amount: u64) {
            // SAFETY: as for `load`. The result is not used, so the relaxed form is right.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(self.0.get(), amount) };
        }
    }

    impl Word32 {
        /// The present value.
        #[inline(always)]
        pub fn load(&self) -> u32 {
            // SAFETY: the pointer comes from a live reference, so it is valid and aligned.
            unsafe { core::ptr::read_volatile(self.0.get()) }
        }

        /// Writes `value`.
        #[inline(always)]
        pub fn store(&self, value: u32) {
            // SAFETY: as for `load`.
            unsafe { core::ptr::write_volatile(self.0.get(), value) };
        }

        /// Adds, wrapping.
        #[inline(always)]
        pub fn add(&self, amount: u32) {
            // SAFETY: as for `load`. The result is not used, so the relaxed form is right.
            unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(self.0.get(), amount) };
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
macro_rules! host_word {
    ($word:ident, $plain:ident, $atomic:ident) => {
        impl $word {
            #[cfg(not(loom))]
            #[inline(always)]
            fn atomic(&self) -> &$atomic {
                // SAFETY: the pointer is valid and aligned for the life of `self`, and everything that reaches the
                // content does so atomically.
                unsafe { $atomic::from_ptr(self.0.get()) }
            }

            #[cfg(loom)]
            fn atomic(&self) -> &$atomic {
                self.1.fetch_add(1, Ordering::Relaxed);
                &self.0
            }

            /// The present value; later reads see what was written before it was.
            #[inline(always)]
            pub fn load(&self) -> $plain {
                self.atomic().load(Ordering::Acquire)
            }

            /// Writes `value`; whoever sees it sees what was written before.
            #[inline(always)]
            pub fn store(&self, value: $plain) {
                self.atomic().store(value, Ordering::Release);
            }

            /// Replaces `current` by `new`, or tells what is there instead.
            #[inline(always)]
            pub fn replace(&self, current: $plain, new: $plain) -> Result<(), $plain> {
                self.atomic().compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ())
            }

            /// Adds, wrapping.
            #[inline(always)]
            pub fn add(&self, amount: $plain) {
                self.atomic().fetch_add(amount, Ordering::Relaxed);
            }
        }

        impl core::fmt::Debug for $word {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.load().fmt(f)
            }
        }
    };
}

#[cfg(not(target_arch = "bpf"))]
host_word!(Word64, u64, AtomicU64);
#[cfg(not(target_arch = "bpf"))]
host_word!(Word32, u32, AtomicU32);
