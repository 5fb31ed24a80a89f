//! Memory that a test reaches by plain accesses, and the engine by atomic ones.
#![expect(unsafe_code, reason = "a plain access to shared memory takes a raw pointer")]

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Relaxed};

use ecmdq_engine::memory::{GuestRam, Ram};
use ecmdq_ring::SharedRegion;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A piece of memory. Its plain accesses are sound as long as the protocol under test orders them against everybody else's, which
/// is what ThreadSanitizer checks.
#[derive(Clone, Debug)]
pub struct Memory {
    base: NonNull<u8>,
    /// The same memory as the engine knows it; it also keeps it mapped.
    pub region: SharedRegion,
}

// SAFETY: the memory stays mapped as long as the value lives, and any thread may access it.
unsafe impl Send for Memory {}
// SAFETY: as above; see `Memory` for what orders the accesses.
unsafe impl Sync for Memory {}

/// What keeps a `Memory::new` where it is.
struct Words(#[expect(dead_code, reason = "reached by its address alone")] Box<[UnsafeCell<u64>]>);

// SAFETY: nobody but `Memory` reaches the words.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Memory {
    /// Zeroed memory.
    pub fn new(len: usize) -> Self {
        let words: Box<[_]> = (0..len / 8).map(|_| UnsafeCell::new(0)).collect();
        let base = NonNull::from(&*words).cast();
        // SAFETY: the words stay where they are until the region drops their owner. Plain accesses are ordered; see `Memory`.
        let region = unsafe { SharedRegion::new(base, len, Arc::new(Words(words))) };
        Self { base, region }
    }

    /// A guest's memory, and the same as the engine wants it.
    pub fn ram(at: u64, len: usize) -> (Self, Box<dyn GuestRam>) {
        let map = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(at), len)]).unwrap());
        let base = NonNull::new(map.get_host_address(GuestAddress(at)).unwrap()).unwrap();
        let ram = Ram::new(map);
        let region = ram.region(GuestAddress(at), len).unwrap();
        (Self { base, region }, Box::new(ram))
    }

    /// A plain store of a 32-bit word.
    pub fn write(&self, offset: usize, value: u32) {
        // SAFETY: `word` checked the bounds, and the protocol under test orders the access.
        unsafe { self.word::<u32>(offset).write(value) }
    }

    /// A plain load of a 32-bit word.
    pub fn read(&self, offset: usize) -> u32 {
        // SAFETY: as in `write`.
        unsafe { self.word::<u32>(offset).read() }
    }

    /// A plain store of a 64-bit word.
    pub fn write_u64(&self, offset: usize, value: u64) {
        // SAFETY: as in `write`.
        unsafe { self.word::<u64>(offset).write(value) }
    }

    /// A plain load of a 64-bit word.
    pub fn read_u64(&self, offset: usize) -> u64 {
        // SAFETY: as in `write`.
        unsafe { self.word::<u64>(offset).read() }
    }

    /// Plain stores of an entry.
    pub fn write_entry(&self, offset: usize, entry: [u64; 2]) {
        self.write_u64(offset, entry[0]);
        self.write_u64(offset + 8, entry[1]);
    }

    /// Plain loads of an entry.
    pub fn read_entry(&self, offset: usize) -> [u64; 2] {
        [self.read_u64(offset), self.read_u64(offset + 8)]
    }

    /// An atomic store: of what somebody polls.
    pub fn store(&self, offset: usize, value: u32, order: Ordering) {
        self.region.store_u32(offset, value, order);
    }

    /// An atomic load.
    pub fn load(&self, offset: usize, order: Ordering) -> u32 {
        self.region.load_u32(offset, order)
    }

    /// Waits for a 32-bit word: looks at it relaxed, and once more with `order` when it is there.
    pub fn wait(&self, offset: usize, order: Ordering, is_there: impl Fn(u32) -> bool) -> u32 {
        super::support::until(|| is_there(self.load(offset, Relaxed)));
        self.load(offset, order)
    }

    fn word<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(size_of::<T>()) && offset + size_of::<T>() <= self.region.len());
        // SAFETY: inside the memory.
        unsafe { self.base.add(offset) }.cast().as_ptr()
    }
}
