//! Words in memory that others write at the same time: the only module of this crate with `unsafe`.
//!
//! What it guarantees to the safe code above: every access is one atomic operation of a fixed width inside the
//! region; the region stays mapped as long as anything made from it lives; no reference to the memory is handed
//! out. What the memory *contains* is never trusted here.
#![expect(unsafe_code, reason = "memory shared with a guest can only be reached through raw pointers")]

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::fmt;
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::Ordering::{self, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::{Entry, QueueSize, QueueWords};

/// A piece of shared memory together with what keeps it mapped. Clones share the memory.
///
/// Accesses outside the region, or not aligned to their own size, read zero and write nothing, as undefined
/// offsets of a register page do.
#[derive(Clone)]
pub struct SharedRegion {
    base: NonNull<u8>,
    len: usize,
    _owner: Arc<dyn Send + Sync>,
}

// SAFETY: all accesses to the memory are atomic, and the owner, which is Send and Sync itself, only keeps it mapped.
unsafe impl Send for SharedRegion {}
// SAFETY: as above.
unsafe impl Sync for SharedRegion {}

impl SharedRegion {
    /// A region of mapped memory.
    ///
    /// # Safety
    ///
    /// `base..base + len` must be mapped, readable and writable, and stay so until `owner` is dropped. Rust code
    /// in this process must not hold a reference to it, nor access it non-atomically while the region lives.
    pub unsafe fn new(base: NonNull<u8>, len: usize, owner: Arc<dyn Send + Sync>) -> Self {
        Self { base, len, _owner: owner }
    }

    /// A region of ordinary memory, initially `words`; for tests and for queues within one process.
    pub fn from_words(words: Vec<u64>) -> Self {
        struct Owner(NonNull<[u64]>);
        // SAFETY: the pointer is used by `drop` alone, and a box of integers may be freed by any thread.
        unsafe impl Send for Owner {}
        // SAFETY: as above.
        unsafe impl Sync for Owner {}
        impl Drop for Owner {
            fn drop(&mut self) {
                // SAFETY: the pointer came from `Box::leak` below and is freed once, after the last region.
                drop(unsafe { Box::from_raw(self.0.as_ptr()) });
            }
        }
        let words = NonNull::from(Box::leak(words.into_boxed_slice()));
        let owner = Arc::new(Owner(words));
        // SAFETY: the leaked box stays until the owner frees it, and nobody else holds a reference to it.
        unsafe { Self::new(words.cast(), words.len() * 8, owner) }
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of the region from `offset` on that is `len` bytes long.
    pub fn part(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset` is inside the region, or one past it.
        let base = (end <= self.len).then(|| unsafe { self.base.add(offset) })?;
        Some(Self { base, len, _owner: self._owner.clone() })
    }

    /// Loads the 32-bit word at a byte offset.
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        // SAFETY: `word` checked the bounds and the alignment; `self` keeps the memory mapped.
        self.word(offset).map_or(0, |p| unsafe { AtomicU32::from_ptr(p.as_ptr()) }.load(order))
    }

    /// Stores the 32-bit word at a byte offset.
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        if let Some(p) = self.word(offset) {
            // SAFETY: as in `load_u32`.
            unsafe { AtomicU32::from_ptr(p.as_ptr()) }.store(value, order);
        }
    }

    /// Loads the 64-bit word at a byte offset.
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        // SAFETY: as in `load_u32`.
        self.word(offset).map_or(0, |p| unsafe { AtomicU64::from_ptr(p.as_ptr()) }.load(order))
    }

    /// Stores the 64-bit word at a byte offset.
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        if let Some(p) = self.word(offset) {
            // SAFETY: as in `load_u32`.
            unsafe { AtomicU64::from_ptr(p.as_ptr()) }.store(value, order);
        }
    }

    /// A pointer to the `T` at a byte offset if it is wholly inside and aligned.
    fn word<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset` is inside the region.
        let p = unsafe { self.base.add(offset) }.cast::<T>();
        p.is_aligned().then_some(p)
    }
}

impl fmt::Debug for SharedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRegion")
            .field("base", &self.base)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A 32-bit word of shared memory that is loaded often: without a check each time.
#[derive(Clone, Debug)]
pub struct SharedWord {
    word: NonNull<u32>,
    _region: SharedRegion,
}

// SAFETY: as for `SharedRegion`, which keeps the memory mapped.
unsafe impl Send for SharedWord {}

impl SharedWord {
    /// The word at a byte offset; `None` if it is not wholly inside or not aligned.
    pub fn new(region: SharedRegion, offset: usize) -> Option<Self> {
        Some(Self { word: region.word(offset)?, _region: region })
    }

    /// Loads the word.
    #[inline]
    pub fn load(&self, order: Ordering) -> u32 {
        // SAFETY: `new` checked bounds and alignment; the region is mapped as long as `self` lives.
        unsafe { AtomicU32::from_ptr(self.word.as_ptr()) }.load(order)
    }
}

/// A queue whose slots, PROD and CONS lie in shared memory.
#[derive(Clone, Debug)]
pub struct SharedQueue {
    slots: NonNull<u64>,
    /// Number of slots less one: slots are taken modulo the size, so that none is outside.
    mask: usize,
    prod: NonNull<u32>,
    cons: NonNull<u32>,
    ring: SharedRegion,
    _registers: SharedRegion,
}

// SAFETY: the pointers point into the two regions, which are Send and kept alive by this value.
unsafe impl Send for SharedQueue {}

impl SharedQueue {
    /// The queue whose slots start `offset` bytes into `ring`, and whose PROD and CONS words are at the byte
    /// offsets `prod` and `cons` of `registers`; `None` if one of them is not wholly inside or not aligned.
    pub fn new(
        ring: SharedRegion,
        offset: usize,
        size: QueueSize,
        registers: SharedRegion,
        prod: usize,
        cons: usize,
    ) -> Option<Self> {
        let ring = ring.part(offset, size.bytes())?;
        Some(Self {
            slots: ring.word(0)?,
            mask: size.entries() as usize - 1,
            prod: registers.word(prod)?,
            cons: registers.word(cons)?,
            ring,
            _registers: registers,
        })
    }

    /// The memory of the slots, slot 0 first.
    pub fn ring(&self) -> &SharedRegion {
        &self.ring
    }

    /// The words of up to `n` slots that follow each other: fewer where the ring ends.
    fn slots(&self, slot: u32, n: usize) -> &[[AtomicU64; 2]] {
        let slot = slot as usize & self.mask;
        let n = n.min(self.mask + 1 - slot);
        // SAFETY: the mask keeps the first slot below the size, and `n` the last, whose bytes `new` found inside the ring
        // region; that region is aligned to 8 bytes (`new`) and mapped as long as `self` lives. What others write
        // meanwhile, they write to atomics.
        unsafe { slice::from_raw_parts(self.slots.add(2 * slot).cast().as_ptr(), n) }
    }

    fn prod(&self) -> &AtomicU32 {
        // SAFETY: `new` checked bounds and alignment; the region is mapped as long as `self` lives.
        unsafe { AtomicU32::from_ptr(self.prod.as_ptr()) }
    }

    fn cons(&self) -> &AtomicU32 {
        // SAFETY: as in `prod`.
        unsafe { AtomicU32::from_ptr(self.cons.as_ptr()) }
    }
}

impl QueueWords for SharedQueue {
    fn load_prod(&self, order: Ordering) -> u32 {
        self.prod().load(order)
    }

    fn store_prod(&self, word: u32, order: Ordering) {
        self.prod().store(word, order);
    }

    fn load_cons(&self, order: Ordering) -> u32 {
        self.cons().load(order)
    }

    fn store_cons(&self, word: u32, order: Ordering) {
        self.cons().store(word, order);
    }

    fn load_entry(&self, slot: u32) -> Entry {
        let mut entry = [0; 2];
        self.load_entries(slot, slice::from_mut(&mut entry));
        entry
    }

    fn store_entry(&self, slot: u32, entry: Entry) {
        self.store_entries(slot, &[entry]);
    }

    #[inline]
    fn load_entries(&self, slot: u32, to: &mut [Entry]) {
        let load = |(to, [low, high]): (&mut Entry, &[AtomicU64; 2])| {
            // Relaxed: ordered after the acquire load of PROD that published the slot.
            *to = [u64::from_le(low.load(Relaxed)), u64::from_le(high.load(Relaxed))];
        };
        let (slot_fours, slot_rest) = self.slots(slot, to.len()).as_chunks::<4>();
        let (fours, rest) = to.as_chunks_mut::<4>();
        for (to, slots) in fours.iter_mut().zip(slot_fours) {
            to.iter_mut().zip(slots).for_each(load);
        }
        rest.iter_mut().zip(slot_rest).for_each(load);
    }

    #[inline]
    fn store_entries(&self, slot: u32, from: &[Entry]) {
        let (fours, rest) = from.as_chunks::<4>();
        let (slot_fours, slot_rest) = self.slots(slot, from.len()).as_chunks::<4>();
        let store = |([low, high], from): (&[AtomicU64; 2], &Entry)| {
            // Relaxed: ordered before the release store of PROD that publishes the slot.
            low.store(from[0].to_le(), Relaxed);
            high.store(from[1].to_le(), Relaxed);
        };
        for (slots, from) in slot_fours.iter().zip(fours) {
            slots.iter().zip(from).for_each(store);
        }
        slot_rest.iter().zip(rest).for_each(store);
    }
}
